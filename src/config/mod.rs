//! The sidecar's configuration as types that can't be wrong: no `Option` that means "default", no string that means an address.
//!
//! `Config` is what every other room reads. Where a value came from (flag, environment, file, default) is `layer`'s business, and whether
//! it is right is `check`'s.

pub mod check;
pub mod environment;
pub mod example;
pub mod file;
pub mod key;
pub mod layer;
pub mod live;
pub mod parse;
pub mod schema;
pub mod show;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use layer::{Complaint, Layer};

/// Everything `loopgate run` needs to know, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The gateway core behind the sidecar.
    pub gateway: Gateway,
    /// Where the sidecar listens.
    pub listen: Listen,
    /// The certificate it shows and the clients it asks for one.
    pub tls: Tls,
    /// The directory that holds `ca.pem`, `ca.key`, `server.pem` and `server.key`.
    pub state_dir: PathBuf,
    /// Where labelled agents are looked for.
    pub discovery: Discovery,
    /// Kubernetes discovery.
    pub kubernetes: Kubernetes,
    /// Docker discovery.
    pub docker: Docker,
    /// Who else is an agent, and what agents get.
    pub agents: Agents,
    /// The external lane.
    pub external: External,
    /// The admin listener; `None` turns it off.
    pub admin: Option<SocketAddr>,
    /// Bounds on time, size and number.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
}

/// The gateway core (`[gateway]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its address; loopback unless `allow_remote`.
    pub address: SocketAddr,
    /// Whether an address that is not loopback was let through (`--allow-remote-gateway`).
    pub allow_remote: bool,
    /// The loopback source address of the external lane, which the gateway's `trustedProxies` names.
    pub external_source: Ipv4Addr,
    /// Out of which agent-lane source addresses are taken, one for each agent.
    pub agent_sources: Ipv4Net,
    /// The file that holds the gateway's token.
    pub token_file: Option<PathBuf>,
    /// The gateway's own state directory, read-only, for pre-pairing its own identity.
    pub state_dir: Option<PathBuf>,
}

/// Where to listen (`[listen]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Each place to listen on; never empty.
    pub on: Vec<ListenOn>,
    /// Whether trusted proxies speak the PROXY protocol first.
    pub proxy_protocol: bool,
    /// The lane of clients whose source address is one of this namespace's own.
    pub own_addresses: OwnAddresses,
}

/// One `--listen` value: which addresses, and the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOn {
    /// Which addresses of this network namespace.
    pub addresses: ListenAddresses,
    /// The TCP port; 0 lets the kernel choose (for tests).
    pub port: u16,
}

impl ListenOn {
    /// The one address that it names, if it names one.
    pub fn exact(&self) -> Option<IpAddr> {
        match self.addresses {
            ListenAddresses::Address(ip) => Some(ip),
            _ => None,
        }
    }
}

/// As `--listen` takes it.
impl fmt::Display for ListenOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.addresses {
            ListenAddresses::Bridge => write!(f, "bridge:{port}"),
            ListenAddresses::Interface(name) => write!(f, "{name}:{port}"),
            ListenAddresses::Network(IpNet::V6(network)) => write!(f, "[{network}]:{port}"),
            ListenAddresses::Network(network) => write!(f, "{network}:{port}"),
            ListenAddresses::Address(ip) => SocketAddr::new(*ip, port).fmt(f),
        }
    }
}

/// Which addresses of this network namespace a listener takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddresses {
    /// Every non-loopback address (`bridge`).
    Bridge,
    /// Every address of one interface.
    Interface(String),
    /// Whatever own address falls in the network.
    Network(IpNet),
    /// Exactly this address, unspecified ones (`[::]`, `0.0.0.0`) included.
    Address(IpAddr),
}

/// The lane of clients with one of this namespace's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnAddresses {
    /// The safe default: rootless engines deliver outside clients with such an address.
    External,
    /// For rootful Docker and Kubernetes, where only this namespace's processes can have one.
    Agent,
}

/// Certificates (`[tls]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The operator's own pair instead of one that loopgate makes.
    pub own_pair: Option<CertificateFiles>,
    /// Names beyond those loopgate finds by itself, for the certificate it makes.
    pub names: Vec<String>,
    /// CA bundle whose client certificates identify external users.
    pub client_ca: Option<PathBuf>,
}

/// A PEM certificate chain and its PEM private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Where labelled agents are looked for (`discovery`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discovery {
    /// Containers of a Docker Engine.
    #[default]
    Docker,
    /// Pods of loopgate's own namespace.
    Kubernetes,
}

impl Discovery {
    /// In one word, as the option, `status` and metrics name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Kubernetes => "the Kubernetes API server",
        }
    }
}

/// Kubernetes discovery (`[kubernetes]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// `host:port` of the API server; the variables that Kubernetes sets in each pod tell it otherwise.
    pub api: Option<String>,
    /// The directory of the service account's `token`, `ca.crt` and `namespace`.
    pub credentials: PathBuf,
    /// The audience that agents' tokens must be for.
    pub audience: String,
}

/// Docker discovery (`[docker]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Docker {
    /// Where the Engine API is.
    pub engine: Engine,
    /// Whether labels count on containers outside the gateway's compose project.
    pub any_project: bool,
    /// The container that owns this network namespace, where loopgate can't find it by itself.
    pub container: Option<String>,
}

/// Where the Docker Engine API is to be found (`--docker`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The default socket if it is there.
    Auto,
    /// No Docker.
    Off,
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP endpoint, `host:port` (a filter; there is no TLS on it).
    Tcp(String),
}

/// Agents beyond labelled containers (`[agents]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agents {
    /// Source networks that are agents by address alone.
    pub cidrs: Vec<IpNet>,
    /// SAN URIs of client certificates (from `client_ca`) that are agents.
    pub uris: Vec<String>,
    /// Whether attested agents receive the gateway's token.
    pub inherit_token: bool,
    /// Scope cap for agents without one of their own; empty means none.
    pub scopes: Vec<String>,
    /// How long the certificates that loopgate issues to attested agents are valid.
    pub certificate_life: Duration,
    /// The SPIFFE trust domain of the certificates that loopgate issues.
    pub trust_domain: String,
}

/// The external lane (`[external]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Peers that may state a client's address, scheme, host and identity.
    pub trusted_proxies: Vec<IpNet>,
    /// Who may connect at all; empty means everyone.
    pub allow: Vec<IpNet>,
    /// Who may not, whatever `allow` says.
    pub deny: Vec<IpNet>,
    /// Stands for a client whose address would say nothing.
    pub unknown_client: IpAddr,
    /// Identity headers (lower case) that trusted proxies may set.
    pub identity_headers: Vec<http::HeaderName>,
    /// Which paths face the outside, first match wins; empty means all of them.
    pub paths: Vec<PathRule>,
}

/// One rule of `[external] paths`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// Whether what matches may pass.
    pub allow: bool,
    /// The path must be this, or begin with it at a segment boundary.
    pub prefix: String,
    /// Methods the rule is for; empty means all.
    pub methods: Vec<http::Method>,
}

/// Bounds (`[limits]`). Durations have at least millisecond resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Downstream connections at once, and active ones to the gateway for external clients.
    pub max_connections: usize,
    /// Downstream connections at once from one client address.
    pub max_connections_per_client: usize,
    /// New connections a second from one client address, with as many again at once; 0 means no limit.
    pub connection_rate_per_client: u32,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// Fields of a request head.
    pub head_fields: usize,
    /// Concurrent streams of one HTTP/2 connection.
    pub h2_streams: u32,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// For a whole request head.
    pub head_timeout: Duration,
    /// For the connection to the gateway.
    pub connect_timeout: Duration,
    /// For the gateway's response head.
    pub request_timeout: Duration,
    /// How long a keep-alive connection may idle.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of a response that is there for it.
    pub stall_timeout: Duration,
    /// How long a request waits for a gateway that is restarting.
    pub gateway_wait: Duration,
    /// How long shutting down may take.
    pub drain_timeout: Duration,
}

/// Logging (`[log]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Shape of a line.
    pub format: LogFormat,
    /// A `tracing` filter, such as `info` or `loopgate::discovery=debug,warn`.
    pub level: String,
    /// One line for each request.
    pub access: bool,
    /// What becomes of a request's `traceparent`.
    pub traceparent: TraceparentUse,
    /// The OpenTelemetry collector that is sent a span for each request.
    pub otel_endpoint: Option<http::Uri>,
}

/// What becomes of a request's `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceparentUse {
    /// It is passed on as it came, if it came.
    Pass,
    /// The gateway always gets one: the client's if that is well-formed, else a new one.
    Make,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The gateway's default port.
pub const GATEWAY_PORT: u16 = 18789;
/// The sidecar's default port. It differs from [`GATEWAY_PORT`] because `openclaw gateway run --force` ends whatever listens on its own
/// port number, on any address.
pub const SIDECAR_PORT: u16 = 18443;

impl Default for Config {
    /// The configuration of `loopgate run` without a flag, a variable or a file: what [`key::KEYS`] says.
    fn default() -> Self {
        check::check(&Layer::defaults()).expect("the defaults are right")
    }
}

/// What all sources say together: flags beat the environment beats the file beats the defaults.
pub fn merge(flags: Layer, environment: Layer, file: Layer) -> Layer {
    flags.over(environment).over(file).over(Layer::defaults())
}

/// The configuration that these sources make.
///
/// # Errors
///
/// All there is to complain about.
pub fn load(flags: Layer, environment: Layer, file: Layer) -> Result<Config, Error> {
    check::check(&merge(flags, environment, file))
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Error(pub Vec<Complaint>);

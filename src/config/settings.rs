//! The settings that a valid configuration has, as types.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use crate::enrolment_protocol::ProofKind;

/// The validated configuration of `loopgate run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The gateway behind the sidecar.
    pub gateway: Gateway,
    /// Where the sidecar listens.
    pub listen: Listen,
    /// Its certificate, and client certificates.
    pub tls: Tls,
    /// The directory of the CA, the certificate, their keys, the list of revoked certificates, and the devices of
    /// agents.
    pub state_dir: PathBuf,
    /// Whether the process gives up what it never needs.
    pub sandbox: Sandbox,
    /// Where labelled agents are looked for.
    pub discovery: AgentSourceKind,
    /// Kubernetes discovery.
    pub kubernetes: Kubernetes,
    /// Docker discovery.
    pub docker: Docker,
    /// Agents beyond labelled ones, and what agents get.
    pub agents: Agents,
    /// The external lane.
    pub external: External,
    /// Requests on both lanes.
    pub http: Http,
    /// The admin listener; `None` turns it off.
    pub admin: Option<SocketAddr>,
    /// Bounds on time, size and number.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
}

/// Requests on both lanes (`[http]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// The protocols that a request may upgrade to, in lower case.
    pub upgrades: Vec<String>,
}

/// The gateway (`[gateway]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its address; loopback unless `allow_remote`.
    pub address: SocketAddr,
    /// Whether an address that is not loopback is accepted (`--allow-remote-gateway`).
    pub allow_remote: bool,
    /// The loopback source address of the external lane, which the gateway's `trustedProxies` names.
    pub external_source: Ipv4Addr,
    /// The network of the agent lane's source addresses, one for each agent.
    pub agent_sources: Ipv4Net,
    /// The file that holds the gateway's token.
    pub token_file: Option<PathBuf>,
    /// The gateway's own state directory, read-only, for pre-pairing its own identity.
    pub state_dir: Option<PathBuf>,
}

/// Where to listen (`[listen]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The addresses to listen on with TLS; never empty.
    pub on: Vec<ListenOn>,
    /// The addresses to listen on for plain HTTP of trusted proxies.
    pub plain: Vec<ListenOn>,
    /// Other ports of the gateway to carry, on the addresses of `on`.
    pub forward: Vec<Forward>,
    /// Whether trusted proxies speak the PROXY protocol first.
    pub proxy_protocol: bool,
    /// The lane of clients whose source address is one of this namespace's own.
    pub own_addresses: OwnAddresses,
}

/// One value of `--listen` or `--listen-plain`: which addresses, and the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOn {
    /// Which addresses of this network namespace.
    pub addresses: ListenAddresses,
    /// The TCP port; 0 lets the kernel choose (for tests).
    pub port: u16,
}

impl ListenOn {
    /// The address, if the value is one; `None` if it stands for addresses of the namespace.
    pub fn exact(&self) -> Option<IpAddr> {
        match self.addresses {
            ListenAddresses::Address(ip) => Some(ip),
            _ => None,
        }
    }
}

/// Formats the value as `--listen` takes it.
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

/// One `--forward` value: a port to listen on, and the port of the gateway's address that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    /// The TCP port to listen on; 0 lets the kernel choose (for tests).
    pub port: u16,
    /// The port behind it.
    pub target: u16,
}

/// Formats the value as `--forward` takes it.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, target } = self;
        if port == target { write!(f, "{target}") } else { write!(f, "{port}:{target}") }
    }
}

/// Which addresses of this network namespace a listener takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddresses {
    /// Every non-loopback address (`bridge`).
    Bridge,
    /// Every address of one interface.
    Interface(String),
    /// Every own address in this network.
    Network(IpNet),
    /// Exactly this address, unspecified ones (`[::]`, `0.0.0.0`) included.
    Address(IpAddr),
}

/// Whether the sidecar restricts itself with seccomp and Landlock when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// The sandbox is applied as far as the kernel and the container permit.
    Auto,
    /// The sandbox is off.
    Off,
    /// The sandbox is applied completely, or the sidecar does not start.
    Required,
}

/// The lane of clients with one of this namespace's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnAddresses {
    /// The safe default: rootless engines deliver outside clients with such an address.
    External,
    /// For rootful Docker and Kubernetes, where only this namespace's processes can connect from one.
    Agent,
}

/// Certificates (`[tls]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// A certificate and key that the operator provides, instead of those that loopgate makes.
    pub provided: Option<CertificateFiles>,
    /// Names for the certificate that loopgate makes, beyond those that it finds itself.
    pub names: Vec<String>,
    /// Whether a new CA may sign only for the names known when it is created.
    pub constrain_names: bool,
    /// Whether a new name or address leads to a new certificate.
    pub follow_names: bool,
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
pub enum AgentSourceKind {
    /// Containers of a Docker Engine.
    #[default]
    Docker,
    /// Pods of loopgate's own namespace.
    Kubernetes,
}

impl AgentSourceKind {
    /// The name in options, `status` and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// The name in messages.
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
    /// `host:port` of the API server; by default from the variables that Kubernetes sets in each pod.
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
    /// Whether labels count on containers outside the gateway's compose project or stack.
    pub any_project: bool,
    /// The container that owns this network namespace, if loopgate can't find it itself.
    pub container: Option<String>,
}

/// The endpoint of the Docker Engine API (`--docker`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// What `DOCKER_HOST` says, else the first usual socket that exists.
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
    /// Networks whose clients are asked for a certificate, although no address in them is known to be an agent's.
    pub certificate_from: Vec<IpNet>,
    /// SAN URIs of client certificates (from `client_ca`) that are agents.
    pub uris: Vec<String>,
    /// Services of the gateway's project whose containers are agents without a label.
    pub services: Vec<AgentService>,
    /// The kinds of proof by which a container may enrol.
    pub proofs: Vec<ProofKind>,
    /// Whether attested agents receive the gateway's token, and requests of agents with a certificate get it.
    pub inherit_token: bool,
    /// Scope cap for agents without one of their own; empty means none.
    pub scopes: Vec<String>,
    /// Whether devices of agents are bound to the agent lane.
    pub bind_devices: BindDevices,
    /// Whether the pairing of an agent's devices is removed once its container, or pod, is.
    pub unpair: bool,
    /// How long the certificates that loopgate issues to attested agents are valid.
    pub certificate_life: Duration,
    /// The SPIFFE trust domain of the certificates that loopgate issues.
    pub trust_domain: String,
}

/// A service whose containers are agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentService {
    /// The compose service, or the Swarm service without the name of the stack.
    pub name: String,
    /// Whether their addresses alone make them agents.
    pub by_address: bool,
}

/// The external lane (`[external]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Peers that may state a client's address, scheme, host and identity.
    pub trusted_proxies: Vec<IpNet>,
    /// Networks that may connect; empty means all.
    pub allow: Vec<IpNet>,
    /// Networks that may not connect; wins over `allow`.
    pub deny: Vec<IpNet>,
    /// The address stated for a client with a loopback or unspecified address.
    pub unknown_client: IpAddr,
    /// Identity headers (lower case) that trusted proxies may set.
    pub identity_headers: Vec<http::HeaderName>,
    /// The scopes that outsiders may ask for; empty means no cap.
    pub scopes: Vec<String>,
    /// Headers that clients may send although their names are reserved for identities.
    pub keep_headers: Vec<http::HeaderName>,
    /// Whether clients may download loopgate's CA certificate.
    pub serve_ca: bool,
    /// Rules for the paths of external requests, first match wins; empty means that all are open.
    pub paths: Vec<PathRule>,
}

/// One rule of `[external] paths`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// Whether matching requests pass.
    pub allow: bool,
    /// The path is this, or begins with it at a segment boundary.
    pub prefix: String,
    /// Methods the rule is for; empty means all.
    pub methods: Vec<http::Method>,
    /// Whether an `allow` rule lets WebSocket upgrades pass; a `deny` rule refuses them in any case.
    pub upgrade: bool,
    /// The port of the gateway's address that the rule is for; all by default.
    pub port: Option<u16>,
}

impl PathRule {
    /// Creates the rule that refuses every request to `prefix` and the paths below it.
    pub fn deny(prefix: &str) -> Self {
        Self { allow: false, prefix: prefix.into(), methods: Vec::new(), upgrade: false, port: None }
    }
}

/// Bounds (`[limits]`). Durations have at least millisecond resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Concurrent downstream connections.
    pub max_connections: usize,
    /// Concurrent downstream connections from one client address.
    pub max_connections_per_client: usize,
    /// New connections a second from one client address, with a burst of the same size; 0 means no limit.
    pub connection_rate_per_client: u32,
    /// Concurrent requests of external clients at the gateway, WebSockets aside.
    pub gateway_requests: usize,
    /// Concurrent WebSockets of external clients at the gateway.
    pub gateway_websockets: usize,
    /// Bytes of bodies that may be buffered.
    pub buffered: usize,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// Fields of a request head.
    pub head_fields: usize,
    /// Bytes of the gateway's response head.
    pub response_head: usize,
    /// Fields of the gateway's response head.
    pub response_fields: usize,
    /// Concurrent streams of one HTTP/2 connection.
    pub h2_streams: u32,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// For a whole request head.
    pub head_timeout: Duration,
    /// For the connection to the gateway.
    pub connect_timeout: Duration,
    /// For the gateway's response head, from the last byte of the request.
    pub request_timeout: Duration,
    /// Request timeouts of some paths.
    pub path_timeouts: Vec<PathTimeout>,
    /// How long a keep-alive connection may idle.
    pub idle_timeout: Duration,
    /// How long a client may pause while it sends a body or reads a response.
    pub stall_timeout: Duration,
    /// How long an external client that reads nothing of a response may keep its request at the
    /// gateway. Agents are exempt.
    pub gateway_stall: Duration,
    /// How long a request waits for a gateway that is restarting, or while too many are in flight.
    pub gateway_wait: Duration,
    /// How long shutdown may take.
    pub drain_timeout: Duration,
}

/// A time limit of the gateway's response head for some paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTimeout {
    /// The path is this, or begins with it at a segment boundary.
    pub prefix: String,
    /// The limit.
    pub timeout: Duration,
}

impl Limits {
    /// Returns the time limit of the gateway's response head for `path`: that of the longest
    /// prefix, or else `request_timeout`.
    pub fn request_timeout_of(&self, path: &str) -> Duration {
        let matches = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
        };
        let longest =
            self.path_timeouts.iter().filter(|limit| matches(&limit.prefix)).max_by_key(|limit| limit.prefix.len());
        longest.map_or(self.request_timeout, |limit| limit.timeout)
    }
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
    /// The audit log; `-` is standard output.
    pub audit: Option<PathBuf>,
    /// How a request's `traceparent` is treated.
    pub traceparent: TraceparentUse,
    /// The OpenTelemetry collector that is sent a span for each request.
    pub otel_endpoint: Option<http::Uri>,
}

/// What happens to a device of an agent on the external lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindDevices {
    /// It is refused.
    On,
    /// It is logged.
    Report,
    /// Devices are not looked at.
    Off,
}

/// How a request's `traceparent` is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceparentUse {
    /// Passed on unchanged.
    Pass,
    /// Passed on if well-formed, else replaced by a new one.
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

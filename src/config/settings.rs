//! The types of a valid configuration: one struct for each table of the file.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use crate::enrolment_protocol::ProofKind;

/// The validated configuration of `loopgate run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The gateway that the sidecar forwards to.
    pub gateway: Gateway,
    /// The addresses that the sidecar listens on.
    pub listen: Listen,
    /// The server certificate, and the CA of client certificates.
    pub tls: Tls,
    /// The directory of the CA, the certificate, their keys, the list of revoked certificates, and
    /// the devices of agents.
    pub state_dir: PathBuf,
    /// Whether the process restricts itself when it starts.
    pub sandbox: Sandbox,
    /// Whether labelled agents are containers of Docker or pods of Kubernetes.
    pub discovery: AgentSourceKind,
    /// Discovery through Kubernetes.
    pub kubernetes: Kubernetes,
    /// Discovery through Docker.
    pub docker: Docker,
    /// Agents other than labelled ones, and what agents are allowed to do.
    pub agents: Agents,
    /// The external lane.
    pub external: External,
    /// Requests on both lanes.
    pub http: Http,
    /// The address of the admin listener; `None` turns it off.
    pub admin: Option<SocketAddr>,
    /// Limits on time, size and number.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
}

/// The options for requests on both lanes (`[http]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// The protocols that a request may upgrade to, in lower case.
    pub upgrades: Vec<String>,
}

/// The options for the gateway (`[gateway]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The gateway's address. It is a loopback address unless `allow_remote` is set.
    pub address: SocketAddr,
    /// Whether an address that is not loopback is accepted (`--allow-remote-gateway`).
    pub allow_remote: bool,
    /// The loopback address from which the external lane connects to the gateway. The gateway's
    /// `trustedProxies` must contain it.
    pub external_source: Ipv4Addr,
    /// The loopback network from which the agent lane connects: each agent gets an address of it.
    pub agent_sources: Ipv4Net,
    /// The file that contains the gateway's token.
    pub token_file: Option<PathBuf>,
    /// The gateway's state directory, which loopgate only reads: it contains the device identity
    /// that loopgate pairs in advance.
    pub state_dir: Option<PathBuf>,
}

/// The options for the sidecar's listeners (`[listen]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The addresses to listen on with TLS; never empty.
    pub on: Vec<ListenOn>,
    /// The addresses to listen on for plain HTTP of trusted proxies.
    pub plain: Vec<ListenOn>,
    /// Further ports of the gateway to forward to; each is listened on at the addresses of `on`.
    pub forward: Vec<PortForward>,
    /// Whether trusted proxies begin a connection with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// The lane of clients whose source address is one of this namespace's own.
    pub own_addresses: OwnAddresses,
}

/// One value of `--listen` or `--listen-plain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOn {
    /// The addresses of this network namespace to listen on.
    pub addresses: ListenAddresses,
    /// The TCP port; 0 lets the kernel choose (for tests).
    pub port: u16,
}

impl ListenOn {
    /// Returns the address if the value names exactly one, else `None`.
    pub fn exact_address(&self) -> Option<IpAddr> {
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

/// One `--forward` value: a port to listen on, and the port of the gateway's address that it leads
/// to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortForward {
    /// The TCP port to listen on; 0 lets the kernel choose (for tests).
    pub port: u16,
    /// The gateway's TCP port to forward to.
    pub target: u16,
}

/// Formats the value as `--forward` takes it.
impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, target } = self;
        if port == target { write!(f, "{target}") } else { write!(f, "{port}:{target}") }
    }
}

/// The addresses of this network namespace that a `--listen` value selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddresses {
    /// Every non-loopback address (`bridge`).
    Bridge,
    /// Every address of one interface.
    Interface(String),
    /// Every address of the namespace that is in this network.
    Network(IpNet),
    /// Exactly this address, which may be unspecified (`[::]`, `0.0.0.0`).
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

/// The lane of clients whose source address is one of this namespace's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnAddresses {
    /// The external lane. This is the default, because rootless engines give such an address to
    /// clients from outside.
    External,
    /// The agent lane. This is safe if only processes of this namespace can connect from such an
    /// address, as with rootful Docker and with Kubernetes.
    Agent,
}

/// The options for certificates (`[tls]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// A certificate and key that the operator provides, instead of those that loopgate makes.
    pub provided: Option<CertificateFiles>,
    /// Names for the certificate that loopgate makes, in addition to those that it finds itself.
    pub names: Vec<String>,
    /// Whether a new CA may sign only for the names known when it is created.
    pub constrain_names: bool,
    /// Whether loopgate issues a new certificate when it gets a further name or address.
    pub follow_names: bool,
    /// The file of the CAs whose client certificates identify external users.
    pub client_ca: Option<PathBuf>,
}

/// A PEM certificate chain and its PEM private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The file of the certificate chain, leaf first.
    pub chain: PathBuf,
    /// The file of the private key.
    pub key: PathBuf,
}

/// The source of labelled agents (`discovery`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentSourceKind {
    /// Containers of a Docker Engine.
    #[default]
    Docker,
    /// Pods in loopgate's own Kubernetes namespace.
    Kubernetes,
}

impl AgentSourceKind {
    /// Returns the name in options, `status` and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// Returns the name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Kubernetes => "the Kubernetes API server",
        }
    }
}

/// The options for discovery through Kubernetes (`[kubernetes]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// The API server as `host:port`. If `None`, it is taken from the variables that Kubernetes
    /// sets in each pod.
    pub api: Option<String>,
    /// The directory of the service account's `token`, `ca.crt` and `namespace`.
    pub credentials: PathBuf,
    /// The audience that the service-account tokens of agents must have.
    pub audience: String,
}

/// The options for discovery through Docker (`[docker]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Docker {
    /// The endpoint of the Engine API.
    pub engine: Engine,
    /// Whether labels also count on containers outside the gateway's compose project or stack.
    pub any_project: bool,
    /// The container that owns this network namespace. If `None`, loopgate finds it itself.
    pub container: Option<String>,
}

/// The endpoint of the Docker Engine API (`--docker`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The endpoint in `DOCKER_HOST`, else the first usual socket that exists.
    Auto,
    /// loopgate does not use Docker.
    Off,
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP endpoint without TLS, as `host:port`. It is usually a filter in front of the engine.
    Tcp(String),
}

/// The options for agents (`[agents]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agents {
    /// Networks whose clients are agents by their source address alone.
    pub cidrs: Vec<IpNet>,
    /// Networks whose clients are asked for a certificate, although discovery knows no agent there.
    pub certificate_from: Vec<IpNet>,
    /// SAN URIs that make the holder of a client certificate from `client_ca` an agent.
    pub uris: Vec<String>,
    /// Services of the gateway's project whose containers are agents without a label.
    pub services: Vec<AgentService>,
    /// The kinds of proof by which a container may enrol.
    pub proofs: Vec<ProofKind>,
    /// Whether attested agents receive the gateway's token, and loopgate adds it to the requests of
    /// agents that show a certificate.
    pub inherit_token: bool,
    /// The scope cap of agents whose label states none; empty means no cap.
    pub scopes: Vec<String>,
    /// Whether the devices of agents are bound to the agent lane.
    pub bind_devices: BindDevices,
    /// Whether loopgate removes the pairing of an agent's devices at the gateway after the agent's
    /// container or pod was removed.
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
    /// Whether a container's address alone makes it an agent. If not, the container must enrol.
    pub by_address: bool,
}

/// The options for the external lane (`[external]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Peers that may state the address, scheme, host and identity of a client.
    pub trusted_proxies: Vec<IpNet>,
    /// Networks whose clients may connect; empty means all.
    pub allow: Vec<IpNet>,
    /// Networks whose clients may not connect, even if `allow` includes them.
    pub deny: Vec<IpNet>,
    /// The address that is stated to the gateway for a client with a loopback or unspecified
    /// address.
    pub unknown_client: IpAddr,
    /// Identity headers (lower case) that trusted proxies may set.
    pub identity_headers: Vec<http::HeaderName>,
    /// The scopes that external clients may ask for; empty means no cap.
    pub scopes: Vec<String>,
    /// Headers that clients may send although their names are reserved for identities.
    pub keep_headers: Vec<http::HeaderName>,
    /// Whether clients may download loopgate's CA certificate.
    pub serve_ca: bool,
    /// Rules for the paths of external requests, of which the first that matches applies. A request
    /// that matches no rule is allowed.
    pub paths: Vec<PathRule>,
}

/// One rule of `[external] paths`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// Whether matching requests are allowed.
    pub allow: bool,
    /// The path that the rule matches. It also matches the paths below.
    pub prefix: String,
    /// The methods that the rule matches; empty means all.
    pub methods: Vec<http::Method>,
    /// Whether an `allow` rule also allows WebSocket upgrades. A `deny` rule refuses them in any
    /// case.
    pub upgrade: bool,
    /// The port of the gateway that the rule matches; `None` means all.
    pub port: Option<u16>,
}

impl PathRule {
    /// Creates the rule that refuses every request to `prefix` and the paths below it.
    pub fn deny(prefix: &str) -> Self {
        Self { allow: false, prefix: prefix.into(), methods: Vec::new(), upgrade: false, port: None }
    }
}

/// The limits (`[limits]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest number of concurrent downstream connections.
    pub max_connections: usize,
    /// The largest number of concurrent downstream connections from one client address.
    pub max_connections_per_client: usize,
    /// The largest number of new connections per second from one client address, which is also the
    /// largest burst; 0 means no limit.
    pub connection_rate_per_client: u32,
    /// The largest number of concurrent requests of external clients at the gateway, without
    /// WebSockets.
    pub gateway_requests: usize,
    /// The largest number of concurrent WebSockets of external clients at the gateway.
    pub gateway_websockets: usize,
    /// The largest number of bytes of bodies and of WebSockets that are buffered at one time.
    pub buffered: usize,
    /// The largest size of a request head, in bytes.
    pub head_bytes: usize,
    /// The largest number of fields of a request head.
    pub head_fields: usize,
    /// The largest size of the gateway's response head, in bytes.
    pub response_head: usize,
    /// The largest number of fields of the gateway's response head.
    pub response_fields: usize,
    /// The largest number of concurrent streams of one HTTP/2 connection.
    pub h2_streams: u32,
    /// The time limit of the TLS handshake.
    pub handshake_timeout: Duration,
    /// The time limit for receiving a whole request head.
    pub head_timeout: Duration,
    /// The time limit for connecting to the gateway.
    pub connect_timeout: Duration,
    /// The time limit for the gateway's response head, from the last byte of the request.
    pub request_timeout: Duration,
    /// Time limits for the gateway's response head that replace `request_timeout` for some paths.
    pub path_timeouts: Vec<PathTimeout>,
    /// The time for which a connection without a request stays open.
    pub idle_timeout: Duration,
    /// The longest pause of a client while it sends a body or reads a response.
    pub stall_timeout: Duration,
    /// The time for which an external client that reads nothing of a response may occupy the
    /// gateway with its request. There is no such limit for agents.
    pub gateway_stall: Duration,
    /// The time for which a request waits while the gateway restarts, or while too many are in
    /// flight.
    pub gateway_wait: Duration,
    /// The time limit of a shutdown.
    pub drain_timeout: Duration,
}

/// The time limit for the gateway's response head on some paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTimeout {
    /// The path that the limit applies to. It also applies to the paths below.
    pub prefix: String,
    /// The time limit, from the last byte of the request.
    pub timeout: Duration,
}

impl Limits {
    /// Returns the time limit for the gateway's response head for `path`: the one with the longest
    /// matching prefix in `path_timeouts`, or else `request_timeout`.
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

/// The options for logging (`[log]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The format of a line.
    pub format: LogFormat,
    /// A `tracing` filter, such as `info` or `loopgate::discovery=debug,warn`.
    pub level: String,
    /// Whether loopgate logs one line for each request.
    pub access: bool,
    /// The file of the audit log; `-` is standard output.
    pub audit: Option<PathBuf>,
    /// What loopgate does with the `traceparent` of a request.
    pub traceparent: TraceparentUse,
    /// The URL of the OpenTelemetry collector that gets a span for each request.
    pub otel_endpoint: Option<http::Uri>,
}

/// What loopgate does if a device that belongs to an agent appears on the external lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindDevices {
    /// loopgate refuses the device.
    On,
    /// loopgate logs the device, and lets it pass.
    Report,
    /// loopgate does not record the devices of agents.
    Off,
}

/// What loopgate does with the `traceparent` of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceparentUse {
    /// The field is passed on unchanged.
    Pass,
    /// The field is passed on if it is well-formed, else replaced by a new one.
    Make,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

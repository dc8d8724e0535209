//! The table of all options of `loopgate run`: flag, path in the file, form, default and help.
//!
//! Flags, variables, the file's keys, help, completions, `config show` and `config schema` are made
//! from this table.

use std::sync::LazyLock;

use super::option::Form::{Choice, Duration, List, Switch, Text};
use super::option::Key;

mod limits;

/// The path of the path rules in the file. They are the only option without a flag and an entry in
/// [`KEYS`], because a rule is a table and the order of rules matters.
pub const PATHS: &str = "external.paths";

/// Returns the option with this flag.
///
/// # Panics
///
/// If no option has this flag, which is a bug in loopgate.
pub fn key_by_flag(flag: &str) -> &'static Key {
    KEYS.iter().find(|key| key.flag == flag).unwrap_or_else(|| panic!("no option is called {flag}"))
}

/// All options, in the order that the help and the example file have.
pub static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    [TOP_LEVEL, GATEWAY, LISTEN, TLS, DOCKER, KUBERNETES, AGENTS, EXTERNAL, HTTP, limits::LIMITS, LOG].concat()
});

const TOP_LEVEL: &[Key] = &[
    Key::new(
        "state-dir",
        "state_dir",
        Text("DIR"),
        Some("/var/lib/loopgate"),
        "Directory of the CA, the certificate and their keys",
    ),
    Key::new(
        "admin",
        "admin",
        Text("ADDR|off"),
        Some("127.0.0.1:9180"),
        "Address of health, metrics and status; every client that can connect to it may read them",
    ),
    Key::new(
        "discovery",
        "discovery",
        Choice(&["docker", "kubernetes"]),
        Some("docker"),
        "Source of labelled agents: containers of a Docker Engine, or pods of loopgate's own namespace",
    ),
    Key::new(
        "sandbox",
        "sandbox",
        Choice(&["auto", "off", "required"]),
        Some("auto"),
        "Forbid this process to start programs and to write outside its directories (seccomp, Landlock): auto as far \
         as the kernel permits; required ends the start where it does not",
    ),
];

const GATEWAY: &[Key] = &[
    Key::new("gateway", "gateway.address", Text("ADDR"), Some("127.0.0.1:18789"), "Address of the gateway"),
    Key::new(
        "allow-remote-gateway",
        "gateway.allow_remote",
        Switch,
        Some("false"),
        "Accept a gateway address that is not loopback; every client is then external, agents included",
    ),
    Key::new(
        "external-source",
        "gateway.external_source",
        Text("IP"),
        Some("127.0.0.2"),
        "Source address of the external lane, the one in the gateway's trustedProxies",
    ),
    Key::new(
        "agent-sources",
        "gateway.agent_sources",
        Text("CIDR"),
        Some("127.77.0.0/16"),
        "Network from which each agent gets its own source address",
    ),
    Key::new(
        "token-file",
        "gateway.token_file",
        Text("FILE"),
        None,
        "File with the gateway's token [default: the variable OPENCLAW_GATEWAY_TOKEN]",
    ),
    Key::new(
        "gateway-state-dir",
        "gateway.state_dir",
        Text("DIR"),
        None,
        "The gateway's state directory (read-only), to pair the gateway's own device in advance",
    ),
];

const LISTEN: &[Key] = &[
    Key::new(
        "listen",
        "listen.on",
        List("WHERE:PORT"),
        Some("bridge:18443"),
        "Where to listen: bridge, an interface, a network or an address, and the port",
    ),
    Key::new(
        "listen-plain",
        "listen.plain",
        List("WHERE:PORT"),
        None,
        "Where to listen for plain HTTP of trusted proxies that can't speak TLS; other peers are closed",
    ),
    Key::new(
        "forward",
        "listen.forward",
        List("[PORT:]TARGET"),
        None,
        "Another loopback port of the gateway to carry with the same lanes, on the addresses of --listen (and PORT)",
    ),
    Key::new(
        "proxy-protocol",
        "listen.proxy_protocol",
        Switch,
        Some("false"),
        "Expect a PROXY protocol header from trusted proxies",
    ),
    Key::new(
        "own-addresses",
        "listen.own_addresses",
        Choice(&["external", "agent"]),
        Some("external"),
        "Lane of clients with an address of this network namespace",
    ),
];

const TLS: &[Key] = &[
    Key::new(
        "tls-cert",
        "tls.cert",
        Text("FILE"),
        None,
        "Certificate chain (PEM) to use instead of one made by loopgate",
    ),
    Key::new("tls-key", "tls.key", Text("FILE"), None, "Private key (PEM) of --tls-cert"),
    Key::new(
        "tls-name",
        "tls.names",
        List("NAME"),
        None,
        "DNS name or IP address of loopgate, added to the certificate that it makes",
    ),
    Key::new(
        "constrain-names",
        "tls.constrain_names",
        Switch,
        Some("false"),
        "Restrict a new CA to the names and addresses known when it is created; a later name then needs a new CA",
    ),
    Key::new(
        "follow-names",
        "tls.follow_names",
        Switch,
        Some("true"),
        "Issue a new certificate when loopgate gets a further name or address",
    ),
    Key::new(
        "client-ca",
        "tls.client_ca",
        Text("FILE"),
        None,
        "CA bundle (PEM) whose client certificates identify external users",
    ),
];

const DOCKER: &[Key] = &[
    Key::new(
        "docker",
        "docker.engine",
        Text("auto|off|URL"),
        Some("auto"),
        "Docker Engine: auto (DOCKER_HOST, else a usual socket), off, unix:///PATH or tcp://HOST:PORT",
    ),
    Key::new(
        "any-project",
        "docker.any_project",
        Switch,
        Some("false"),
        "Accept labels on containers of other compose projects",
    ),
    Key::new(
        "container",
        "docker.container",
        Text("ID"),
        None,
        "Container that owns this network namespace, if loopgate can't find it",
    ),
];

const KUBERNETES: &[Key] = &[
    Key::new(
        "kubernetes-api",
        "kubernetes.api",
        Text("HOST:PORT"),
        None,
        "API server (TLS), instead of KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT",
    ),
    Key::new(
        "kubernetes-credentials",
        "kubernetes.credentials",
        Text("DIR"),
        Some("/var/run/secrets/kubernetes.io/serviceaccount"),
        "Directory with the service account's token, ca.crt and namespace; read again for each request",
    ),
    Key::new(
        "kubernetes-audience",
        "kubernetes.audience",
        Text("NAME"),
        Some("loopgate"),
        "Audience of agents' service-account tokens",
    ),
];

const AGENTS: &[Key] = &[
    Key::new(
        "agent-cidr",
        "agents.cidrs",
        List("CIDR"),
        None,
        "Network whose clients are agents by their address alone",
    ),
    Key::new(
        "certificate-from",
        "agents.certificate_from",
        List("CIDR"),
        None,
        "Network whose clients are asked for a certificate that loopgate cert issue made; with --client-ca all clients \
         are asked",
    ),
    Key::new(
        "agent-uri",
        "agents.uris",
        List("URI"),
        None,
        "URI in client certificates (from --client-ca) that makes their holders agents",
    ),
    Key::new(
        "agent-service",
        "agents.services",
        List("NAME"),
        None,
        "Service of the gateway's project whose containers are agents without a label (attested; NAME=address: by \
         address)",
    ),
    Key::new(
        "agent-proof",
        "agents.proofs",
        List("KIND"),
        Some("process"),
        "Accepted enrolment proof: process, or file where top shows no processes",
    ),
    Key::new(
        "inherit-token",
        "agents.inherit_token",
        Switch,
        Some("false"),
        "Hand the gateway's token to attested agents, and add it to requests of all agents that show a certificate",
    ),
    Key::new(
        "agent-scopes",
        "agents.scopes",
        List("SCOPE"),
        None,
        "OpenClaw scopes that an agent may ask for, if its label states none; no cap by default",
    ),
    Key::new(
        "bind-devices",
        "agents.bind_devices",
        Choice(&["on", "report", "off"]),
        Some("on"),
        "Refuse on the external lane a device that the gateway first accepted from an agent; report only logs it",
    ),
    Key::new(
        "unpair",
        "agents.unpair",
        Switch,
        Some("false"),
        "Remove the pairing of an agent's devices at the gateway once its container, or pod, is removed; needs \
         --token-file, and Docker or Kubernetes",
    ),
    Key::new(
        "agent-certificate-life",
        "agents.certificate_life",
        Duration,
        Some("1h"),
        "Validity of an attested agent's certificate, from 1m to 24h; the agent enrols again at half of it",
    ),
    Key::new(
        "trust-domain",
        "agents.trust_domain",
        Text("NAME"),
        Some("loopgate.local"),
        "SPIFFE trust domain of agents' certificates",
    ),
];

const EXTERNAL: &[Key] = &[
    Key::new(
        "trusted-proxy",
        "external.trusted_proxies",
        List("CIDR"),
        None,
        "Proxy whose X-Forwarded-For or PROXY header names the client",
    ),
    Key::new(
        "allow",
        "external.allow",
        List("CIDR"),
        None,
        "Network of external clients that may connect; all by default",
    ),
    Key::new(
        "deny",
        "external.deny",
        List("CIDR"),
        None,
        "Network of external clients that may not connect, even if --allow includes it",
    ),
    Key::new(
        "unknown-client",
        "external.unknown_client",
        Text("IP"),
        Some("192.0.2.1"),
        "Address stated to the gateway for a client with a loopback or unspecified address",
    ),
    Key::new(
        "identity-header",
        "external.identity_headers",
        List("NAME"),
        None,
        "Identity header that trusted proxies may set",
    ),
    Key::new(
        "external-scopes",
        "external.scopes",
        List("SCOPE"),
        None,
        "OpenClaw scopes that external clients may ask for; no cap by default",
    ),
    Key::new(
        "keep-header",
        "external.keep_headers",
        List("NAME"),
        None,
        "Request header that every client may send although its name could carry an identity; never one that the \
         gateway trusts",
    ),
    Key::new(
        "serve-ca",
        "external.serve_ca",
        Switch,
        Some("false"),
        "Serve loopgate's CA certificate, for devices to install, at /.well-known/loopgate/ca",
    ),
];

const HTTP: &[Key] = &[Key::new(
    "upgrade",
    "http.upgrades",
    List("PROTOCOL"),
    Some("websocket"),
    "Protocol that clients may upgrade to; the Upgrade field of others is removed",
)];

const LOG: &[Key] = &[
    Key::new("log-format", "log.format", Choice(&["text", "json"]), Some("text"), "Format of log lines"),
    Key::new(
        "log-level",
        "log.level",
        Text("FILTER"),
        Some("info"),
        "Log level, or a filter such as loopgate::discovery=debug,warn",
    ),
    Key::new("access-log", "log.access", Switch, Some("false"), "Log one line for each request"),
    Key::new(
        "audit-log",
        "log.audit",
        Text("FILE"),
        None,
        "File that gets enrolments, lane decisions and refusals as JSON lines, at every log level; - for standard \
         output",
    ),
    Key::new(
        "traceparent",
        "log.traceparent",
        Choice(&["pass", "make"]),
        Some("pass"),
        "W3C traceparent of a request: pass it on unchanged, or make one if it is missing or malformed",
    ),
    Key::new(
        "otel-endpoint",
        "log.otel_endpoint",
        Text("URL"),
        None,
        "OpenTelemetry collector (OTLP over HTTP) that gets a span for each request; needs a build with the feature \
         otel",
    ),
];

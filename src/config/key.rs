//! The one table of options of `loopgate run`: flag, key in the file, form, default and help.
//!
//! Flags, variables, the file, help, completions, `config show` and `config schema` are all made from this table.

use std::sync::LazyLock;

use super::option::{Form, Key};

/// The key of the path rules, the only option without a flag, because their order matters.
pub const PATHS: &str = "external.paths";

/// The option with this flag.
///
/// # Panics
///
/// If there is none, which is a bug in loopgate.
pub fn key(flag: &str) -> &'static Key {
    KEYS.iter().find(|key| key.flag == flag).unwrap_or_else(|| panic!("no option is called {flag}"))
}

/// All options, in the order of the help and of the example file.
pub static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    use Form::{Choice, Duration, List, Number, Switch, Text};
    let mut keys = Vec::new();
    let mut add = |flag, path, form, default, help| keys.push(Key { flag, path, form, default, help });

    add(
        "state-dir",
        "state_dir",
        Text("DIR"),
        Some("/var/lib/loopgate"),
        "Directory of the CA, the certificate and their keys",
    );
    add(
        "admin",
        "admin",
        Text("ADDR|off"),
        Some("127.0.0.1:9180"),
        "Address of health, metrics and status; every client that can connect to it may read them",
    );
    add(
        "discovery",
        "discovery",
        Choice(&["docker", "kubernetes"]),
        Some("docker"),
        "Source of labelled agents: containers of a Docker Engine, or pods of loopgate's own namespace",
    );
    add(
        "sandbox",
        "sandbox",
        Choice(&["auto", "off", "required"]),
        Some("auto"),
        "Forbid this process to start programs and to write outside its directories (seccomp, Landlock): auto as far \
         as the kernel permits; required ends the start where it does not",
    );

    add("gateway", "gateway.address", Text("ADDR"), Some("127.0.0.1:18789"), "Address of the gateway");
    add(
        "allow-remote-gateway",
        "gateway.allow_remote",
        Switch,
        Some("false"),
        "Accept a gateway address that is not loopback; every client is then external, agents included",
    );
    add(
        "external-source",
        "gateway.external_source",
        Text("IP"),
        Some("127.0.0.2"),
        "Source address of the external lane, the one in the gateway's trustedProxies",
    );
    add(
        "agent-sources",
        "gateway.agent_sources",
        Text("CIDR"),
        Some("127.77.0.0/16"),
        "Network from which each agent gets its own source address",
    );
    add(
        "token-file",
        "gateway.token_file",
        Text("FILE"),
        None,
        "File with the gateway's token [default: the variable OPENCLAW_GATEWAY_TOKEN]",
    );
    add(
        "gateway-state-dir",
        "gateway.state_dir",
        Text("DIR"),
        None,
        "The gateway's state directory (read-only), to pair the gateway's own device in advance",
    );

    add(
        "listen",
        "listen.on",
        List("WHERE:PORT"),
        Some("bridge:18443"),
        "Where to listen: bridge, an interface, a network or an address, and the port",
    );
    add(
        "listen-plain",
        "listen.plain",
        List("WHERE:PORT"),
        None,
        "Where to listen for plain HTTP of trusted proxies that can't speak TLS; other peers are closed",
    );
    add(
        "forward",
        "listen.forward",
        List("[PORT:]TARGET"),
        None,
        "Another loopback port of the gateway to carry with the same lanes, on the addresses of --listen (and PORT)",
    );
    add(
        "proxy-protocol",
        "listen.proxy_protocol",
        Switch,
        Some("false"),
        "Expect a PROXY protocol header from trusted proxies",
    );
    add(
        "own-addresses",
        "listen.own_addresses",
        Choice(&["external", "agent"]),
        Some("external"),
        "Lane of clients with an address of this network namespace",
    );

    add("tls-cert", "tls.cert", Text("FILE"), None, "Certificate chain (PEM) to use instead of one made by loopgate");
    add("tls-key", "tls.key", Text("FILE"), None, "Private key (PEM) of --tls-cert");
    add(
        "tls-name",
        "tls.names",
        List("NAME"),
        None,
        "DNS name or IP address of loopgate, added to the certificate that it makes",
    );
    add(
        "constrain-names",
        "tls.constrain_names",
        Switch,
        Some("false"),
        "Restrict a new CA to the names and addresses known when it is created; a later name then needs a new CA",
    );
    add(
        "follow-names",
        "tls.follow_names",
        Switch,
        Some("true"),
        "Issue a new certificate when loopgate gets a further name or address",
    );
    add(
        "client-ca",
        "tls.client_ca",
        Text("FILE"),
        None,
        "CA bundle (PEM) whose client certificates identify external users",
    );

    add(
        "docker",
        "docker.engine",
        Text("auto|off|URL"),
        Some("auto"),
        "Docker Engine: auto (DOCKER_HOST, else a usual socket), off, unix:///PATH or tcp://HOST:PORT",
    );
    add(
        "any-project",
        "docker.any_project",
        Switch,
        Some("false"),
        "Accept labels on containers of other compose projects",
    );
    add(
        "container",
        "docker.container",
        Text("ID"),
        None,
        "Container that owns this network namespace, if loopgate can't find it",
    );

    add(
        "kubernetes-api",
        "kubernetes.api",
        Text("HOST:PORT"),
        None,
        "API server (TLS), instead of KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT",
    );
    add(
        "kubernetes-credentials",
        "kubernetes.credentials",
        Text("DIR"),
        Some("/var/run/secrets/kubernetes.io/serviceaccount"),
        "Directory with the service account's token, ca.crt and namespace; read again for each request",
    );
    add(
        "kubernetes-audience",
        "kubernetes.audience",
        Text("NAME"),
        Some("loopgate"),
        "Audience of agents' service-account tokens",
    );

    add("agent-cidr", "agents.cidrs", List("CIDR"), None, "Network whose clients are agents by their address alone");
    add(
        "certificate-from",
        "agents.certificate_from",
        List("CIDR"),
        None,
        "Network whose clients are asked for a certificate that loopgate cert issue made; with --client-ca all clients \
         are asked",
    );
    add(
        "agent-uri",
        "agents.uris",
        List("URI"),
        None,
        "URI in client certificates (from --client-ca) that makes their holders agents",
    );
    add(
        "agent-service",
        "agents.services",
        List("NAME"),
        None,
        "Service of the gateway's project whose containers are agents without a label (attested; NAME=address: by \
         address)",
    );
    add(
        "agent-proof",
        "agents.proofs",
        List("KIND"),
        Some("process"),
        "Accepted enrolment proof: process, or file where top shows no processes",
    );
    add("inherit-token", "agents.inherit_token", Switch, Some("false"), "Hand the gateway's token to attested agents");
    add(
        "agent-scopes",
        "agents.scopes",
        List("SCOPE"),
        None,
        "OpenClaw scopes that an agent may ask for, if its label states none; no cap by default",
    );
    add(
        "bind-devices",
        "agents.bind_devices",
        Choice(&["on", "report", "off"]),
        Some("on"),
        "Refuse on the external lane a device that the gateway first accepted from an agent; report only logs it",
    );
    add(
        "unpair",
        "agents.unpair",
        Switch,
        Some("false"),
        "Remove the pairing of an agent's devices at the gateway once its container, or pod, is removed; needs --token-file, and Docker or Kubernetes",
    );
    add(
        "agent-certificate-life",
        "agents.certificate_life",
        Duration,
        Some("1h"),
        "Validity of an attested agent's certificate, from 1m to 24h; the agent enrols again at half of it",
    );
    add(
        "trust-domain",
        "agents.trust_domain",
        Text("NAME"),
        Some("loopgate.local"),
        "SPIFFE trust domain of agents' certificates",
    );

    add(
        "trusted-proxy",
        "external.trusted_proxies",
        List("CIDR"),
        None,
        "Proxy whose X-Forwarded-For or PROXY header names the client",
    );
    add("allow", "external.allow", List("CIDR"), None, "Network of external clients that may connect; all by default");
    add(
        "deny",
        "external.deny",
        List("CIDR"),
        None,
        "Network of external clients that may not connect, even if --allow includes it",
    );
    add(
        "unknown-client",
        "external.unknown_client",
        Text("IP"),
        Some("192.0.2.1"),
        "Address stated to the gateway for a client with a loopback or unspecified address",
    );
    add(
        "identity-header",
        "external.identity_headers",
        List("NAME"),
        None,
        "Identity header that trusted proxies may set",
    );
    add(
        "external-scopes",
        "external.scopes",
        List("SCOPE"),
        None,
        "OpenClaw scopes that external clients may ask for; no cap by default",
    );
    add(
        "keep-header",
        "external.keep_headers",
        List("NAME"),
        None,
        "Request header that every client may send although its name could carry an identity; never one that the \
         gateway trusts",
    );
    add(
        "serve-ca",
        "external.serve_ca",
        Switch,
        Some("false"),
        "Serve loopgate's CA certificate, for devices to install, at /.well-known/loopgate/ca",
    );

    add(
        "upgrade",
        "http.upgrades",
        List("PROTOCOL"),
        Some("websocket"),
        "Protocol that clients may upgrade to; the Upgrade field of others is removed",
    );

    add(
        "max-connections",
        "limits.max_connections",
        Number,
        Some("8192"),
        "Concurrent connections, of which one in 16 is reserved for agents known by their address",
    );
    add(
        "max-connections-per-client",
        "limits.max_connections_per_client",
        Number,
        Some("4096"),
        "Concurrent connections from one address",
    );
    add(
        "connection-rate-per-client",
        "limits.connection_rate_per_client",
        Number,
        Some("0"),
        "New connections a second from one address; 0 for no limit",
    );
    add(
        "gateway-requests",
        "limits.gateway_requests",
        Number,
        Some("128"),
        "Concurrent requests of external clients at the gateway, shared fairly; each agent may have four times as many",
    );
    add(
        "gateway-websockets",
        "limits.gateway_websockets",
        Number,
        Some("4096"),
        "Concurrent WebSockets of external clients at the gateway, shared fairly; each agent may have as many",
    );
    add(
        "buffered",
        "limits.buffered",
        Number,
        Some("67108864"),
        "Budget in bytes for buffered bodies; determines HTTP/2 windows",
    );
    add("head-bytes", "limits.head_bytes", Number, Some("65536"), "Largest request head in bytes");
    add("head-fields", "limits.head_fields", Number, Some("128"), "Largest number of fields of a request head");
    add(
        "response-head",
        "limits.response_head",
        Number,
        Some("262144"),
        "Largest response head of the gateway in bytes",
    );
    add(
        "response-fields",
        "limits.response_fields",
        Number,
        Some("256"),
        "Largest number of fields of the gateway's response head",
    );
    add("h2-streams", "limits.h2_streams", Number, Some("100"), "Concurrent streams of an HTTP/2 connection");
    add("handshake-timeout", "limits.handshake_timeout", Duration, Some("10s"), "Time limit of the TLS handshake");
    add("head-timeout", "limits.head_timeout", Duration, Some("10s"), "Time limit of a whole request head");
    add("connect-timeout", "limits.connect_timeout", Duration, Some("2s"), "Time limit of a connection to the gateway");
    add(
        "request-timeout",
        "limits.request_timeout",
        Duration,
        Some("60s"),
        "Time limit of the gateway's response head, from the last byte of the request",
    );
    add(
        "path-timeout",
        "limits.path_timeouts",
        List("PATH=TIME"),
        Some("/v1/=15m"),
        "The same for a path and those below it, in place of --request-timeout; the longest matching path counts",
    );
    add("idle-timeout", "limits.idle_timeout", Duration, Some("75s"), "How long a keep-alive connection may idle");
    add(
        "stall-timeout",
        "limits.stall_timeout",
        Duration,
        Some("60s"),
        "How long a client may pause while it sends a body or reads a response",
    );
    add(
        "gateway-stall",
        "limits.gateway_stall",
        Duration,
        Some("15s"),
        "How long a client that reads nothing of a response may keep its request at the gateway",
    );
    add(
        "gateway-wait",
        "limits.gateway_wait",
        Duration,
        Some("5s"),
        "How long a request waits while the gateway restarts, or while too many are in flight",
    );
    add(
        "drain-timeout",
        "limits.drain_timeout",
        Duration,
        Some("8s"),
        "How long shutdown may take; shorter than the 10 s that docker stop allows",
    );

    add("log-format", "log.format", Choice(&["text", "json"]), Some("text"), "Format of log lines");
    add(
        "log-level",
        "log.level",
        Text("FILTER"),
        Some("info"),
        "Log level, or a filter such as loopgate::discovery=debug,warn",
    );
    add("access-log", "log.access", Switch, Some("false"), "Log one line for each request");
    add(
        "audit-log",
        "log.audit",
        Text("FILE"),
        None,
        "File that gets enrolments, lane decisions and refusals as JSON lines, at every log level; - for standard \
         output",
    );
    add(
        "traceparent",
        "log.traceparent",
        Choice(&["pass", "make"]),
        Some("pass"),
        "W3C traceparent of a request: pass it on unchanged, or make one if it is missing or malformed",
    );
    add(
        "otel-endpoint",
        "log.otel_endpoint",
        Text("URL"),
        None,
        "OpenTelemetry collector (OTLP over HTTP) that gets a span for each request; needs a build with the feature \
         otel",
    );
    keys
});

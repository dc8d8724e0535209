//! Converts the merged layer into a [`Config`], and reports all problems at once.

mod listeners;

use std::net::{IpAddr, SocketAddr};

use super::key::key_by_flag;
use super::layer::{Layer, Origin, Problem, RawRule};
use super::option::Key;
use super::parse::{self, Parsed};
use super::settings::{
    AgentSourceKind, Agents, BindDevices, CertificateFiles, Config, Docker, Engine, External, Gateway, Http,
    Kubernetes, Limits, Listen, Log, LogFormat, OwnAddresses, PathRule, Sandbox, Tls, TraceparentUse,
};
use crate::addr::is_loopback_or_unspecified;
use crate::enrolment_protocol::ProofKind;

/// The problems of a configuration. The message has one line for each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Error(pub Vec<Problem>);

/// Converts the merged layers, which include the defaults, into a `Config`.
///
/// # Errors
/// If a source, a value or a combination of values has a problem. The error lists all problems;
/// combinations are only checked if all values are valid.
pub fn to_config(layer: &Layer) -> Result<Config, Error> {
    let mut read = ValueReader { layer, problems: layer.problems.clone() };
    let config = Config {
        gateway: read_gateway(&mut read),
        listen: read_listen(&mut read),
        tls: read_tls(&mut read),
        state_dir: read.value("state-dir", parse::path),
        sandbox: read.value(
            "sandbox",
            parse::choice(&[("auto", Sandbox::Auto), ("off", Sandbox::Off), ("required", Sandbox::Required)]),
        ),
        discovery: read.value(
            "discovery",
            parse::choice(&[("docker", AgentSourceKind::Docker), ("kubernetes", AgentSourceKind::Kubernetes)]),
        ),
        kubernetes: Kubernetes {
            api: read.optional("kubernetes-api", parse::host_and_port),
            credentials: read.value("kubernetes-credentials", parse::path),
            audience: read.value("kubernetes-audience", parse::audience),
        },
        docker: Docker {
            engine: read.value("docker", parse::engine),
            any_project: read.value("any-project", parse::switch),
            container: read.optional("container", parse::container),
        },
        agents: read_agents(&mut read),
        external: read_external(&mut read),
        http: Http { upgrades: read.list("upgrade", parse::upgrade) },
        admin: read.value("admin", parse::socket_address_or_off),
        limits: read_limits(&mut read),
        log: Log {
            format: read.value("log-format", parse::choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])),
            level: read.value("log-level", parse::log_filter),
            access: read.value("access-log", parse::switch),
            audit: read.optional("audit-log", parse::path),
            traceparent: read
                .value("traceparent", parse::choice(&[("pass", TraceparentUse::Pass), ("make", TraceparentUse::Make)])),
            otel_endpoint: read.optional("otel-endpoint", parse::otel_endpoint),
        },
    };
    // An invalid value was replaced by its default, so combinations with it say nothing.
    if read.problems.is_empty() {
        check_combinations(&config, &mut read);
    }
    if read.problems.is_empty() { Ok(config) } else { Err(Error(read.problems)) }
}

/// Validates only the address of the admin listener, for commands that ask a running sidecar.
/// Returns `None` if the admin listener is off.
///
/// # Errors
/// If the value of `--admin` is invalid.
pub fn admin_address(layer: &Layer) -> Result<Option<SocketAddr>, Error> {
    let mut read = ValueReader { layer, problems: Vec::new() };
    let admin = read.value("admin", parse::socket_address_or_off);
    if read.problems.is_empty() { Ok(admin) } else { Err(Error(read.problems)) }
}

fn read_gateway(read: &mut ValueReader<'_>) -> Gateway {
    let allow_remote = read.value("allow-remote-gateway", parse::switch);
    Gateway {
        address: read.value("gateway", |text| parse_gateway_address(text, allow_remote)),
        allow_remote,
        external_source: read.value("external-source", parse::loopback_ipv4),
        agent_sources: read.value("agent-sources", parse::loopback_ipv4_network),
        token_file: read.optional("token-file", parse::path),
        state_dir: read.optional("gateway-state-dir", parse::path),
    }
}

/// Parses the gateway's address, which must be an IPv4 loopback address unless `allow_remote`.
fn parse_gateway_address(text: &str, allow_remote: bool) -> Parsed<SocketAddr> {
    let address = parse::socket_address(text)?;
    match address.ip() {
        _ if address.port() == 0 => Err("has no port".into()),
        // Each lane has a source address in 127.0.0.0/8. IPv6 has only one loopback address.
        IpAddr::V6(ip) if ip.is_loopback() => {
            Err("must be in 127.0.0.0/8, because the lanes differ by IPv4 source address".into())
        }
        ip if ip.is_unspecified() => Err("is not the address of a host".into()),
        ip if ip.is_loopback() || allow_remote => Ok(address),
        _ => Err("is not a loopback address (use --allow-remote-gateway to allow it)".into()),
    }
}

/// Reads the options of `listen`. `read` collects the problems of invalid ones.
fn read_listen(read: &mut ValueReader<'_>) -> Listen {
    Listen {
        on: read.list("listen", parse::listen_on),
        plain: read.list("listen-plain", parse::listen_on),
        forward: read.list("forward", parse::port_forward),
        proxy_protocol: read.value("proxy-protocol", parse::switch),
        own_addresses: read.value(
            "own-addresses",
            parse::choice(&[("external", OwnAddresses::External), ("agent", OwnAddresses::Agent)]),
        ),
    }
}

/// Reads the options of `tls`. `read` collects the problems of invalid ones, and of a certificate
/// or a key without the other.
fn read_tls(read: &mut ValueReader<'_>) -> Tls {
    let chain = read.optional("tls-cert", parse::path);
    let key = read.optional("tls-key", parse::path);
    match (&chain, &key) {
        (Some(_), None) => read.report_needs("tls-cert", "tls-key", ""),
        (None, Some(_)) => read.report_needs("tls-key", "tls-cert", ""),
        _ => {}
    }
    Tls {
        provided: chain.zip(key).map(|(chain, key)| CertificateFiles { chain, key }),
        names: read.list("tls-name", parse::subject_name),
        constrain_names: read.value("constrain-names", parse::switch),
        follow_names: read.value("follow-names", parse::switch),
        client_ca: read.optional("client-ca", parse::path),
    }
}

/// Reads the options of `agents`. `read` collects the problems of invalid ones.
fn read_agents(read: &mut ValueReader<'_>) -> Agents {
    Agents {
        cidrs: read.list("agent-cidr", parse::agent_network),
        certificate_from: read.list("certificate-from", parse::network),
        uris: read.list("agent-uri", parse::uri),
        services: read.list("agent-service", parse::agent_service),
        proofs: read.list("agent-proof", parse::choice(&[("process", ProofKind::Process), ("file", ProofKind::File)])),
        inherit_token: read.value("inherit-token", parse::switch),
        scopes: read.list("agent-scopes", parse::scope),
        bind_devices: read.value(
            "bind-devices",
            parse::choice(&[("on", BindDevices::On), ("report", BindDevices::Report), ("off", BindDevices::Off)]),
        ),
        unpair: read.value("unpair", parse::switch),
        certificate_life: read.value("agent-certificate-life", parse::certificate_life),
        trust_domain: read.value("trust-domain", parse::trust_domain),
    }
}

/// Reads the options of `external`. `read` collects the problems of invalid ones.
fn read_external(read: &mut ValueReader<'_>) -> External {
    let paths = read.layer.paths.iter().flatten().filter_map(|rule| read.path_rule(rule)).collect();
    External {
        trusted_proxies: read.list("trusted-proxy", parse::network),
        allow: read.list("allow", parse::network),
        deny: read.list("deny", parse::network),
        unknown_client: read.value("unknown-client", |text| match parse::ip(text)? {
            ip if is_loopback_or_unspecified(ip) => {
                Err("is loopback or unspecified: the gateway would treat such a client as local".into())
            }
            ip => Ok(ip),
        }),
        identity_headers: read.list("identity-header", parse::identity_header),
        keep_headers: read.list("keep-header", parse::keep_header),
        scopes: read.list("external-scopes", parse::scope),
        serve_ca: read.value("serve-ca", parse::switch),
        paths,
    }
}

/// Reads the options of `limits`. `read` collects the problems of invalid ones.
fn read_limits(read: &mut ValueReader<'_>) -> Limits {
    Limits {
        max_connections: read.value("max-connections", parse::number(1..=10_000_000)),
        max_connections_per_client: read.value("max-connections-per-client", parse::number(1..=10_000_000)),
        connection_rate_per_client: read.value("connection-rate-per-client", parse::number(0..=1_000_000)),
        gateway_requests: read.value("gateway-requests", parse::number(1..=1_000_000)),
        gateway_websockets: read.value("gateway-websockets", parse::number(1..=1_000_000)),
        // Less than 1 MiB is not enough for one connection.
        buffered: read.value("buffered", parse::number(1024 * 1024..=1024 * 1024 * 1024)),
        // hyper's buffer for a request head has at least 8 KiB.
        head_bytes: read.value("head-bytes", parse::number(8 * 1024..=16 * 1024 * 1024)),
        // A header map of the http crate holds at most 24,576 fields.
        head_fields: read.value("head-fields", parse::number(1..=16 * 1024)),
        // hyper's buffer for a response head has at least 8 KiB.
        response_head: read.value("response-head", parse::number(8 * 1024..=16 * 1024 * 1024)),
        response_fields: read.value("response-fields", parse::number(1..=16 * 1024)),
        h2_streams: read.value("h2-streams", parse::number(1..=100_000)),
        handshake_timeout: read.value("handshake-timeout", parse::timeout),
        head_timeout: read.value("head-timeout", parse::timeout),
        connect_timeout: read.value("connect-timeout", parse::timeout),
        request_timeout: read.value("request-timeout", parse::timeout),
        path_timeouts: read.list("path-timeout", parse::path_timeout),
        idle_timeout: read.value("idle-timeout", parse::timeout),
        stall_timeout: read.value("stall-timeout", parse::timeout),
        gateway_stall: read.value("gateway-stall", parse::timeout),
        gateway_wait: read.value("gateway-wait", parse::duration),
        drain_timeout: read.value("drain-timeout", parse::duration),
    }
}

/// Reports values that are valid alone but not together.
fn check_combinations(config: &Config, read: &mut ValueReader<'_>) {
    check_gateway_addresses(&config.gateway, read);
    if config.listen.on.is_empty() {
        read.add_problem("listen", "needs at least one address to listen on");
    }
    check_path_rules(config, read);
    for fault in listeners::find_faults(config) {
        read.report_at_first_set(&fault.flags, &fault.message);
    }
    if config.admin == Some(config.gateway.address) {
        read.report_at_first_set(&["admin", "gateway"], "the admin listener needs its own address and port");
    }
    check_external(config, read);
    check_agents(config, read);
}

/// Reports source addresses that two of these would share: local clients, agents, the external
/// lane.
fn check_gateway_addresses(gateway: &Gateway, read: &mut ValueReader<'_>) {
    let Gateway { address, external_source, agent_sources, .. } = *gateway;
    if address.ip() == external_source || external_source.octets() == [127, 0, 0, 1] {
        read.report_at_first_set(
            &["external-source", "gateway"],
            "the external lane needs a source address that local clients don't use",
        );
    }
    if agent_sources.contains(&external_source) {
        read.report_at_first_set(
            &["agent-sources", "external-source"],
            "an agent could get the external lane's source address",
        );
    }
    if matches!(address.ip(), IpAddr::V4(ip) if agent_sources.contains(&ip)) {
        read.report_at_first_set(
            &["agent-sources", "gateway"],
            "an agent could get the gateway's address as its source address",
        );
    }
}

/// Reports path rules for a port of the gateway that loopgate forwards no requests to.
fn check_path_rules(config: &Config, read: &mut ValueReader<'_>) {
    let address = config.gateway.address;
    let layer = read.layer;
    for rule in layer.paths.iter().flatten() {
        let is_carried =
            |port: &u16| *port == address.port() || config.listen.forward.iter().any(|forward| forward.target == *port);
        if let Some(port) = rule.port.filter(|port| !is_carried(port)) {
            let message = format!("port {port} is neither the gateway's own nor one that listen.forward leads to");
            read.report_path_rule(rule, message);
        }
    }
}

/// Reports invalid combinations of the options for external clients and trusted proxies.
fn check_external(config: &Config, read: &mut ValueReader<'_>) {
    if !config.listen.plain.is_empty() && config.external.trusted_proxies.is_empty() {
        read.report_needs("listen-plain", "trusted-proxy", ", because only trusted proxies may speak plain HTTP");
    }
    if config.listen.proxy_protocol && config.external.trusted_proxies.is_empty() {
        read.report_needs("proxy-protocol", "trusted-proxy", ", because only trusted proxies may send a PROXY header");
    }
    if config.external.serve_ca && config.tls.provided.is_some() {
        read.report_at_first_set(
            &["serve-ca", "tls-cert"],
            "clients do not need loopgate's CA where the certificate is your own (tls.cert): leave one of the two out",
        );
    }
}

/// Reports invalid combinations of the options for agents.
fn check_agents(config: &Config, read: &mut ValueReader<'_>) {
    if !config.agents.uris.is_empty() && config.tls.client_ca.is_none() {
        read.report_needs("agent-uri", "client-ca", ", which verifies those certificates");
    }
    let variable = std::env::var_os(crate::secret::GATEWAY_TOKEN_VARIABLE).is_some_and(|token| !token.is_empty());
    if config.agents.inherit_token && config.gateway.token_file.is_none() && !variable {
        read.report_needs("inherit-token", "token-file", " or the variable OPENCLAW_GATEWAY_TOKEN");
    }
    if config.agents.unpair {
        if config.gateway.token_file.is_none() && !variable {
            read.report_needs("unpair", "token-file", " or the variable OPENCLAW_GATEWAY_TOKEN");
        }
        if config.discovery == AgentSourceKind::Docker && config.docker.engine == Engine::Off {
            let why = "only Docker or Kubernetes tells when an agent's container, or pod, is removed";
            read.report_at_first_set(&["unpair", "discovery", "docker"], why);
        }
        if config.agents.bind_devices == BindDevices::Off {
            read.report_at_first_set(
                &["unpair", "bind-devices"],
                "without --bind-devices no device is known to be an agent's",
            );
        }
    }
}

/// Parses the values of a layer, and collects their problems.
struct ValueReader<'a> {
    layer: &'a Layer,
    problems: Vec<Problem>,
}

impl ValueReader<'_> {
    /// Returns the value of an option that has a default. The default also replaces an invalid
    /// value.
    fn value<T>(&mut self, flag: &str, parse: impl Fn(&str) -> Parsed<T>) -> T {
        self.optional(flag, &parse).unwrap_or_else(|| {
            let default = key_by_flag(flag).default.unwrap_or_default();
            parse(default).unwrap_or_else(|message| panic!("the default of --{flag} {message}"))
        })
    }

    /// Returns the value of an option that has no default, or `None` if it is not set or invalid.
    fn optional<T>(&mut self, flag: &str, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        self.list(flag, parse).pop()
    }

    /// Returns the values of an option, without the invalid ones.
    fn list<T>(&mut self, flag: &str, parse: impl Fn(&str) -> Parsed<T>) -> Vec<T> {
        let key = key_by_flag(flag);
        let values = self.layer.get(key).iter();
        let parsed = values.filter_map(|value| match parse(&value.text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problems.push(Problem {
                    place: value.origin.place_of(key),
                    message: format!("{:?} {message}", value.text),
                });
                None
            }
        });
        parsed.collect()
    }

    /// Returns `rule` as a [`PathRule`], or `None` if it is invalid.
    fn path_rule(&mut self, rule: &RawRule) -> Option<PathRule> {
        let (allow, prefix) = match (&rule.allow, &rule.deny) {
            (Some(prefix), None) => (true, prefix),
            (None, Some(prefix)) => (false, prefix),
            _ => return self.report_path_rule(rule, "a rule needs either allow or deny".into()),
        };
        let prefix = match parse::path_prefix(prefix) {
            Ok(prefix) => prefix,
            Err(message) => return self.report_path_rule(rule, format!("{prefix:?} {message}")),
        };
        let mut methods = Vec::new();
        for text in &rule.methods {
            match parse::method(text) {
                Ok(method) => methods.push(method),
                Err(message) => return self.report_path_rule(rule, format!("{text:?} {message}")),
            }
        }
        if rule.upgrade && !allow {
            return self
                .report_path_rule(rule, "upgrade is for allow rules: a deny rule refuses upgrades in any case".into());
        }
        Some(PathRule { allow, prefix, methods, upgrade: rule.upgrade, port: rule.port })
    }

    fn report_path_rule(&mut self, rule: &RawRule, message: String) -> Option<PathRule> {
        let place = match &rule.origin {
            Origin::File(file, line) => format!("{}:{line}: {}", file.display(), super::key::PATHS),
            _ => super::key::PATHS.into(),
        };
        self.problems.push(Problem { place, message });
        None
    }

    fn add_problem(&mut self, flag: &str, message: &str) {
        self.report_at_first_set(&[flag], message);
    }

    /// Reports that the option `flag` needs the option `needed`. The message names `needed` as the
    /// source of `flag` would: as a flag, a variable or a path. `why` continues the message.
    fn report_needs(&mut self, flag: &str, needed: &str, why: &str) {
        let needed = key_by_flag(needed);
        let needed = match self.layer.get(key_by_flag(flag)).first().map(|value| &value.origin) {
            Some(Origin::File(..)) => needed.path.to_owned(),
            Some(Origin::Variable) => needed.env_variable(),
            Some(Origin::Flag | Origin::Default) | None => format!("--{}", needed.flag),
        };
        self.add_problem(flag, &format!("needs {needed}{why}"));
    }

    /// Reports a problem of several options. Its place is the first of them that is not a default.
    fn report_at_first_set(&mut self, flags: &[&str], message: &str) {
        let origin = |key: &Key| self.layer.get(key).first().map_or(Origin::Default, |value| value.origin.clone());
        let options: Vec<_> = flags.iter().map(|flag| key_by_flag(flag)).map(|key| (key, origin(key))).collect();
        let first_set = options.iter().find(|(_, origin)| *origin != Origin::Default);
        let (key, origin) = first_set.unwrap_or(&options[0]);
        self.problems.push(Problem { place: origin.place_of(key), message: message.into() });
    }
}

#[cfg(test)]
mod tests;

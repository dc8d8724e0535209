//! Applies a new configuration to a running sidecar.

use super::settings::{Agents, Config, External, Http, Limits, Listen, Log, Tls};

/// Applies `wanted` to a configuration that runs as `running`: options that can change live change, the others stay.
///
/// Returns the configuration to run with, and the keys that differ but need a restart.
pub fn apply(running: &Config, mut wanted: Config) -> (Config, Vec<&'static str>) {
    // The tables `gateway`, `kubernetes` and `docker` need a restart as a whole. Every other table
    // is destructured without `..`, so that a new option does not compile before it is decided here
    // whether it can change live (`_`) or not.
    let Config {
        gateway,
        listen,
        tls,
        state_dir,
        sandbox,
        discovery,
        kubernetes,
        docker,
        agents,
        external,
        http,
        admin,
        limits,
        log,
    } = running;
    let Listen { on, plain, forward, proxy_protocol: _, own_addresses: _ } = listen;
    let Tls { provided, names, constrain_names, follow_names, client_ca: _ } = tls;
    let Agents {
        cidrs: _,
        certificate_from: _,
        uris: _,
        scopes: _,
        bind_devices,
        unpair,
        services,
        proofs,
        inherit_token,
        trust_domain,
        certificate_life,
    } = agents;
    let Log { format, level: _, access: _, audit, traceparent: _, otel_endpoint } = log;
    let External {
        trusted_proxies: _,
        allow: _,
        deny: _,
        unknown_client: _,
        identity_headers: _,
        keep_headers: _,
        scopes: _,
        serve_ca: _,
        paths: _,
    } = external;
    let Http { upgrades: _ } = http;
    let Limits {
        max_connections,
        max_connections_per_client: _,
        connection_rate_per_client: _,
        gateway_requests,
        gateway_websockets,
        buffered,
        head_bytes: _,
        head_fields: _,
        response_head: _,
        response_fields: _,
        h2_streams: _,
        handshake_timeout: _,
        head_timeout: _,
        connect_timeout: _,
        request_timeout: _,
        path_timeouts: _,
        idle_timeout: _,
        stall_timeout: _,
        gateway_stall: _,
        gateway_wait: _,
        drain_timeout: _,
    } = limits;
    let kept = [
        ("state_dir", keep(&mut wanted.state_dir, state_dir)),
        ("sandbox", keep(&mut wanted.sandbox, sandbox)),
        ("admin", keep(&mut wanted.admin, admin)),
        ("gateway", keep(&mut wanted.gateway, gateway)),
        ("listen.on", keep(&mut wanted.listen.on, on)),
        ("listen.plain", keep(&mut wanted.listen.plain, plain)),
        ("listen.forward", keep(&mut wanted.listen.forward, forward)),
        ("tls.cert, tls.key", keep(&mut wanted.tls.provided, provided)),
        ("tls.names", keep(&mut wanted.tls.names, names)),
        ("tls.constrain_names", keep(&mut wanted.tls.constrain_names, constrain_names)),
        ("tls.follow_names", keep(&mut wanted.tls.follow_names, follow_names)),
        ("discovery", keep(&mut wanted.discovery, discovery)),
        ("kubernetes", keep(&mut wanted.kubernetes, kubernetes)),
        ("docker", keep(&mut wanted.docker, docker)),
        ("agents.bind_devices", keep(&mut wanted.agents.bind_devices, bind_devices)),
        ("agents.unpair", keep(&mut wanted.agents.unpair, unpair)),
        ("agents.services", keep(&mut wanted.agents.services, services)),
        ("agents.proofs", keep(&mut wanted.agents.proofs, proofs)),
        ("agents.inherit_token", keep(&mut wanted.agents.inherit_token, inherit_token)),
        ("agents.trust_domain", keep(&mut wanted.agents.trust_domain, trust_domain)),
        ("agents.certificate_life", keep(&mut wanted.agents.certificate_life, certificate_life)),
        ("limits.max_connections", keep(&mut wanted.limits.max_connections, max_connections)),
        ("limits.gateway_requests", keep(&mut wanted.limits.gateway_requests, gateway_requests)),
        ("limits.gateway_websockets", keep(&mut wanted.limits.gateway_websockets, gateway_websockets)),
        ("limits.buffered", keep(&mut wanted.limits.buffered, buffered)),
        ("log.format", keep(&mut wanted.log.format, format)),
        ("log.audit", keep(&mut wanted.log.audit, audit)),
        ("log.otel_endpoint", keep(&mut wanted.log.otel_endpoint, otel_endpoint)),
    ];
    (wanted, kept.into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect())
}

/// Returns the tables of the configuration in which `running` and `applied` differ, as far as their
/// options change live.
pub fn changed_tables(running: &Config, applied: &Config) -> Vec<&'static str> {
    // `apply` keeps `state_dir`, `sandbox`, `discovery`, `admin` and the tables `gateway`, `kubernetes` and `docker` as they run.
    let Config {
        listen,
        tls,
        agents,
        external,
        http,
        limits,
        log,
        state_dir: _,
        discovery: _,
        gateway: _,
        kubernetes: _,
        docker: _,
        admin: _,
        sandbox: _,
    } = running;
    let changed = [
        ("listen", *listen != applied.listen),
        ("tls", *tls != applied.tls),
        ("agents", *agents != applied.agents),
        ("external", *external != applied.external),
        ("http", *http != applied.http),
        ("limits", *limits != applied.limits),
        ("log", *log != applied.log),
    ];
    changed.into_iter().filter_map(|(table, changed)| changed.then_some(table)).collect()
}

/// Sets `wanted` to the `running` value; returns whether they differed.
fn keep<T: Clone + PartialEq>(wanted: &mut T, running: &T) -> bool {
    let changed = wanted != running;
    if changed {
        wanted.clone_from(running);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogFormat;

    #[test]
    fn live_options_change_and_the_others_are_named() {
        let running = Config::default();
        let mut wanted = running.clone();
        wanted.external.deny = vec!["10.0.0.0/8".parse().unwrap()];
        wanted.http.upgrades = vec!["other".into()];
        wanted.limits.head_fields = 7;
        wanted.log.level = "debug".into();
        assert_eq!(apply(&running, wanted.clone()), (wanted.clone(), vec![]));
        assert_eq!(changed_tables(&running, &wanted), ["external", "http", "limits", "log"]);
        let live = wanted.clone();
        wanted.gateway.address.set_port(1);
        wanted.limits.max_connections = 1;
        wanted.log.format = LogFormat::Json;
        assert_eq!(apply(&running, wanted), (live, vec!["gateway", "limits.max_connections", "log.format"]));
    }
}

//! Decides which options of a new configuration a running sidecar takes over.

use super::option::Key;
use super::settings::{Agents, Config, External, Http, Limits, Listen, Log, Tls};

/// Merges the configuration `wanted` with the one that is in use, `running`: options that can
/// change live are taken from `wanted`, all others from `running`.
///
/// Returns the merged configuration, and the keys of the options that differ but need a restart; a
/// table of which all options need one is named as a whole.
pub fn merge_reloaded(running: &Config, mut wanted: Config) -> (Config, Vec<&'static str>) {
    let restart_options = keep_restart_options(&mut wanted, running);
    let changed = restart_options.0.iter().filter(|option| option.differs);
    (wanted, changed.flat_map(|option| option.keys).copied().collect())
}

/// When a changed option takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeTiming {
    /// At the reload, for open connections as well. Connections that are no longer authorized are
    /// closed.
    AtOnce,
    /// At the reload, for new connections. An open connection keeps the values with which it began.
    NewConnections,
    /// At the next start of loopgate.
    Restart,
}

/// The options outside of the table `limits` whose old value an open connection keeps.
const KEPT_BY_CONNECTIONS: [&str; 3] = ["listen.proxy_protocol", "log.access", "log.traceparent"];

impl ChangeTiming {
    /// Returns when a change of `key` takes effect.
    pub fn of_change_to(key: &Key) -> Self {
        let restart = keep_restart_options(&mut Config::default(), &Config::default());
        let mut names = restart.0.iter().flat_map(|option| option.keys);
        if names.any(|name| *name == key.path || *name == key.table()) {
            Self::Restart
        } else if KEPT_BY_CONNECTIONS.contains(&key.path)
            || (key.table() == "limits" && key.path != "limits.drain_timeout")
        {
            Self::NewConnections
        } else {
            Self::AtOnce
        }
    }
}

/// A value of [`Config`] that only a restart changes.
struct RestartOption {
    /// The keys of the options that make up the value, or the name of a whole table.
    keys: &'static [&'static str],
    /// Whether the wanted value differed from the running one.
    differs: bool,
}

/// All values of [`Config`] that only a restart changes.
#[derive(Default)]
struct RestartOptions(Vec<RestartOption>);

impl RestartOptions {
    /// Sets `wanted` to the `running` value, and adds `keys` to this list, with whether the values
    /// differed.
    fn keep_running<T: Clone + PartialEq>(&mut self, keys: &'static [&'static str], wanted: &mut T, running: &T) {
        let differs = wanted != running;
        if differs {
            wanted.clone_from(running);
        }
        self.0.push(RestartOption { keys, differs });
    }
}

/// Sets the options of `wanted` that need a restart to their `running` values. Returns all these
/// options, and which of them differed.
///
/// The tables `gateway`, `kubernetes` and `docker` need a restart as a whole. Every other table is
/// destructured without `..`, so that the code does not compile with a new option until it is
/// listed here: as `_` if it can change live.
fn keep_restart_options(wanted: &mut Config, running: &Config) -> RestartOptions {
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
    let mut restart_options = RestartOptions::default();
    restart_options.keep_running(&["state_dir"], &mut wanted.state_dir, state_dir);
    restart_options.keep_running(&["sandbox"], &mut wanted.sandbox, sandbox);
    restart_options.keep_running(&["admin"], &mut wanted.admin, admin);
    restart_options.keep_running(&["gateway"], &mut wanted.gateway, gateway);
    keep_restart_options_of_listen(&mut restart_options, &mut wanted.listen, listen);
    keep_restart_options_of_tls(&mut restart_options, &mut wanted.tls, tls);
    restart_options.keep_running(&["discovery"], &mut wanted.discovery, discovery);
    restart_options.keep_running(&["kubernetes"], &mut wanted.kubernetes, kubernetes);
    restart_options.keep_running(&["docker"], &mut wanted.docker, docker);
    keep_restart_options_of_agents(&mut restart_options, &mut wanted.agents, agents);
    assert_external_and_http_are_live(external, http);
    keep_restart_options_of_limits(&mut restart_options, &mut wanted.limits, limits);
    keep_restart_options_of_log(&mut restart_options, &mut wanted.log, log);
    restart_options
}

/// Keeps the addresses of the listeners and the port forwards. Like the functions for the other
/// tables, it adds the keys of what it keeps to `restart_options`.
fn keep_restart_options_of_listen(restart_options: &mut RestartOptions, wanted: &mut Listen, running: &Listen) {
    let Listen { on, plain, forward, proxy_protocol: _, own_addresses: _ } = running;
    restart_options.keep_running(&["listen.on"], &mut wanted.on, on);
    restart_options.keep_running(&["listen.plain"], &mut wanted.plain, plain);
    restart_options.keep_running(&["listen.forward"], &mut wanted.forward, forward);
}

/// Keeps the operator's certificate and key, and the options for the names in loopgate's.
fn keep_restart_options_of_tls(restart_options: &mut RestartOptions, wanted: &mut Tls, running: &Tls) {
    let Tls { provided, names, constrain_names, follow_names, client_ca: _ } = running;
    restart_options.keep_running(&["tls.cert", "tls.key"], &mut wanted.provided, provided);
    restart_options.keep_running(&["tls.names"], &mut wanted.names, names);
    restart_options.keep_running(&["tls.constrain_names"], &mut wanted.constrain_names, constrain_names);
    restart_options.keep_running(&["tls.follow_names"], &mut wanted.follow_names, follow_names);
}

/// Keeps all options of `agents` but its networks, URIs and scopes.
fn keep_restart_options_of_agents(restart_options: &mut RestartOptions, wanted: &mut Agents, running: &Agents) {
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
    } = running;
    restart_options.keep_running(&["agents.bind_devices"], &mut wanted.bind_devices, bind_devices);
    restart_options.keep_running(&["agents.unpair"], &mut wanted.unpair, unpair);
    restart_options.keep_running(&["agents.services"], &mut wanted.services, services);
    restart_options.keep_running(&["agents.proofs"], &mut wanted.proofs, proofs);
    restart_options.keep_running(&["agents.inherit_token"], &mut wanted.inherit_token, inherit_token);
    restart_options.keep_running(&["agents.trust_domain"], &mut wanted.trust_domain, trust_domain);
    restart_options.keep_running(&["agents.certificate_life"], &mut wanted.certificate_life, certificate_life);
}

/// Asserts at compile time that all options of these tables can change live: a new option does not
/// compile until it is listed here.
fn assert_external_and_http_are_live(external: &External, http: &Http) {
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
}

/// Keeps the limits whose permits or buffers are shared by all connections.
fn keep_restart_options_of_limits(restart_options: &mut RestartOptions, wanted: &mut Limits, running: &Limits) {
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
    } = running;
    restart_options.keep_running(&["limits.max_connections"], &mut wanted.max_connections, max_connections);
    restart_options.keep_running(&["limits.gateway_requests"], &mut wanted.gateway_requests, gateway_requests);
    restart_options.keep_running(&["limits.gateway_websockets"], &mut wanted.gateway_websockets, gateway_websockets);
    restart_options.keep_running(&["limits.buffered"], &mut wanted.buffered, buffered);
}

/// Keeps the format of log lines, the path of the audit log, and the collector of spans.
fn keep_restart_options_of_log(restart_options: &mut RestartOptions, wanted: &mut Log, running: &Log) {
    let Log { format, level: _, access: _, audit, traceparent: _, otel_endpoint } = running;
    restart_options.keep_running(&["log.format"], &mut wanted.format, format);
    restart_options.keep_running(&["log.audit"], &mut wanted.audit, audit);
    restart_options.keep_running(&["log.otel_endpoint"], &mut wanted.otel_endpoint, otel_endpoint);
}

/// Returns the names of the tables in which `running` differs from `applied`, the merged
/// configuration that [`merge_reloaded`] returned for it.
pub fn changed_tables(running: &Config, applied: &Config) -> Vec<&'static str> {
    // Tables bound to `_` here change only by a restart, so they can't differ. In
    // `keep_restart_options` and the functions that it calls, `_` means the opposite: the option
    // can change live.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogFormat;
    use crate::config::key::{KEYS, key_by_flag};

    #[test]
    fn live_options_change_and_the_others_are_named() {
        let running = Config::default();
        let mut wanted = running.clone();
        wanted.external.deny = vec!["10.0.0.0/8".parse().unwrap()];
        wanted.http.upgrades = vec!["other".into()];
        wanted.limits.head_fields = 7;
        wanted.log.level = "debug".into();
        assert_eq!(merge_reloaded(&running, wanted.clone()), (wanted.clone(), vec![]));
        assert_eq!(changed_tables(&running, &wanted), ["external", "http", "limits", "log"]);
        let live = wanted.clone();
        wanted.gateway.address.set_port(1);
        wanted.limits.max_connections = 1;
        wanted.log.format = LogFormat::Json;
        assert_eq!(merge_reloaded(&running, wanted), (live, vec!["gateway", "limits.max_connections", "log.format"]));
    }

    #[test]
    fn what_is_kept_is_named_by_a_key_or_a_table() {
        let RestartOptions(restart_options) = keep_restart_options(&mut Config::default(), &Config::default());
        for name in restart_options.iter().flat_map(|option| option.keys) {
            assert!(KEYS.iter().any(|key| key.path == *name || key.table() == *name), "{name}");
        }
        for path in KEPT_BY_CONNECTIONS {
            assert!(KEYS.iter().any(|key| key.path == path), "{path}");
        }
    }

    #[test]
    fn when_a_change_takes_effect() {
        for (flag, expected) in [
            ("deny", ChangeTiming::AtOnce),
            ("drain-timeout", ChangeTiming::AtOnce),
            ("log-level", ChangeTiming::AtOnce),
            ("idle-timeout", ChangeTiming::NewConnections),
            ("max-connections-per-client", ChangeTiming::NewConnections),
            ("access-log", ChangeTiming::NewConnections),
            ("max-connections", ChangeTiming::Restart),
            ("tls-key", ChangeTiming::Restart),
            ("gateway-state-dir", ChangeTiming::Restart),
            ("sandbox", ChangeTiming::Restart),
        ] {
            assert_eq!(ChangeTiming::of_change_to(key_by_flag(flag)), expected, "{flag}");
        }
    }
}

//! What of a configuration can change while the sidecar runs.

use super::{Agents, Config, Listen, Log, Tls};

/// The configuration to go by when one that is running as `running` is told `wanted`: everything that can change live is as wanted.
/// The keys of what can't, and would be different, come with it.
pub fn adopt(running: &Config, mut wanted: Config) -> (Config, Vec<&'static str>) {
    // Taken apart in full, so that nobody adds an option without deciding which kind it is.
    let Config { gateway, listen, tls, state_dir, discovery, kubernetes, docker, agents, external: _, admin, limits, log } = running;
    let Listen { on, proxy_protocol: _, own_addresses: _ } = listen;
    let Tls { own_pair, names, client_ca: _ } = tls;
    let Agents { cidrs: _, uris: _, scopes: _, inherit_token, trust_domain, certificate_life } = agents;
    let Log { format, level: _, access: _, traceparent: _, otel_endpoint } = log;
    let kept = [
        ("state_dir", hold(&mut wanted.state_dir, state_dir)),
        ("admin", hold(&mut wanted.admin, admin)),
        ("gateway", hold(&mut wanted.gateway, gateway)),
        ("listen.on", hold(&mut wanted.listen.on, on)),
        ("tls.cert, tls.key", hold(&mut wanted.tls.own_pair, own_pair)),
        ("tls.names", hold(&mut wanted.tls.names, names)),
        ("discovery", hold(&mut wanted.discovery, discovery)),
        ("kubernetes", hold(&mut wanted.kubernetes, kubernetes)),
        ("docker", hold(&mut wanted.docker, docker)),
        ("agents.inherit_token", hold(&mut wanted.agents.inherit_token, inherit_token)),
        ("agents.trust_domain", hold(&mut wanted.agents.trust_domain, trust_domain)),
        ("agents.certificate_life", hold(&mut wanted.agents.certificate_life, certificate_life)),
        ("limits.max_connections", hold(&mut wanted.limits.max_connections, &limits.max_connections)),
        ("log.format", hold(&mut wanted.log.format, format)),
        ("log.otel_endpoint", hold(&mut wanted.log.otel_endpoint, otel_endpoint)),
    ];
    (wanted, kept.into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect())
}

/// Makes `wanted` what is `running`; says whether that made a difference.
fn hold<T: Clone + PartialEq>(wanted: &mut T, running: &T) -> bool {
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
    fn what_can_change_does_and_what_can_t_is_named() {
        let running = Config::default();
        let mut wanted = running.clone();
        wanted.external.deny = vec!["10.0.0.0/8".parse().unwrap()];
        wanted.limits.head_fields = 7;
        wanted.log.level = "debug".into();
        assert_eq!(adopt(&running, wanted.clone()), (wanted.clone(), vec![]));
        let live = wanted.clone();
        wanted.gateway.address.set_port(1);
        wanted.limits.max_connections = 1;
        wanted.log.format = LogFormat::Json;
        assert_eq!(adopt(&running, wanted), (live, vec!["gateway", "limits.max_connections", "log.format"]));
    }
}

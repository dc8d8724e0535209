//! What of a configuration can change while the sidecar runs.

use super::Config;

/// The configuration to go by when one that is running as `running` is told `wanted`: everything that can change live is as wanted.
/// The keys of what can't, and would be different, come with it.
pub fn adopt(running: &Config, mut wanted: Config) -> (Config, Vec<&'static str>) {
    let mut kept = Vec::new();
    let mut keep = |key, changed| {
        if changed {
            kept.push(key);
        }
    };
    keep("state_dir", hold(&mut wanted.state_dir, &running.state_dir));
    keep("admin", hold(&mut wanted.admin, &running.admin));
    keep("gateway", hold(&mut wanted.gateway, &running.gateway));
    keep("listen.on", hold(&mut wanted.listen.on, &running.listen.on));
    keep("tls.cert, tls.key", hold(&mut wanted.tls.own_pair, &running.tls.own_pair));
    keep("tls.names", hold(&mut wanted.tls.names, &running.tls.names));
    keep("docker", hold(&mut wanted.docker, &running.docker));
    keep("agents.inherit_token", hold(&mut wanted.agents.inherit_token, &running.agents.inherit_token));
    keep("agents.trust_domain", hold(&mut wanted.agents.trust_domain, &running.agents.trust_domain));
    keep("limits.max_connections", hold(&mut wanted.limits.max_connections, &running.limits.max_connections));
    keep("log.format", hold(&mut wanted.log.format, &running.log.format));
    (wanted, kept)
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

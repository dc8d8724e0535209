//! Finds the service that runs the gateway, the services that share its network, and those that
//! dial it.

use super::command;
use super::model::{Project, Service};

/// Parts of the names of images that run a gateway by default.
const IMAGES: [&str; 3] = ["openclaw", "moltbot", "clawdbot"];
/// Parts of the names of images of reverse proxies.
const FRONTS: [&str; 12] = [
    "caddy",
    "traefik",
    "nginx",
    "haproxy",
    "cloudflared",
    "envoy",
    "swag",
    "pomerium",
    "oauth2-proxy",
    "ngrok",
    "apache",
    "tailscale",
];

/// Returns the service that runs the gateway: `wanted`, or else the only one whose command or image
/// is that of a gateway.
///
/// # Errors
/// If there is no such service, or several. The message says what to do.
pub fn gateway_service<'a>(project: &'a Project, wanted: Option<&str>) -> Result<(&'a str, &'a Service), String> {
    let services = || project.services.iter().map(|(name, service)| (name.as_str(), service));
    if let Some(wanted) = wanted {
        return services()
            .find(|(name, _)| *name == wanted)
            .ok_or_else(|| format!("there is no service {wanted:?}; there are: {}", join_names(services())));
    }
    let by_command: Vec<_> =
        services().filter(|(_, service)| command::starts_gateway(service.command_words())).collect();
    let by_image = || {
        services()
            .filter(|(_, service)| service.command_words().next().is_none() && is_gateways_image(service))
            .collect()
    };
    let candidates: Vec<_> = if by_command.is_empty() { by_image() } else { by_command };
    match candidates[..] {
        [only] => Ok(only),
        [] => Err(format!(
            "no service starts `openclaw gateway`; name it by --gateway-service, one of: {}",
            join_names(services())
        )),
        _ => Err(format!(
            "several services run a gateway: name one by --gateway-service: {}",
            join_names(candidates.into_iter())
        )),
    }
}

fn join_names<'a>(services: impl Iterator<Item = (&'a str, &'a Service)>) -> String {
    services.map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

fn is_gateways_image(service: &Service) -> bool {
    service.image.as_deref().is_some_and(|image| IMAGES.iter().any(|part| image.to_ascii_lowercase().contains(part)))
}

/// Returns whether `service` is the gateway's CLI: it has the gateway's image, and runs neither a
/// gateway nor a node host.
pub fn is_gateway_cli(service: &Service, gateway: &Service) -> bool {
    let has_same_image = (service.image.is_some() && service.image == gateway.image)
        || (service.build.is_some() && service.build == gateway.build);
    has_same_image && !runs_a_node_host(service) && !command::starts_gateway(service.command_words())
}

/// Returns whether `service` runs `openclaw node run`: a node host, which is a client of the
/// gateway in its own right.
pub fn runs_a_node_host(service: &Service) -> bool {
    let words: Vec<&str> = service.command_words().collect();
    words.windows(2).any(|pair| pair[0] == "node" && pair[1] == "run")
}

/// Returns whether the image of `service` is that of a reverse proxy.
pub fn is_reverse_proxy(service: &Service) -> bool {
    let image = service.image.as_deref().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default().split([':', '@']).next().unwrap_or_default();
    FRONTS.iter().any(|front| name.contains(front))
}

/// Returns the keys of `service` whose values contain `port` of one of the gateway's `names`.
pub fn keys_that_dial(service: &Service, names: &[String], port: u16) -> Vec<String> {
    let dials = |text: &str| {
        names.iter().any(|name| {
            let address = format!("{name}:{port}");
            text.match_indices(&address).any(|(at, _)| {
                let outside = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
                outside(text[..at].chars().next_back()) && outside(text[at + address.len()..].chars().next())
            })
        })
    };
    let mut keys = Vec::new();
    for (key, words) in [("entrypoint", &service.entrypoint), ("command", &service.command)] {
        if words.iter().flatten().any(|word| dials(word)) {
            keys.push(key.to_owned());
        }
    }
    keys.extend(
        service
            .environment
            .iter()
            .filter(|(_, value)| value.as_deref().is_some_and(dials))
            .map(|(name, _)| format!("environment.{name}")),
    );
    keys.extend(
        service
            .labels
            .iter()
            .filter(|(_, value)| value.as_str().is_some_and(dials))
            .map(|(name, _)| format!("labels.{name}")),
    );
    let health = service.other.get("healthcheck").and_then(|health| health["test"].as_array());
    if health.into_iter().flatten().any(|word| word.as_str().is_some_and(dials)) {
        keys.push("healthcheck.test".into());
    }
    keys
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn project(services: serde_json::Value) -> Project {
        serde_json::from_value(json!({ "services": services })).unwrap()
    }

    #[test]
    fn the_gateway_is_found_or_asked_for() {
        let table = [
            (
                json!({"a": {"command": ["openclaw", "gateway"]},
                    "b": {"image": "openclaw:local", "entrypoint": ["openclaw"]}}),
                None,
                Ok("a"),
            ),
            (json!({"a": {"image": "ghcr.io/openclaw/openclaw:latest"}, "b": {"image": "redis"}}), None, Ok("a")),
            (json!({"a": {"image": "redis"}, "b": {"image": "nginx"}}), None, Err("--gateway-service, one of: a, b")),
            (
                json!({"a": {"command": ["openclaw", "gateway"]}, "b": {"command": ["openclaw", "gateway"]}}),
                None,
                Err("--gateway-service: a, b"),
            ),
            (
                json!({"a": {"command": ["openclaw", "gateway"]}, "b": {"command": ["openclaw", "gateway"]}}),
                Some("b"),
                Ok("b"),
            ),
            (json!({"a": {}}), Some("c"), Err("no service \"c\"; there are: a")),
            (json!({}), None, Err("one of: ")),
        ];
        for (services, wanted, expected) in table {
            let project = project(services);
            match (gateway_service(&project, wanted), expected) {
                (Ok((name, _)), Ok(expected)) => assert_eq!(name, expected),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn dialled_addresses_are_found_as_whole_words() {
        let service: Service = serde_json::from_value(json!({
            "command": ["tunnel", "--url", "http://claw:18789"],
            "environment": {"URL": "ws://claw:18789/x", "OTHER": "http://my-claw:18789", "PORT": "claw:187891",
                "NONE": null},
            "labels": {"caddy.reverse_proxy": "claw:18789"},
            "healthcheck": {"test": ["CMD", "curl", "http://127.0.0.1:18789"]},
        }))
        .unwrap();
        assert_eq!(
            keys_that_dial(&service, &["claw".into()], 18789),
            ["command", "environment.URL", "labels.caddy.reverse_proxy"]
        );
    }
}

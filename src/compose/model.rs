//! The part of the output of `docker compose config --format json` that loopgate reads.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// A compose project, with all variables replaced.
#[derive(Debug, Default, Deserialize)]
pub struct Project {
    /// The project's name.
    pub name: Option<String>,
    /// The services, by name.
    #[serde(default)]
    pub services: BTreeMap<String, Service>,
}

/// One service.
#[derive(Debug, Default, Deserialize)]
pub struct Service {
    /// The image, which is absent if the service has only `build`.
    pub image: Option<String>,
    /// How the image is built.
    pub build: Option<Value>,
    /// The words of the command.
    pub command: Option<Vec<String>>,
    /// The words of the entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// The environment variables. Compose takes the value of a variable without one from its own
    /// environment.
    #[serde(default)]
    pub environment: BTreeMap<String, Option<String>>,
    /// Published ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Networks with their settings.
    #[serde(default)]
    pub networks: BTreeMap<String, Value>,
    /// The network mode, such as `host` or `service:NAME`.
    pub network_mode: Option<String>,
    /// Mounts.
    #[serde(default)]
    pub volumes: Vec<Mount>,
    /// User, by name or number, perhaps with a group.
    pub user: Option<String>,
    /// Restart policy.
    pub restart: Option<String>,
    /// The name of the container, if the project sets one.
    pub container_name: Option<String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, Value>,
    /// The profiles that the service belongs to.
    #[serde(default)]
    pub profiles: Vec<String>,
    /// All other keys.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A published port.
#[derive(Clone, Debug, Deserialize)]
pub struct Port {
    /// The container's port.
    pub target: u16,
    /// The host's port or range of ports. If `None`, Docker chooses a port.
    pub published: Option<String>,
    /// `tcp` or `udp`.
    pub protocol: Option<String>,
    /// The host's address.
    pub host_ip: Option<String>,
}

/// A mount.
#[derive(Clone, Debug, Deserialize)]
pub struct Mount {
    /// The type of the mount, such as `bind`, `volume` or `tmpfs`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The host's path or the volume's name.
    pub source: Option<String>,
    /// The path in the container.
    pub target: String,
}

impl Service {
    /// Returns the words of the entrypoint and then those of the command.
    pub fn command_words(&self) -> impl Iterator<Item = &str> {
        self.entrypoint.iter().chain(&self.command).flatten().map(String::as_str)
    }

    /// Returns the value of an environment variable; `None` if it is empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name)?.as_deref().filter(|value| !value.is_empty())
    }
}

impl Port {
    /// Returns this port in compose's short form, with `target` as the container's port.
    pub fn short_form(&self, target: u16) -> String {
        let mut text = String::new();
        match self.host_ip.as_deref() {
            Some(ip) if ip.contains(':') => text.push_str(&format!("[{ip}]:")),
            Some(ip) if !ip.is_empty() => text.push_str(&format!("{ip}:")),
            _ => {}
        }
        if let Some(published) = &self.published {
            text.push_str(published);
        }
        if !text.is_empty() {
            text.push(':');
        }
        text.push_str(&target.to_string());
        if let Some(protocol) = self.protocol.as_deref().filter(|protocol| *protocol != "tcp") {
            text.push_str(&format!("/{protocol}"));
        }
        text
    }

    /// Returns whether the protocol is TCP.
    pub fn is_tcp(&self) -> bool {
        self.protocol.as_deref().is_none_or(|protocol| protocol == "tcp")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_the_short_form() {
        let port = |json: &str| serde_json::from_str::<Port>(json).unwrap();
        let table = [
            (r#"{"mode":"ingress","target":18789,"published":"18789","protocol":"tcp"}"#, "18789:18443"),
            (r#"{"target":1,"published":"80","host_ip":"127.0.0.1"}"#, "127.0.0.1:80:18443"),
            (r#"{"target":1,"published":"80","host_ip":"::1","protocol":"udp"}"#, "[::1]:80:18443/udp"),
            (r#"{"target":1,"host_ip":"127.0.0.1"}"#, "127.0.0.1::18443"),
            (r#"{"target":1}"#, "18443"),
            (r#"{"target":1,"published":"8000-8005"}"#, "8000-8005:18443"),
        ];
        for (json, expected) in table {
            assert_eq!(port(json).short_form(18443), expected);
        }
    }
}

//! Types for the objects of the Docker Engine API for which bollard's types are too strict (see
//! [`super::engine`]).
//!
//! The types have only the fields that loopgate reads, and every field may be absent or null, since
//! engines differ.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Labels by name. Podman lists a label without a value as null.
pub type Labels = BTreeMap<String, Option<String>>;

/// An element of `GET /containers/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSummary {
    /// The full id.
    pub id: Option<String>,
    /// The names, each with a leading slash.
    pub names: Option<Vec<String>>,
    /// The time of creation, in seconds since the Unix epoch.
    pub created: Option<i64>,
    /// The image's id.
    #[serde(rename = "ImageID")]
    pub image: Option<String>,
    /// The state, such as `running`. Podman has more states than Docker.
    pub state: Option<String>,
    /// The labels, those of the image included.
    pub labels: Option<Labels>,
    /// The host configuration; in lists only the network mode.
    pub host_config: Option<HostConfig>,
    /// The endpoints on networks.
    pub network_settings: Option<NetworkSettings>,
    /// The mounts.
    pub mounts: Option<Vec<Mount>>,
    /// Whether the image has the same label `loopgate.scopes`. False before the labels are
    /// compared.
    #[serde(skip)]
    pub image_has_same_scopes: bool,
}

/// An element of a list that could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableElement {
    /// The container's name, else its id, else `(no name)`.
    pub name: String,
    /// The parser's error.
    pub error: String,
}

/// A mount of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// The path in the container.
    pub destination: Option<String>,
}

/// The host configuration of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// The network mode, such as `bridge` or `container:ID`.
    pub network_mode: Option<String>,
    /// The PID mode, such as `container:ID`; empty or `private` if the container shares no PID
    /// namespace.
    pub pid_mode: Option<String>,
    /// Whether the container is privileged.
    pub privileged: Option<bool>,
    /// Capabilities added to the default ones.
    pub cap_add: Option<Vec<String>>,
    /// Default capabilities that were dropped.
    pub cap_drop: Option<Vec<String>>,
}

/// A container's endpoints.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    /// The endpoints by the name of the network. Podman lists null for a network that the container
    /// has just left.
    pub networks: Option<BTreeMap<String, Option<EndpointSettings>>>,
}

/// A container's endpoint on one network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointSettings {
    /// The network's id.
    #[serde(rename = "NetworkID")]
    pub network: Option<String>,
    /// The endpoint's id; Podman has none.
    #[serde(rename = "EndpointID")]
    pub endpoint: Option<String>,
    /// The IPv4 address.
    #[serde(rename = "IPAddress")]
    pub ipv4: Option<String>,
    /// The IPv6 address.
    #[serde(rename = "GlobalIPv6Address")]
    pub ipv6: Option<String>,
    /// The bridge's IPv4 address.
    #[serde(rename = "Gateway")]
    pub gateway_v4: Option<String>,
    /// The bridge's IPv6 address.
    #[serde(rename = "IPv6Gateway")]
    pub gateway_v6: Option<String>,
    /// The MAC address.
    pub mac_address: Option<String>,
    /// The network aliases; null in Docker's lists.
    pub aliases: Option<Vec<String>>,
    /// All names that the engine's DNS resolves: aliases, container name, short id and host name.
    /// Since API 1.44.
    #[serde(rename = "DNSNames")]
    pub dns_names: Option<Vec<String>>,
}

/// The response to `GET /containers/{id}/json`. It has the container's environment too, of which no
/// secret is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerInspection {
    /// The container's state.
    pub state: Option<ContainerState>,
    /// The host configuration.
    pub host_config: Option<HostConfig>,
    /// The endpoints on networks.
    pub network_settings: Option<NetworkSettings>,
    /// The program that the container runs.
    pub path: Option<String>,
    /// The arguments of that program.
    pub args: Option<Vec<String>>,
    /// The container's configuration.
    pub config: Option<ContainerConfig>,
}

/// The configuration of an inspected container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// The variables of `BIND_VARIABLES`, as `NAME=VALUE`.
    #[serde(rename = "Env", deserialize_with = "bind_variables")]
    pub bind_variables: Vec<String>,
}

/// The environment variables with which images configure the gateway's bind address.
const BIND_VARIABLES: [&str; 3] = ["OPENCLAW_GATEWAY_BIND", "CLAWDBOT_GATEWAY_BIND", "MOLTBOT_GATEWAY_BIND"];

/// Deserializes an environment, and keeps only [`BIND_VARIABLES`].
fn bind_variables<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let mut variables = Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default();
    variables.retain(|variable| variable.split_once('=').is_some_and(|(name, _)| BIND_VARIABLES.contains(&name)));
    Ok(variables)
}

/// The state of an inspected container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    /// The time of the last start.
    pub started_at: Option<String>,
}

/// The metadata of a file in a container, as `HEAD /containers/{id}/archive` states it.
#[derive(Debug, Default)]
pub struct PathStat {
    /// The size in bytes.
    pub size: i64,
    /// The mode, in the encoding of Go's `os.FileMode`.
    pub mode: u32,
    /// The time of the last modification (RFC 3339).
    pub mtime: String,
}

/// Parses the elements of a list one by one, so that one malformed element does not make the others
/// unreadable. Returns the parsed elements, and the others with the errors.
pub fn read_each<T: for<'de> Deserialize<'de>>(elements: Vec<Value>) -> (Vec<T>, Vec<UnreadableElement>) {
    let (mut read, mut unreadable) = (Vec::with_capacity(elements.len()), Vec::new());
    for element in elements {
        match T::deserialize(&element) {
            Ok(element) => read.push(element),
            Err(error) => {
                let name =
                    element["Names"][0].as_str().map(|name| name.trim_start_matches('/')).or(element["Id"].as_str());
                unreadable
                    .push(UnreadableElement { name: name.unwrap_or("(no name)").to_owned(), error: error.to_string() });
            }
        }
    }
    (read, unreadable)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_element_that_cant_be_read_is_named_and_costs_no_other() {
        let list = json!([
            {"Id": "a", "Names": ["/one"], "State": "running"},
            {"Id": "b", "Names": ["/two"], "NetworkSettings": {"Networks": {"n": {"IPAddress": 7}}}},
            "nonsense",
            {"Id": "c", "State": "stopped", "Health": "", "Labels": {"x": null},
                "NetworkSettings": {"Networks": {"n": null}}},
            {"Id": "d", "Labels": null, "Names": null, "NetworkSettings": null, "HostConfig": null, "Mounts": null,
                "Created": null},
        ]);
        let (read, unreadable) = read_each::<ContainerSummary>(serde_json::from_value(list).unwrap());
        assert_eq!(read.iter().filter_map(|container| container.id.as_deref()).collect::<Vec<_>>(), ["a", "c", "d"]);
        assert_eq!(unreadable.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["two", "(no name)"]);
        assert!(unreadable[0].error.contains("integer"), "{unreadable:?}");
    }
}

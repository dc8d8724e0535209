//! The part of a container's description that discovery uses.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use super::images::LabelOrigin;
use super::object::{ContainerSummary, EndpointSettings};

use crate::addr::canonical;
use crate::discovery::agent_labels;

/// A container as `GET /containers/json` reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// The full id.
    pub id: String,
    /// The name, without Docker's leading slash.
    pub name: String,
    /// The time of creation, in seconds since the Unix epoch.
    pub created: i64,
    /// The value of the label `loopgate.agent`.
    pub agent: Option<String>,
    /// The value of the label `loopgate.scopes`.
    pub scopes: Option<String>,
    /// Whether the image, and not the operator, may have set the label `loopgate.scopes`.
    pub scopes_maybe_from_image: bool,
    /// The compose project, or the Swarm stack.
    pub project: Option<String>,
    /// The compose service, or the Swarm service without the prefix `STACK_`.
    pub service: Option<String>,
    /// The container whose network namespace it joined, by id or name.
    pub shares_namespace_of: Option<String>,
    /// Who set these labels: the operator, or the image.
    pub label_origin: LabelOrigin,
    /// The container's endpoints, sorted by the ids of the networks.
    pub endpoints: Vec<NetworkEndpoint>,
}

/// A container's attachment to one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkEndpoint {
    /// The network's id, or its name if the engine gives none.
    pub network: String,
    /// The container's addresses on this network.
    pub addresses: Vec<IpAddr>,
    /// The addresses of the network's bridge.
    pub gateways: Vec<IpAddr>,
    /// The MAC address of the container's interface if the engine gives endpoints no id, as Podman
    /// does.
    pub podman_mac: Option<String>,
}

/// The length of the short form of a container's id, in hexadecimal digits.
pub const SHORT_ID_LENGTH: usize = 12;
/// The maximum number of containers that are followed to find the owner of a network namespace.
const MAX_JOINS: usize = 4;

/// A loss that an event reports. Applying it removes a container or an endpoint, and never adds
/// anything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The container with this id no longer runs.
    Stopped(String),
    /// The container `container` has left `network`.
    Disconnected {
        /// The container's id.
        container: String,
        /// The network's id.
        network: String,
    },
}

/// Returns the running containers among `summaries`, the oldest first. `origins` has the origin of
/// each summary's labels, in the same order.
pub fn running_containers(summaries: Vec<ContainerSummary>, origins: Vec<LabelOrigin>) -> Vec<Container> {
    let mut summaries: Vec<_> = summaries.into_iter().zip(origins).collect();
    // A container is never older than the one that it joins, so the owner of a namespace is sorted
    // first. If both were created in the same second, the owner is the one whose short id Podman
    // lists as an alias.
    summaries.sort_by_cached_key(|(summary, _)| (summary.created, !has_id_as_alias(summary), summary.id.clone()));
    let mut containers: Vec<Container> = summaries
        .into_iter()
        .filter_map(|(summary, label_origin)| Container::from_summary(summary, label_origin))
        .collect();
    infer_shared_namespaces_of_podman(&mut containers);
    containers
}

/// Returns whether one of the container's network aliases is its short id.
fn has_id_as_alias(summary: &ContainerSummary) -> bool {
    let networks = summary.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let endpoints = networks.into_iter().flat_map(|networks| networks.values().flatten());
    let mut aliases = endpoints.flat_map(|endpoint| endpoint.aliases.iter().flatten());
    let id = summary.id.as_deref().unwrap_or_default();
    aliases.any(|alias| alias.len() >= SHORT_ID_LENGTH && id.starts_with(alias.as_str()))
}

/// Infers which containers of Podman share a network namespace. `containers` must be sorted so that
/// an owner comes before the containers that joined it.
///
/// Of several containers with the same endpoints, the first is the owner. In each of the others,
/// `shares_namespace_of` is set and `endpoints` is emptied, as if the engine were Docker.
///
/// Podman's list lacks the network mode, and shows a container that joined another with the
/// endpoints of the other, MAC addresses included. In Docker equal MAC addresses would not prove
/// this, since they derive from IP addresses. So a container with an endpoint of Docker, which has
/// no `podman_mac`, is skipped.
fn infer_shared_namespaces_of_podman(containers: &mut [Container]) {
    let mut owners: BTreeMap<Vec<NetworkEndpoint>, String> = BTreeMap::new();
    for container in containers
        .iter_mut()
        .filter(|container| container.shares_namespace_of.is_none() && !container.endpoints.is_empty())
    {
        if container.endpoints.iter().any(|endpoint| endpoint.podman_mac.is_none()) {
            continue;
        }
        match owners.entry(container.endpoints.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(container.id.clone());
            }
            Entry::Occupied(owner) => {
                container.shares_namespace_of = Some(owner.get().clone());
                container.endpoints.clear();
            }
        }
    }
}

impl Container {
    /// Converts `summary`; `None` if the container does not run, or has no id. A paused container,
    /// and one that is being stopped, count as running.
    fn from_summary(summary: ContainerSummary, label_origin: LabelOrigin) -> Option<Self> {
        // These containers have their addresses. One in the state "restarting" is listed too, but
        // has none.
        if !matches!(summary.state.as_deref(), Some("running" | "paused" | "stopping")) {
            return None;
        }
        let mut labels = summary.labels.unwrap_or_default();
        let mut label = |name: &str| labels.remove(name).flatten();
        let (stack, swarm_service) = (label(agent_labels::STACK), label(agent_labels::SWARM_SERVICE));
        let stack_prefix = stack.as_ref().map(|stack| format!("{stack}_")).unwrap_or_default();
        let swarm_service = swarm_service.map(|name| name.strip_prefix(&stack_prefix).unwrap_or(&name).to_owned());
        let networks = summary.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let mut endpoints: Vec<NetworkEndpoint> =
            networks.into_iter().filter_map(|(name, settings)| Some(NetworkEndpoint::new(name, &settings?))).collect();
        endpoints.sort_by(|a, b| a.network.cmp(&b.network));
        let mode = summary.host_config.and_then(|config| config.network_mode);
        Some(Self {
            id: summary.id.filter(|id| !id.is_empty())?,
            name: summary.names.unwrap_or_default().iter().find_map(|name| container_name(name)).unwrap_or_default(),
            created: summary.created.unwrap_or_default(),
            agent: label(agent_labels::AGENT),
            scopes: label(agent_labels::SCOPES),
            scopes_maybe_from_image: summary.image_has_same_scopes || matches!(label_origin, LabelOrigin::Unknown(_)),
            service: label(agent_labels::SERVICE).or(swarm_service),
            project: label(agent_labels::PROJECT).or(stack),
            label_origin,
            shares_namespace_of: mode.and_then(|mode| mode.strip_prefix("container:").map(str::to_owned)),
            endpoints,
        })
    }

    /// Returns whether `reference` is this container's name, its id, or at least the first
    /// [`SHORT_ID_LENGTH`] digits of its id.
    pub fn is_named(&self, reference: &str) -> bool {
        let shortened = reference.len() >= SHORT_ID_LENGTH && self.id.starts_with(reference);
        !reference.is_empty() && (shortened || reference == self.id || reference == self.name)
    }

    /// Returns the addresses of all endpoints.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied())
    }
}

/// Returns the container that owns the network namespace of `container`: itself, or the one that it
/// joined; `None` if that one does not run, or if containers joined each other in a circle.
pub fn namespace_owner_of<'a>(container: &'a Container, all: &'a [Container]) -> Option<&'a Container> {
    let mut owner = container;
    // Engines refuse chains of containers that join each other. The limit ends the loop anyway.
    for _ in 0..MAX_JOINS {
        let Some(joined) = &owner.shares_namespace_of else { return Some(owner) };
        owner = all.iter().find(|other| other.is_named(joined))?;
    }
    None
}

impl Loss {
    /// Returns the id of the container that has lost something.
    pub fn container_id(&self) -> &String {
        match self {
            Self::Stopped(container) | Self::Disconnected { container, .. } => container,
        }
    }

    /// Removes the lost container, or the lost endpoint of the container, from `containers`.
    pub fn remove_from(&self, containers: &mut Vec<Container>) {
        match self {
            Self::Stopped(id) => containers.retain(|container| container.id != *id),
            Self::Disconnected { container, network } => {
                for container in containers.iter_mut().filter(|known| known.id == *container) {
                    container.endpoints.retain(|endpoint| endpoint.network != *network);
                }
            }
        }
    }
}

impl NetworkEndpoint {
    /// Converts the `settings` of a container's connection to the network `name`.
    fn new(name: String, settings: &EndpointSettings) -> Self {
        let parse_ip = |text: &Option<String>| {
            let ip = text.as_ref()?.parse().ok().map(canonical)?;
            Some(ip).filter(|ip| !ip.is_unspecified())
        };
        Self {
            network: settings.network.clone().filter(|id| !id.is_empty()).unwrap_or(name),
            addresses: [&settings.ipv4, &settings.ipv6].into_iter().filter_map(parse_ip).collect(),
            gateways: [&settings.gateway_v4, &settings.gateway_v6].into_iter().filter_map(parse_ip).collect(),
            podman_mac: settings
                .mac_address
                .clone()
                .filter(|mac| !mac.is_empty() && settings.endpoint.as_deref().is_none_or(str::is_empty)),
        }
    }
}

/// Returns the name in `/name`; `None` for `/other/alias`, the name that a link of another
/// container gives.
fn container_name(name: &str) -> Option<String> {
    let name = name.strip_prefix('/').unwrap_or(name);
    (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<Container> {
        Container::from_summary(serde_json::from_str(json).unwrap(), LabelOrigin::Operator)
    }

    #[test]
    fn a_container_is_read_from_the_response_of_docker_20_10() {
        let container = read(
            r#"{"Id":"c1","Names":["/web/db","/db"],"State":"running","Labels":{"loopgate.agent":"address","com.docker.compose.project":"p"},
               "HostConfig":{"NetworkMode":"p_default"},"NetworkSettings":{"Networks":{"p_default":{"IPAMConfig":null,"Links":null,"Aliases":null,
               "NetworkID":"n1","EndpointID":"e","Gateway":"172.18.0.1","IPAddress":"172.18.0.3","IPPrefixLen":16,"IPv6Gateway":"",
               "GlobalIPv6Address":"fd00::3","GlobalIPv6PrefixLen":64,"MacAddress":"02:42:ac:12:00:03","DriverOpts":null}}},"Mounts":[]}"#,
        )
        .unwrap();
        assert_eq!((container.name.as_str(), container.agent.as_deref()), ("db", Some("address")));
        let endpoint = &container.endpoints[0];
        assert_eq!(endpoint.network, "n1");
        assert_eq!(endpoint.addresses, ["172.18.0.3", "fd00::3"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(endpoint.gateways, ["172.18.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn podman_containers_with_one_interface_share_the_namespace_of_the_older() {
        let list = |endpoint: &str, mac: &str| {
            let summary = |id: &str, created: i64, mac: &str| {
                format!(
                    r#"{{"Id":"{id}","Created":{created},"State":"running","NetworkSettings":{{"Networks":{{"n":{{"NetworkID":"n",
                       "EndpointID":"{endpoint}","IPAddress":"10.89.0.2","MacAddress":"{mac}","Aliases":["older-than-y"]}}}}}}}}"#
                )
            };
            let list = format!("[{},{}]", summary("a", 2, mac), summary("older-than-you", 2, "ca:52:90:bc:35:00"));
            let containers = running_containers(serde_json::from_str(&list).unwrap(), vec![LabelOrigin::Operator; 2]);
            containers
                .into_iter()
                .map(|container| (container.id, container.shares_namespace_of, container.endpoints.len()))
                .collect::<Vec<_>>()
        };
        let owner = || "older-than-you".to_owned();
        let apart = [(owner(), None, 1), ("a".to_owned(), None, 1)];
        assert_eq!(list("", "ca:52:90:bc:35:00"), [(owner(), None, 1), ("a".into(), Some(owner()), 0)]);
        assert_eq!(list("", "ca:52:90:bc:35:01"), apart);
        assert_eq!(list("an id", "ca:52:90:bc:35:00"), apart);
    }

    #[test]
    fn only_a_running_container_is_read() {
        for (state, lives) in [
            ("running", true),
            ("paused", true),
            ("stopping", true),
            ("restarting", false),
            ("exited", false),
            ("", false),
        ] {
            assert_eq!(read(&format!(r#"{{"Id":"c","State":"{state}"}}"#)).is_some(), lives, "{state}");
        }
        assert_eq!(read(r#"{"Id":"c"}"#), None);
        assert_eq!(read(r#"{"State":"running"}"#), None);
    }

    #[test]
    fn a_container_that_joined_another_is_in_that_ones_namespace() {
        let named = |id: &str, shares_namespace_of: Option<&str>| Container {
            id: id.into(),
            shares_namespace_of: shares_namespace_of.map(Into::into),
            ..Container::default()
        };
        let all = [
            named("a", None),
            named("b", Some("a")),
            named("c", Some("gone")),
            named("d", Some("e")),
            named("e", Some("d")),
        ];
        let owner = |index: usize| namespace_owner_of(&all[index], &all).map(|owner| owner.id.as_str());
        assert_eq!((0..5).map(owner).collect::<Vec<_>>(), [Some("a"), Some("a"), None, None, None]);
    }
}

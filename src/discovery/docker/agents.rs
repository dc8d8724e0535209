//! Decides which containers are agents, by a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::container::{Container, NetworkEndpoint, namespace_owner_of};
use super::images::LabelOrigin;
use crate::config::AgentService;
use crate::discovery::agent::{Agent, AgentKind};
use crate::discovery::agent_labels;
use crate::discovery::interface::Interface;
use crate::discovery::owner::{self, Owner, OwnerHints};
use crate::discovery::view::View;
use crate::discovery::why_not_agent::WhyNotAgent;

/// The inputs of a view of containers.
#[derive(Clone, Copy, Debug)]
pub struct ContainerSources<'a> {
    /// The interfaces of this namespace.
    pub interfaces: &'a [Interface],
    /// Every running container.
    pub containers: &'a [Container],
    /// What identifies this namespace's owner besides its addresses.
    pub hints: &'a OwnerHints,
    /// The owner's network aliases; empty before the owner was inspected.
    pub aliases: &'a BTreeSet<String>,
    /// Whether labels count in every compose project.
    pub any_project: bool,
    /// The services whose containers are agents without a label.
    pub services: &'a [AgentService],
}

impl View {
    /// Builds a view of the interfaces and of the running containers.
    pub fn of_containers(sources: ContainerSources<'_>) -> Self {
        let mut view = Self { interfaces: sources.interfaces.to_vec(), ..Self::default() };
        let own_addresses: Vec<IpAddr> = view.non_loopback_addresses().collect();
        let owner = owner::find_owner(sources.containers, &own_addresses, sources.hints);
        if let Some(owner) = owner {
            view.owner = Some(Owner {
                id: owner.id.clone(),
                name: owner.name.clone(),
                project: owner.project.clone(),
                inspected: false,
            });
            let names = [Some(&owner.name), owner.service.as_ref()].into_iter().flatten().chain(sources.aliases);
            view.own_names = names.filter(|name| !name.is_empty()).cloned().collect();
        }
        // A network counts only if the kernel confirms that this namespace has the address that the
        // engine states.
        let is_confirmed = |endpoint: &&NetworkEndpoint| endpoint.addresses.iter().any(|ip| own_addresses.contains(ip));
        let shared: Vec<&NetworkEndpoint> =
            owner.iter().flat_map(|owner| &owner.endpoints).filter(is_confirmed).collect();
        view.bridge_gateways = shared.iter().flat_map(|endpoint| &endpoint.gateways).copied().collect();
        let networks: BTreeSet<&str> = shared.iter().map(|endpoint| endpoint.network.as_str()).collect();
        view.add_agents(&sources, owner, &networks);
        view.last_known = view.agents.clone();
        for container in sources.containers {
            if let (Some(scopes), Some(namespace)) =
                (&container.scopes, namespace_owner_of(container, sources.containers))
            {
                let scopes = agent_labels::parse_scopes(scopes);
                namespace.addresses().for_each(|ip| view.add_scope_cap(ip, &scopes, container.scopes_maybe_from_image));
            }
        }
        view
    }

    /// Adds the agents among the containers on `networks`, and the labelled containers that are not
    /// agents with the reasons.
    fn add_agents(&mut self, sources: &ContainerSources<'_>, owner: Option<&Container>, networks: &BTreeSet<&str>) {
        let containers_by_address = containers_by_address(sources.containers, networks);
        // Candidates by the id of the container whose network namespace they share. Containers in
        // one namespace can't be distinguished by address, so at most one of them is an agent.
        let mut namespaces: BTreeMap<&str, Vec<Candidate<'_>>> = BTreeMap::new();
        for container in sources.containers {
            match Candidate::if_requested(container, sources, owner, networks) {
                Ok(None) => {}
                Ok(Some(candidate)) => namespaces.entry(&candidate.namespace.id).or_default().push(candidate),
                Err(why) => self.record_not_agent(container, why),
            }
        }
        for mut candidates in namespaces.into_values() {
            candidates.sort_by_key(Candidate::rank);
            let mut candidates = candidates.into_iter();
            let Some(preferred) = candidates.next() else { continue };
            for rejected in candidates {
                self.record_not_agent(
                    rejected.container,
                    WhyNotAgent::SharesNamespace(preferred.container.name.clone()),
                );
            }
            let agent = Arc::new(preferred.to_agent());
            for ip in addresses_on(preferred.namespace, networks) {
                if self.bridge_gateways.contains(&ip)
                    || containers_by_address.get(&ip).is_some_and(|containers| containers.len() > 1)
                {
                    self.record_not_agent(preferred.container, WhyNotAgent::AmbiguousAddress(ip));
                } else {
                    self.agents.insert(ip, Arc::clone(&agent));
                }
            }
        }
    }

    fn record_not_agent(&mut self, container: &Container, why: WhyNotAgent) {
        self.not_agents.insert(container.name.clone(), why);
    }
}

/// Returns the ids of the containers that have each address on `networks`. An address may have
/// several if subnets overlap, or after a crash of the engine.
fn containers_by_address<'a>(
    containers: &'a [Container],
    networks: &BTreeSet<&str>,
) -> BTreeMap<IpAddr, BTreeSet<&'a str>> {
    let mut containers_by_address: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
    for container in containers {
        for ip in addresses_on(container, networks) {
            containers_by_address.entry(ip).or_default().insert(&container.id);
        }
    }
    containers_by_address
}

fn addresses_on<'a>(container: &'a Container, networks: &'a BTreeSet<&str>) -> impl Iterator<Item = IpAddr> + 'a {
    let endpoints = container.endpoints.iter().filter(|endpoint| networks.contains(endpoint.network.as_str()));
    endpoints.flat_map(|endpoint| endpoint.addresses.iter().copied())
}

/// Returns the kind of agent that the operator requests for `container`, by its label or by its
/// service in `agents.services`; `None` if the operator requests no agent. A label that the image
/// has too was removed before (see [`LabelOrigin::Image`]).
///
/// | origin of its labels | label | service | result |
/// | --- | --- | --- | --- |
/// | unknown | asks for no agent | any | no agent |
/// | unknown | asks for one | any | refused |
/// | unknown | none | named | refused |
/// | unknown | none | not named | no agent |
/// | the image had the same label | removed | not named | refused |
/// | the image had the same label | removed | named | attested if label or service asks for that, else as the service |
/// | otherwise | any | any | as the label |
/// | otherwise | none | any | as the service |
fn requested_kind(container: &Container, services: &[AgentService]) -> Result<Option<AgentKind>, WhyNotAgent> {
    let service = services.iter().find(|named| Some(&named.name) == container.service.as_ref());
    let by_service = service.map(|named| if named.by_address { AgentKind::Address } else { AgentKind::Attested });
    let by_label = match &container.agent {
        Some(value) => Some(
            agent_labels::parse_kind(value)
                .map_err(|agent_labels::UnknownValue| WhyNotAgent::UnknownLabelValue(value.clone()))?,
        ),
        None => None,
    };
    match (&container.label_origin, by_label) {
        (LabelOrigin::Unknown(_), Some(None)) => Ok(None),
        (LabelOrigin::Unknown(error), by_label) if by_label.is_some() || by_service.is_some() => {
            Err(WhyNotAgent::ImageLabelsUnreadable(error.clone()))
        }
        (LabelOrigin::Image(value), None) if by_service.is_none() => Err(WhyNotAgent::ImageLabel(value.clone())),
        // The operator may have set the same label as the image. Such a label is stricter than the
        // service, so it counts.
        (LabelOrigin::Image(value), None) if agent_labels::parse_kind(value) == Ok(Some(AgentKind::Attested)) => {
            Ok(Some(AgentKind::Attested))
        }
        (_, Some(by_label)) => Ok(by_label),
        (_, None) => Ok(by_service),
    }
}

/// Returns the project of `container`, unless the image may have set it.
fn project_not_from_image(container: &Container) -> Option<&String> {
    container.project.as_ref().filter(|_| !matches!(container.label_origin, LabelOrigin::Unknown(_)))
}

/// A container that may be an agent.
struct Candidate<'a> {
    container: &'a Container,
    /// The container whose network namespace it shares: itself, or the one that it joined.
    namespace: &'a Container,
    kind: AgentKind,
}

impl<'a> Candidate<'a> {
    /// Returns `container` as a candidate; `None` if the operator does not request an agent.
    ///
    /// # Errors
    /// The operator requests an agent, but the container can't be one.
    fn if_requested(
        container: &'a Container,
        sources: &ContainerSources<'a>,
        owner: Option<&Container>,
        networks: &BTreeSet<&str>,
    ) -> Result<Option<Self>, WhyNotAgent> {
        let Some(kind) = requested_kind(container, sources.services)? else { return Ok(None) };
        let owner = owner.ok_or(WhyNotAgent::OwnerUnknown)?;
        if !sources.any_project
            && (project_not_from_image(owner).is_none()
                || project_not_from_image(container) != project_not_from_image(owner))
        {
            return Err(WhyNotAgent::OtherProject {
                project: project_not_from_image(container).cloned(),
                owner_project: project_not_from_image(owner).cloned(),
            });
        }
        let namespace =
            namespace_owner_of(container, sources.containers).ok_or(WhyNotAgent::NamespaceOwnerNotRunning)?;
        if namespace.id == owner.id {
            return Err(WhyNotAgent::OwnNamespace);
        }
        if addresses_on(namespace, networks).next().is_none() {
            return Err(WhyNotAgent::NoSharedNetwork);
        }
        Ok(Some(Self { container, namespace, kind }))
    }

    /// Orders candidates in one namespace: the stricter kind first, then the owner of the
    /// namespace, then the older container, so that a new container never displaces an old one.
    fn rank(&self) -> (bool, bool, i64, String) {
        let container = self.container;
        (self.kind != AgentKind::Attested, container.id != self.namespace.id, container.created, container.id.clone())
    }

    fn to_agent(&self) -> Agent {
        let container = self.container;
        Agent {
            id: container.id.clone(),
            name: container.name.clone(),
            project: container.project.clone(),
            service: container.service.clone(),
            kind: self.kind,
            scopes: container.scopes.as_deref().map(agent_labels::parse_scopes),
        }
    }
}

#[cfg(test)]
mod tests;

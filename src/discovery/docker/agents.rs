//! Decides which containers are agents, by a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::container::{Container, Endpoint, namespace_of};
use super::images::Origin;
use crate::config::AgentService;
use crate::discovery::agent::{Agent, AgentKind};
use crate::discovery::agent_labels;
use crate::discovery::interface::Interface;
use crate::discovery::owner::{self, Hints, Owner};
use crate::discovery::view::View;
use crate::discovery::why_not::WhyNot;

/// The inputs of a view of containers.
#[derive(Clone, Copy, Debug)]
pub struct ContainerSources<'a> {
    /// The interfaces of this namespace.
    pub interfaces: &'a [Interface],
    /// Every running container.
    pub containers: &'a [Container],
    /// What identifies this namespace's owner beyond addresses.
    pub hints: &'a Hints,
    /// The owner's network aliases, as far as they are known.
    pub aliases: &'a BTreeSet<String>,
    /// Whether labels count in every compose project.
    pub any_project: bool,
    /// The services whose containers are agents without a label.
    pub services: &'a [AgentService],
}

impl View {
    /// Makes a view of the interfaces and of the running containers.
    pub fn of_containers(sources: ContainerSources<'_>) -> Self {
        let mut view = Self { interfaces: sources.interfaces.to_vec(), ..Self::default() };
        let own: Vec<IpAddr> = view.own_addresses().collect();
        let owner = owner::find(sources.containers, &own, sources.hints);
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
        // The kernel decides: a network counts only where this namespace has the address that the engine says it has.
        let is_ours = |endpoint: &&Endpoint| endpoint.addresses.iter().any(|ip| own.contains(ip));
        let shared: Vec<&Endpoint> = owner.iter().flat_map(|owner| &owner.endpoints).filter(is_ours).collect();
        view.bridge_gateways = shared.iter().flat_map(|endpoint| &endpoint.gateways).copied().collect();
        let networks: BTreeSet<&str> = shared.iter().map(|endpoint| endpoint.network.as_str()).collect();
        view.add_agents(&sources, owner, &networks);
        view.last_known = view.agents.clone();
        for container in sources.containers {
            if let (Some(scopes), Some(namespace)) = (&container.scopes, namespace_of(container, sources.containers)) {
                let scopes = agent_labels::scopes(scopes);
                namespace.addresses().for_each(|ip| view.add_cap(ip, &scopes, container.scopes_in_doubt));
            }
        }
        view
    }

    /// Adds the agents among the containers on `networks`, and which labelled containers are not agents, and why.
    fn add_agents(&mut self, sources: &ContainerSources<'_>, owner: Option<&Container>, networks: &BTreeSet<&str>) {
        let claims = claims(sources.containers, networks);
        // By namespace: in each there is at most one agent, since its containers can't be distinguished by address.
        let mut namespaces: BTreeMap<&str, Vec<Candidate<'_>>> = BTreeMap::new();
        for container in sources.containers {
            match Candidate::of(container, sources, owner, networks) {
                Ok(None) => {}
                Ok(Some(candidate)) => namespaces.entry(&candidate.namespace.id).or_default().push(candidate),
                Err(why) => self.refuse(container, why),
            }
        }
        for mut candidates in namespaces.into_values() {
            candidates.sort_by_key(Candidate::rank);
            let mut candidates = candidates.into_iter();
            let Some(first) = candidates.next() else { continue };
            for other in candidates {
                self.refuse(other.container, WhyNot::Shares(first.container.name.clone()));
            }
            let agent = Arc::new(first.agent());
            for ip in addresses_on(first.namespace, networks) {
                if self.bridge_gateways.contains(&ip) || claims.get(&ip).is_some_and(|claimants| claimants.len() > 1) {
                    self.refuse(first.container, WhyNot::AddressInDoubt(ip));
                } else {
                    self.agents.insert(ip, Arc::clone(&agent));
                }
            }
        }
    }

    fn refuse(&mut self, container: &Container, why: WhyNot) {
        self.not_agents.insert(container.name.clone(), why);
    }
}

/// Returns the containers that have each address on `networks`; more than one is possible where
/// subnets overlap, or after an engine's crash.
fn claims<'a>(containers: &'a [Container], networks: &BTreeSet<&str>) -> BTreeMap<IpAddr, BTreeSet<&'a str>> {
    let mut claims: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
    for container in containers {
        for ip in addresses_on(container, networks) {
            claims.entry(ip).or_default().insert(&container.id);
        }
    }
    claims
}

fn addresses_on<'a>(container: &'a Container, networks: &'a BTreeSet<&str>) -> impl Iterator<Item = IpAddr> + 'a {
    let on = container.endpoints.iter().filter(|endpoint| networks.contains(endpoint.network.as_str()));
    on.flat_map(|endpoint| endpoint.addresses.iter().copied())
}

/// Returns the kind of agent that the operator makes of `container`, by its label or else by its service;
/// `None` if it is to be no agent.
///
/// | origin of its labels | label | service | result |
/// | --- | --- | --- | --- |
/// | unknown | asks for no agent | any | no agent |
/// | unknown | asks for one | any | refused |
/// | unknown | none | named | refused |
/// | unknown | none | not named | no agent |
/// | the image had the same label | none left | not named | refused |
/// | the image had the same label | none left | named | attested, if either asks for that; else as the service |
/// | otherwise | any | any | as the label |
/// | otherwise | none | any | as the service |
fn asked_kind(container: &Container, services: &[AgentService]) -> Result<Option<AgentKind>, WhyNot> {
    let service = services.iter().find(|named| Some(&named.name) == container.service.as_ref());
    let by_service = service.map(|named| if named.by_address { AgentKind::Address } else { AgentKind::Attested });
    let by_label = match &container.agent {
        Some(value) => {
            Some(agent_labels::kind(value).map_err(|agent_labels::Unreadable| WhyNot::Unreadable(value.clone()))?)
        }
        None => None,
    };
    match (&container.origin, by_label) {
        (Origin::Unknown(_), Some(None)) => Ok(None),
        (Origin::Unknown(error), by_label) if by_label.is_some() || by_service.is_some() => {
            Err(WhyNot::ImageUnknown(error.clone()))
        }
        (Origin::OfImage(value), None) if by_service.is_none() => Err(WhyNot::ImageLabel(value.clone())),
        // The operator may have set the same label, and asked with it for more than with the service.
        (Origin::OfImage(value), None) if agent_labels::kind(value) == Ok(Some(AgentKind::Attested)) => {
            Ok(Some(AgentKind::Attested))
        }
        (_, Some(by_label)) => Ok(by_label),
        (_, None) => Ok(by_service),
    }
}

/// Returns the project of `container`, if that is known to be the operator's word.
fn project_of(container: &Container) -> Option<&String> {
    container.project.as_ref().filter(|_| !matches!(container.origin, Origin::Unknown(_)))
}

/// A container that may be an agent.
struct Candidate<'a> {
    container: &'a Container,
    /// The container whose addresses it has.
    namespace: &'a Container,
    kind: AgentKind,
}

impl<'a> Candidate<'a> {
    /// Reads what the label of `container` asks for; `None` if it asks for nothing.
    fn of(
        container: &'a Container,
        sources: &ContainerSources<'a>,
        owner: Option<&Container>,
        networks: &BTreeSet<&str>,
    ) -> Result<Option<Self>, WhyNot> {
        let Some(kind) = asked_kind(container, sources.services)? else { return Ok(None) };
        let owner = owner.ok_or(WhyNot::OwnerUnknown)?;
        if !sources.any_project && (project_of(owner).is_none() || project_of(container) != project_of(owner)) {
            return Err(WhyNot::OtherProject {
                theirs: project_of(container).cloned(),
                ours: project_of(owner).cloned(),
            });
        }
        let namespace = namespace_of(container, sources.containers).ok_or(WhyNot::NoSharedNetwork)?;
        if namespace.id == owner.id {
            return Err(WhyNot::OwnNamespace);
        }
        if addresses_on(namespace, networks).next().is_none() {
            return Err(WhyNot::NoSharedNetwork);
        }
        Ok(Some(Self { container, namespace, kind }))
    }

    /// Orders candidates in one namespace: the stricter kind first, then the owner of the
    /// namespace, then the older container, so that a new container never displaces an old one.
    fn rank(&self) -> (bool, bool, i64, String) {
        let container = self.container;
        (self.kind != AgentKind::Attested, container.id != self.namespace.id, container.created, container.id.clone())
    }

    fn agent(&self) -> Agent {
        let container = self.container;
        Agent {
            id: container.id.clone(),
            name: container.name.clone(),
            project: container.project.clone(),
            service: container.service.clone(),
            kind: self.kind,
            scopes: container.scopes.as_deref().map(agent_labels::scopes),
        }
    }
}

#[cfg(test)]
mod tests;

//! One view out of what every source says: pure, so that who is an agent can be read, and tested, in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

use super::container::{Container, Endpoint, namespace_of};
use super::own::{self, Hints};
use super::pod::Pod;
use super::{Agent, Interface, Proof, labels};
use crate::config::Discovery;

/// How long an agent by address is still let in after Docker was lost. Meanwhile its address might be given to another container, so it
/// is just enough for a filter or an engine to be restarted.
pub const ADDRESS_GRACE: Duration = Duration::from_secs(5);
/// How long an attested agent is. Its certificate is proof enough of who it is; only that it still should be one goes unconfirmed.
pub const ATTESTED_GRACE: Duration = Duration::from_secs(30);

/// What is known at one moment; published whole and never changed afterwards.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The network interfaces of this namespace that are up, loopback included.
    pub interfaces: Vec<Interface>,
    /// Living labelled containers by each address of theirs on a network that this namespace is on: whom to let in now.
    pub agents: BTreeMap<IpAddr, Arc<Agent>>,
    /// Who was in [`agents`](Self::agents) when Docker was last heard. The same, except that it does not shrink while Docker is out of
    /// reach: see [`View::for_established`].
    pub last_known: BTreeMap<IpAddr, Arc<Agent>>,
    /// Labelled containers that are no agents nevertheless, by name, and why not.
    pub not_agents: BTreeMap<String, WhyNot>,
    /// Addresses of the bridges themselves, by Docker's word and by this namespace's routes: published ports and the host arrive from them, so
    /// they stand for nobody in particular.
    pub bridge_gateways: BTreeSet<IpAddr>,
    /// Names by which others on shared networks reach this namespace: container name, network aliases, compose service.
    pub own_names: BTreeSet<String>,
    /// The container that owns this namespace, once it was found; kept while it does not run.
    pub owner: Option<Owner>,
    /// Who tells of agents.
    pub source: Discovery,
    /// How that one is: Docker, or the API server where `source` says so.
    pub docker: DockerState,
    /// How this network namespace is.
    pub namespace: Namespace,
}

/// The container that owns this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The full id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its compose project, if any.
    pub project: Option<String>,
    /// Whether the engine was asked for its network aliases, and has answered or refused.
    pub inspected: bool,
}

/// How the Docker Engine can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DockerState {
    /// Discovery by Docker is off.
    #[default]
    Off,
    /// It has not answered yet.
    Connecting {
        /// Why the last attempt failed; `None` before the end of the first one.
        error: Option<String>,
    },
    /// It is followed.
    Live {
        /// Since when.
        since: Instant,
    },
    /// It was followed, and is out of reach now.
    Blind {
        /// Since when.
        since: Instant,
        /// Why the last attempt failed.
        error: String,
    },
}

impl DockerState {
    /// In one word, as `status` and metrics name it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connecting { .. } => "connecting",
            Self::Live { .. } => "live",
            Self::Blind { .. } => "blind",
        }
    }

    /// Why Docker can't be reached, if that is so.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Off | Self::Live { .. } => None,
            Self::Connecting { error } => error.as_deref(),
            Self::Blind { error, .. } => Some(error),
        }
    }
}

/// Whether this network namespace is still its owner's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Namespace {
    /// As far as can be told.
    #[default]
    Attached,
    /// Its interfaces are gone, as when its owner stopped. To exit now would be for good: engines refuse to start a container whose
    /// network namespace has no running owner.
    Orphaned,
    /// Its owner runs again, in another namespace: exit with [`EXIT_ORPHANED`](super::EXIT_ORPHANED) and be started anew in that one.
    Left,
}

/// Why a labelled container is no agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// The label's value means nothing.
    Unreadable(String),
    /// The same of a pod.
    UnreadablePod(String),
    /// It is a pod on its node's network, so that its address is the node's and whoever else is there has it too.
    HostNetwork,
    /// Nobody knows which container owns this namespace, so not which networks it is on.
    OwnerUnknown,
    /// It shares this very namespace.
    OwnNamespace,
    /// It is not in the owner's compose project, and `docker.any_project` is off.
    OtherProject {
        /// Its project.
        theirs: Option<String>,
        /// The owner's project.
        ours: Option<String>,
    },
    /// It has no address on a network that this namespace is on.
    NoSharedNetwork,
    /// Another container has this address too.
    AddressInDoubt(IpAddr),
    /// It shares its network namespace with this agent, so that one connection can't be told from the other's.
    Shares(String),
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let project =
            |project: &Option<String>| project.as_ref().map_or_else(|| "no project".to_owned(), |name| format!("project {name:?}"));
        match self {
            Self::Unreadable(value) => {
                write!(f, "its label {}={value:?} means nothing: use true, attested, address or false", labels::AGENT)
            }
            Self::UnreadablePod(value) => {
                write!(f, "its label {}={value:?} means nothing: use true, attested, address or false", labels::POD_AGENT)
            }
            Self::HostNetwork => f.write_str(
                "it is on its node's network (hostNetwork), so its address is everybody's on that node: give it a certificate (agents.uris)",
            ),
            Self::OwnerUnknown => f.write_str("the container that owns this network namespace is not known: name it by --container"),
            Self::OwnNamespace => f.write_str("it shares this network namespace: --own-addresses decides on it"),
            Self::OtherProject { theirs, ours } => {
                write!(f, "it is in {}, the gateway in {}: docker.any_project lifts that", project(theirs), project(ours))
            }
            Self::NoSharedNetwork => f.write_str("it has no address on a network that this namespace is on"),
            Self::AddressInDoubt(ip) => write!(f, "another has its address {ip} too"),
            Self::Shares(agent) => write!(f, "it shares its network namespace with {agent}, which is the agent there"),
        }
    }
}

/// What there is to make a view of.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The interfaces of this namespace.
    pub interfaces: &'a [Interface],
    /// Every living container.
    pub containers: &'a [Container],
    /// What tells of this namespace's owner beyond addresses.
    pub hints: &'a Hints,
    /// The owner's network aliases, as far as they are known.
    pub aliases: &'a BTreeSet<String>,
    /// Whether labels count in every compose project.
    pub any_project: bool,
}

impl View {
    /// Makes one view of what every source says.
    pub fn of(sources: Sources<'_>) -> Self {
        let mut view = Self { interfaces: sources.interfaces.to_vec(), ..Self::default() };
        let own: Vec<IpAddr> = view.own_addresses().collect();
        let owner = own::owner(sources.containers, &own, sources.hints);
        if let Some(owner) = owner {
            view.owner = Some(Owner { id: owner.id.clone(), name: owner.name.clone(), project: owner.project.clone(), inspected: false });
            let names = [Some(&owner.name), owner.service.as_ref()].into_iter().flatten().chain(sources.aliases);
            view.own_names = names.filter(|name| !name.is_empty()).cloned().collect();
        }
        // The kernel has the last word: a network counts only where this namespace really has the address that the engine says it has.
        let is_ours = |endpoint: &&Endpoint| endpoint.addresses.iter().any(|ip| own.contains(ip));
        let shared: Vec<&Endpoint> = owner.iter().flat_map(|owner| &owner.endpoints).filter(is_ours).collect();
        view.bridge_gateways = shared.iter().flat_map(|endpoint| &endpoint.gateways).copied().collect();
        let networks: BTreeSet<&str> = shared.iter().map(|endpoint| endpoint.network.as_str()).collect();
        view.admit(&sources, owner, &networks);
        view.last_known = view.agents.clone();
        view
    }

    /// Fills in the agents among containers on `networks`, and who is none and why.
    fn admit(&mut self, sources: &Sources<'_>, owner: Option<&Container>, networks: &BTreeSet<&str>) {
        let claims = claims(sources.containers, networks);
        // By namespace: in each there is one agent at most, since its containers can't be told apart by address.
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

    /// Makes one view of the interfaces and of `pods`, every living one with the label.
    pub fn of_pods(interfaces: &[Interface], pods: &[Pod]) -> Self {
        let mut view = Self { source: Discovery::Kubernetes, interfaces: interfaces.to_vec(), ..Self::default() };
        let mut claims: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        let nodes: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| &pod.hosts).copied().collect();
        for pod in pods {
            for ip in &pod.addresses {
                claims.entry(*ip).or_default().insert(&pod.uid);
            }
        }
        for pod in pods {
            let proof = match labels::proof(&pod.agent) {
                Ok(Some(proof)) => proof,
                Ok(None) => continue,
                Err(labels::Unreadable) => {
                    view.not_agents.insert(pod.name.clone(), WhyNot::UnreadablePod(pod.agent.clone()));
                    continue;
                }
            };
            if pod.host_network {
                view.not_agents.insert(pod.name.clone(), WhyNot::HostNetwork);
                continue;
            }
            let agent = Arc::new(pod.agent(proof));
            for ip in &pod.addresses {
                let doubtful = nodes.contains(ip) || claims.get(ip).is_some_and(|claimants| claimants.len() > 1);
                if view.is_own(*ip) {
                    view.not_agents.insert(pod.name.clone(), WhyNot::OwnNamespace);
                } else if doubtful {
                    view.not_agents.insert(pod.name.clone(), WhyNot::AddressInDoubt(*ip));
                } else {
                    view.agents.insert(*ip, Arc::clone(&agent));
                }
            }
        }
        view.last_known = view.agents.clone();
        view
    }

    fn refuse(&mut self, container: &Container, why: WhyNot) {
        self.not_agents.insert(container.name.clone(), why);
    }

    /// Takes from the agents those whom nobody has confirmed for too long, after Docker was lost for `blind`.
    pub fn blinded(&mut self, blind: Duration) {
        self.agents.retain(|_, agent| {
            blind
                < match agent.proof {
                    Proof::Address => ADDRESS_GRACE,
                    Proof::Attested => ATTESTED_GRACE,
                }
        });
    }

    /// This view as it counts for a connection that was admitted before.
    ///
    /// That Docker can't be reached is no statement about a container, so whoever was an agent when it was last heard keeps what it has;
    /// only to newcomers is the view as it is. When Docker does say that a container is gone, it's gone from here as well.
    #[must_use]
    pub fn for_established(self: &Arc<Self>) -> Arc<Self> {
        if self.agents == self.last_known {
            return Arc::clone(self);
        }
        Arc::new(Self { agents: self.last_known.clone(), ..(**self).clone() })
    }

    /// Says whether `ip` is one of this namespace's own addresses, loopback excluded.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.own_addresses().any(|own| own == ip)
    }

    /// Every non-loopback address of this namespace.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.interfaces.iter().flat_map(|i| &i.addresses).map(IpNet::addr).filter(|ip| !ip.is_loopback())
    }
}

/// Which containers have each address on `networks`; more than one is possible where subnets overlap, or after an engine's crash.
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

/// A container that may be an agent.
struct Candidate<'a> {
    container: &'a Container,
    /// The container whose addresses it has.
    namespace: &'a Container,
    proof: Proof,
}

impl<'a> Candidate<'a> {
    /// What `container` asks to be; `None` if it doesn't ask.
    fn of(
        container: &'a Container,
        sources: &Sources<'a>,
        owner: Option<&Container>,
        networks: &BTreeSet<&str>,
    ) -> Result<Option<Self>, WhyNot> {
        let Some(value) = &container.agent else { return Ok(None) };
        let proof = match labels::proof(value) {
            Ok(Some(proof)) => proof,
            Ok(None) => return Ok(None),
            Err(labels::Unreadable) => return Err(WhyNot::Unreadable(value.clone())),
        };
        let owner = owner.ok_or(WhyNot::OwnerUnknown)?;
        if !sources.any_project && container.project != owner.project {
            return Err(WhyNot::OtherProject { theirs: container.project.clone(), ours: owner.project.clone() });
        }
        let namespace = namespace_of(container, sources.containers).ok_or(WhyNot::NoSharedNetwork)?;
        if namespace.id == owner.id {
            return Err(WhyNot::OwnNamespace);
        }
        if addresses_on(namespace, networks).next().is_none() {
            return Err(WhyNot::NoSharedNetwork);
        }
        Ok(Some(Self { container, namespace, proof }))
    }

    /// Among candidates in one namespace the stricter proof comes first, then the owner of the namespace, then age, so that a newcomer takes
    /// nothing from its elders.
    fn rank(&self) -> (bool, bool, i64, String) {
        let container = self.container;
        (self.proof != Proof::Attested, container.id != self.namespace.id, container.created, container.id.clone())
    }

    fn agent(&self) -> Agent {
        let container = self.container;
        Agent {
            id: container.id.clone(),
            name: container.name.clone(),
            project: container.project.clone(),
            service: container.service.clone(),
            proof: self.proof,
            scopes: container.scopes.as_deref().map(labels::scopes),
        }
    }
}

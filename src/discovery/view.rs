//! The view: what discovery knows at one moment.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::agent::{Agent, AgentKind, ScopeCap};
use super::interface::Interface;
use super::orphan::NamespaceState;
use super::owner::Owner;
use super::source_state::SourceState;
use super::why_not_agent::WhyNotAgent;
use crate::config::AgentSourceKind;

/// The time for which an agent by address still counts after the source was lost. Its address may
/// be given to another container meanwhile, so the time only suffices for a restart of a filter or
/// an engine.
pub const ADDRESS_GRACE: Duration = Duration::from_secs(5);
/// The time for which an attested agent still counts after the source was lost. It is longer than
/// [`ADDRESS_GRACE`], because the certificate proves which container it is, and only the label is
/// unconfirmed.
pub const ATTESTED_GRACE: Duration = Duration::from_secs(30);

/// What discovery knows at one moment. A view is immutable once published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The network interfaces of this namespace that are up, loopback included.
    pub interfaces: Vec<Interface>,
    /// The agents, by each of their addresses on a network of this namespace.
    pub agents: BTreeMap<IpAddr, Arc<Agent>>,
    /// The agents at the source's last answer, kept while the source can't be reached. See
    /// [`View::for_established`].
    pub last_known: BTreeMap<IpAddr, Arc<Agent>>,
    /// The scope caps by address, of agents and of other containers or pods. Kept while the source
    /// can't be reached.
    pub caps: BTreeMap<IpAddr, ScopeCap>,
    /// The reasons why containers or pods that the operator named as agents are none, by name.
    pub not_agents: BTreeMap<String, WhyNotAgent>,
    /// The addresses of the bridges, as Docker and this namespace's routes state them. Connections
    /// from the host and through published ports come from these addresses, so they identify no
    /// single client.
    pub bridge_gateways: BTreeSet<IpAddr>,
    /// The names by which other containers reach this namespace: container name, network aliases,
    /// compose service.
    pub own_names: BTreeSet<String>,
    /// The container that owns this namespace; `None` before it is found. Kept while it does not
    /// run.
    pub owner: Option<Owner>,
    /// The kind of source in which agents are looked up.
    pub source: AgentSourceKind,
    /// Whether the source can be reached.
    pub source_state: SourceState,
    /// Whether the owner of this network namespace still runs in it.
    pub namespace: NamespaceState,
}

impl View {
    /// Adds the cap of a container or pod with the address `ip`. Several caps of one address are
    /// intersected.
    pub(super) fn add_scope_cap(&mut self, ip: IpAddr, scopes: &[String], maybe_from_image: bool) {
        match self.caps.entry(ip) {
            Entry::Vacant(entry) => {
                entry.insert(ScopeCap { scopes: scopes.to_vec(), maybe_from_image });
            }
            Entry::Occupied(mut cap) => {
                let cap = cap.get_mut();
                cap.scopes.retain(|scope| scopes.contains(scope));
                cap.maybe_from_image |= maybe_from_image;
            }
        }
    }

    /// Removes the agents whose grace has elapsed, if the source has been lost for `disconnected`.
    pub fn expire_agents(&mut self, disconnected: Duration) {
        self.agents.retain(|_, agent| {
            disconnected
                < match agent.kind {
                    AgentKind::Address => ADDRESS_GRACE,
                    AgentKind::Attested => ATTESTED_GRACE,
                }
        });
    }

    /// Returns this view for deciding on established connections again: agents whose grace has
    /// elapsed still count.
    ///
    /// That the source can't be reached says nothing about a container, so an established
    /// connection keeps its lane. When the source reports that the container is gone, the agent is
    /// gone from this view too.
    #[must_use]
    pub fn for_established(self: &Arc<Self>) -> Arc<Self> {
        if self.agents == self.last_known {
            return Arc::clone(self);
        }
        Arc::new(Self { agents: self.last_known.clone(), ..(**self).clone() })
    }

    /// Returns whether this namespace has the address `ip`, loopback excluded.
    pub fn has_non_loopback_address(&self, ip: IpAddr) -> bool {
        self.non_loopback_addresses().any(|own| own == ip)
    }

    /// Returns every non-loopback address of this namespace.
    pub fn non_loopback_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.interfaces.iter().flat_map(|i| &i.addresses).map(IpNet::addr).filter(|ip| !ip.is_loopback())
    }
}

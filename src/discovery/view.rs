//! What discovery knows at one moment.

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

/// How long an agent by address still counts as one after its source was lost. Meanwhile its address
/// might be given to another container, so it is just enough for a filter or an engine to be
/// restarted.
pub const ADDRESS_GRACE: Duration = Duration::from_secs(5);
/// How long an attested agent still counts as one. Its certificate proves who it is; only that it is
/// still labelled goes unconfirmed.
pub const ATTESTED_GRACE: Duration = Duration::from_secs(30);

/// What is known at one moment; published whole and never changed afterwards.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The network interfaces of this namespace that are up, loopback included.
    pub interfaces: Vec<Interface>,
    /// The agents, by each of their addresses on a network that this namespace is on.
    pub agents: BTreeMap<IpAddr, Arc<Agent>>,
    /// The agents at the source's last answer; kept while it is unreachable: see [`View::for_established`].
    pub last_known: BTreeMap<IpAddr, Arc<Agent>>,
    /// The caps by address of every container, or pod, that has one, whether or not it is an agent.
    /// They outlast the source.
    pub caps: BTreeMap<IpAddr, ScopeCap>,
    /// Labelled containers that are not agents nevertheless, by name, and why not.
    pub not_agents: BTreeMap<String, WhyNotAgent>,
    /// Addresses of the bridges themselves, as Docker and this namespace's routes state them:
    /// published ports and the host arrive from them, so they identify no single client.
    pub bridge_gateways: BTreeSet<IpAddr>,
    /// Names by which others on shared networks reach this namespace: container name, network aliases, compose service.
    pub own_names: BTreeSet<String>,
    /// The container that owns this namespace, once it was found; kept while it does not run.
    pub owner: Option<Owner>,
    /// Where agents are looked up.
    pub source: AgentSourceKind,
    /// Whether that source can be reached.
    pub source_state: SourceState,
    /// Whether this network namespace is still its owner's.
    pub namespace: NamespaceState,
}

impl View {
    /// Adds the cap of something with the address `ip`. What is capped twice may do only what both caps allow.
    pub(super) fn add_cap(&mut self, ip: IpAddr, scopes: &[String], maybe_from_image: bool) {
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

    /// Removes the agents that have gone unconfirmed for too long, after the source was lost for `disconnected`.
    pub fn expire_agents(&mut self, disconnected: Duration) {
        self.agents.retain(|_, agent| {
            disconnected
                < match agent.kind {
                    AgentKind::Address => ADDRESS_GRACE,
                    AgentKind::Attested => ATTESTED_GRACE,
                }
        });
    }

    /// Returns this view as it counts for a connection that was established before.
    ///
    /// A source that is out of reach says nothing about a container, so an established connection
    /// keeps what it has; only new connections are decided by the view as it is. When the source
    /// reports that a container is gone, it is gone from here too.
    #[must_use]
    pub fn for_established(self: &Arc<Self>) -> Arc<Self> {
        if self.agents == self.last_known {
            return Arc::clone(self);
        }
        Arc::new(Self { agents: self.last_known.clone(), ..(**self).clone() })
    }

    /// Returns whether `ip` is one of this namespace's own addresses, loopback excluded.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.own_addresses().any(|own| own == ip)
    }

    /// Returns every non-loopback address of this namespace.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.interfaces.iter().flat_map(|i| &i.addresses).map(IpNet::addr).filter(|ip| !ip.is_loopback())
    }
}

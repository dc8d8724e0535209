//! Who is who on the networks of this namespace: one owner, which publishes a whole [`View`] whenever something changed.
//!
//! It knows nothing of lanes: what a container may do is [`crate::lane`]'s judgement.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{debug, info};

use crate::config::Config;
use crate::shutdown::Shutdown;

pub mod interfaces;

use interfaces::Interfaces;

/// Begins to look around; the first view already holds the interfaces. Must be called within a Tokio runtime.
///
/// A new view is published only when it differs from the one before.
pub fn start(_config: &Config, shutdown: &Shutdown) -> watch::Receiver<Arc<View>> {
    let interfaces = Interfaces::open();
    let (publish, view) = watch::channel(Arc::new(View::of(interfaces.latest())));
    shutdown.spawn(look_around(interfaces, publish, shutdown.clone()));
    view
}

/// Owns every source, and makes one view of what they say.
async fn look_around(mut interfaces: Interfaces, publish: watch::Sender<Arc<View>>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            changed = interfaces.changed() => info!(interfaces = %Interface::names(changed), "network interfaces changed"),
        }
        let view = View::of(interfaces.latest());
        let changed = publish.send_if_modified(|published| {
            let changed = **published != view;
            if changed {
                *published = Arc::new(view);
            }
            changed
        });
        debug!(changed, "looked around");
    }
}

/// What is known at one moment; published whole and never changed afterwards.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The network interfaces of this namespace that are up, loopback included.
    pub interfaces: Vec<Interface>,
    /// Living labelled containers by each address of theirs on a network that this namespace is on.
    pub agents: BTreeMap<IpAddr, Arc<Agent>>,
    /// Addresses of the bridges themselves: published ports and the host arrive from them, so they stand for nobody in particular.
    pub bridge_gateways: BTreeSet<IpAddr>,
    /// Names by which others on shared networks reach this namespace: container name, network aliases, compose service.
    pub own_names: BTreeSet<String>,
}

impl View {
    /// Makes one view of what every source says.
    fn of(interfaces: &[Interface]) -> Self {
        Self { interfaces: interfaces.to_vec(), ..Self::default() }
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

/// A network interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's name of it, such as `eth0`.
    pub name: String,
    /// Its addresses, with their prefix lengths.
    pub addresses: Vec<IpNet>,
}

impl Interface {
    /// `interfaces` on one line, for a log: `eth0 172.18.0.5/16, lo 127.0.0.1/8`.
    fn names(interfaces: &[Self]) -> String {
        let one = |interface: &Self| {
            let words = std::iter::once(interface.name.clone()).chain(interface.addresses.iter().map(IpNet::to_string));
            words.collect::<Vec<_>>().join(" ")
        };
        interfaces.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// A living container that the operator labelled as an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The full container id.
    pub id: String,
    /// Its name, without Docker's leading slash.
    pub name: String,
    /// Its compose project, if any.
    pub project: Option<String>,
    /// Its compose service, if any.
    pub service: Option<String>,
    /// How it must prove that a connection is its own.
    pub proof: Proof,
    /// Its own scope cap (`loopgate.scopes`).
    pub scopes: Option<Vec<String>>,
}

/// How a container proves that a connection is its own; the value of the label `loopgate.agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A client certificate that loopgate issued to that very container, and its address.
    Attested,
    /// Its source address alone.
    Address,
}

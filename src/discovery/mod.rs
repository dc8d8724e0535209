//! Who is who on the networks of this namespace: one owner, which publishes a whole [`View`] whenever something changed.
//!
//! It knows nothing of lanes: what a container may do is [`crate::lane`]'s judgement.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{self, Config};
use crate::metrics;
use crate::shutdown::Shutdown;

mod changes;
mod container;
mod docker;
pub mod engine;
pub mod interfaces;
pub mod kubernetes;
pub mod labels;
mod orphan;
mod own;
mod pod;
#[cfg(test)]
mod pod_stories;
mod routes;
mod session;
#[cfg(test)]
mod stories;
mod view;
#[cfg(test)]
mod view_test;

use container::Container;
use docker::Docker;
use engine::Engine;
use interfaces::Interfaces;
use kubernetes::{Api, Kubernetes};
use orphan::{OwnerLife, Sight};
use own::Hints;
use view::Sources;

pub use view::{ADDRESS_GRACE, ATTESTED_GRACE, DockerState, Namespace, Owner, View, WhyNot};

/// The exit status after [`Namespace::Left`]: `EX_TEMPFAIL` of sysexits.h, "try again".
pub const EXIT_ORPHANED: u8 = 75;
/// How often to look at the clock while time alone may change something.
const TICK: Duration = Duration::from_millis(250);

/// Begins to look around; the first view already holds the interfaces. Must be called within a Tokio runtime.
///
/// A new view is published only when it differs from the one before.
pub fn start(config: &Config, metrics: &metrics::Discovery, shutdown: &Shutdown) -> watch::Receiver<Arc<View>> {
    let by_docker = config.discovery == config::Discovery::Docker;
    let engine = Engine::new(&config.docker.engine, shutdown).filter(|_| by_docker);
    let mut sources = AllSources {
        interfaces: Interfaces::open(),
        docker: Docker::new(engine, metrics.clone()),
        kubernetes: (!by_docker).then(|| Kubernetes::new(Api::new(&config.kubernetes), metrics.clone())),
        hints: Hints::read(config.docker.container.clone()),
        any_project: config.docker.any_project,
        remembered: None,
        examined: None,
        orphan: orphan::Watch::default(),
    };
    let (publish, view) = watch::channel(Arc::new(sources.view()));
    shutdown.spawn(look_around(sources, publish, metrics.clone(), shutdown.clone()));
    view
}

/// Waits until Docker has said who is who and what this namespace is called, or is known not to, `patience` at most: before that a view is
/// but half a view.
pub async fn settled(view: &mut watch::Receiver<Arc<View>>, patience: Duration) {
    let is_settled = |view: &Arc<View>| match &view.docker {
        DockerState::Connecting { error } => error.is_some(),
        DockerState::Live { .. } => view.owner.as_ref().is_none_or(|owner| owner.inspected),
        DockerState::Off | DockerState::Blind { .. } => true,
    };
    // Either way the caller goes on with what there is.
    let _ = timeout(patience, view.wait_for(is_settled)).await;
}

/// Publishes a view whenever a source says something new.
async fn look_around(mut sources: AllSources, publish: watch::Sender<Arc<View>>, metrics: metrics::Discovery, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            () = sources.changed() => {}
        }
        let view = sources.view();
        metrics.agents.set(i64::try_from(view.agents.len()).unwrap_or(i64::MAX));
        publish.send_if_modified(|published| {
            let changed = **published != view;
            if changed {
                changes::tell(published, &view);
                *published = Arc::new(view);
            }
            changed
        });
    }
}

/// Whoever knows something, and what has to be remembered of what they said.
struct AllSources {
    interfaces: Interfaces,
    docker: Docker,
    kubernetes: Option<Kubernetes>,
    hints: Hints,
    any_project: bool,
    /// The owner as it was when it last ran, and the names it had.
    remembered: Option<(Owner, BTreeSet<String>)>,
    /// The owner as it was when it was last inspected.
    examined: Option<Container>,
    orphan: orphan::Watch,
}

impl AllSources {
    async fn changed(&mut self) {
        let waits = self.orphan.is_orphaned() || matches!(self.state(), DockerState::Blind { .. });
        let pods: OptionFuture<_> = self.kubernetes.as_mut().map(Kubernetes::changed).into();
        tokio::select! {
            () = self.interfaces.changed() => {}
            () = self.docker.changed() => {}
            Some(()) = pods => {}
            () = sleep(TICK), if waits => {}
        }
    }

    /// How whoever tells of agents is.
    fn state(&self) -> &DockerState {
        self.kubernetes.as_ref().map_or_else(|| self.docker.state(), Kubernetes::state)
    }

    /// What all of them together say now.
    fn view(&mut self) -> View {
        let mut view = match &self.kubernetes {
            Some(kubernetes) => View::of_pods(self.interfaces.latest(), kubernetes.pods()),
            None => self.containers(),
        };
        // The kernel knows the bridge when nobody else does.
        view.bridge_gateways.extend(self.interfaces.gateways());
        let now = Instant::now();
        view.docker = self.state().clone();
        if let DockerState::Blind { since, .. } = &view.docker {
            view.blinded(now - *since);
        }
        if let Some(owner) = &mut view.owner {
            owner.inspected = self.docker.was_inspected(&owner.id);
        }
        self.remember(&mut view);
        view.namespace = self.orphan.look(&sight(&view, &self.docker, &self.hints), now);
        self.examine(&view);
        view
    }

    /// What Docker says now.
    fn containers(&self) -> View {
        let nothing = BTreeSet::new();
        let owner_id = self.remembered.as_ref().map(|(owner, _)| owner.id.clone());
        let details = owner_id.as_deref().and_then(|id| self.docker.details(id));
        View::of(Sources {
            interfaces: self.interfaces.latest(),
            containers: self.docker.containers(),
            hints: &self.hints,
            aliases: details.map_or(&nothing, |details| &details.aliases),
            any_project: self.any_project,
        })
    }

    /// Keeps the owner and its names through the times when it does not run.
    fn remember(&mut self, view: &mut View) {
        match (&view.owner, &self.remembered) {
            (Some(owner), _) => self.remembered = Some((owner.clone(), view.own_names.clone())),
            (None, Some((owner, names))) => {
                view.owner = Some(owner.clone());
                view.own_names = names.clone();
            }
            (None, None) => {}
        }
    }

    /// Has the owner inspected, once for each life of it and each change of its networks: nothing else tells its aliases.
    fn examine(&mut self, view: &View) {
        let owner = view.owner.as_ref().and_then(|owner| self.docker.container(&owner.id)).cloned();
        if owner != self.examined && matches!(view.docker, DockerState::Live { .. }) {
            match &owner {
                Some(container) if !self.docker.inspect(&container.id) => {}
                _ => self.examined = owner,
            }
        }
    }
}

fn sight<'a>(view: &View, docker: &'a Docker, hints: &Hints) -> Sight<'a> {
    let life = match (&view.owner, docker.state()) {
        (Some(owner), DockerState::Live { .. }) if docker.container(&owner.id).is_some() => {
            OwnerLife::Running { started: docker.details(&owner.id).and_then(|details| details.started.as_deref()) }
        }
        (Some(_), DockerState::Live { .. }) => OwnerLife::Ended,
        _ => OwnerLife::Unknown,
    };
    Sight {
        has_interfaces: view.interfaces.iter().any(|interface| interface.name != "lo"),
        in_container: view.owner.is_some() || hints.is_container(),
        life,
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

/// A living container, or pod, that the operator labelled as an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The full container id; a pod's uid.
    pub id: String,
    /// Its name, without Docker's leading slash.
    pub name: String,
    /// Its compose project, if any; a pod's namespace.
    pub project: Option<String>,
    /// Its compose service, if any; a pod's service account.
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

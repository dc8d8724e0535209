//! Combines the reports of all sources into one [`View`], and publishes it whenever something has
//! changed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::changes;
use super::docker::Docker;
use super::docker::agents::ContainerSources;
use super::docker::container::Container;
use super::docker::engine::Engine;
use super::interface_watcher::InterfaceWatcher;
use super::kubernetes::Kubernetes;
use super::kubernetes::api::Api;
use super::orphan::{Observation, OrphanWatch, OwnerLife};
use super::owner::{Owner, OwnerHints};
use super::source_state::SourceState;
use super::view::View;
use crate::config::{self, AgentService, Config};
use crate::metrics;
use crate::shutdown::Shutdown;

/// The interval at which the view is built again while time alone may change it.
const TICK: Duration = Duration::from_millis(250);

/// Starts discovery; the first view already holds the interfaces. Must be called within a Tokio
/// runtime.
///
/// `engine` is the result of [`docker_engine`] for `config`. A new view is published only if it
/// differs from the last.
pub fn start(
    config: &Config,
    engine: Option<Engine>,
    metrics: &metrics::DiscoveryMetrics,
    shutdown: &Shutdown,
) -> watch::Receiver<Arc<View>> {
    let agents = match config.discovery {
        config::AgentSourceKind::Kubernetes => {
            FollowedSource::Kubernetes(Kubernetes::new(Api::new(&config.kubernetes), metrics.clone()))
        }
        config::AgentSourceKind::Docker => match engine {
            Some(engine) => {
                let services = config.agents.services.iter().map(|service| service.name.clone()).collect();
                FollowedSource::Docker(Docker::new(engine, services, metrics.clone()))
            }
            None => FollowedSource::Off,
        },
    };
    let mut sources = Sources {
        interfaces: InterfaceWatcher::open(),
        agents,
        hints: OwnerHints::read(config.docker.container.clone()),
        any_project: config.docker.any_project,
        services: config.agents.services.clone(),
        last_owner: None,
        inspected_owner: None,
        orphan: OrphanWatch::default(),
    };
    let (view_sender, view) = watch::channel(Arc::new(sources.build_view()));
    shutdown.spawn(publish_views(sources, view_sender, metrics.clone(), shutdown.clone()));
    view
}

/// Returns a client of the Docker Engine; `None` if Docker is not the source of agents, or is off.
pub fn docker_engine(config: &Config, shutdown: &Shutdown) -> Option<Engine> {
    let is_docker = config.discovery == config::AgentSourceKind::Docker;
    is_docker.then(|| Engine::from_config(&config.docker.engine, shutdown)).flatten()
}

/// Waits until the view is complete, but no longer than `limit`.
///
/// A view is complete when the source has listed its containers or pods and the owner was
/// inspected, or when one of these has failed.
pub async fn wait_until_ready(view: &mut watch::Receiver<Arc<View>>, limit: Duration) {
    let is_ready = |view: &Arc<View>| match &view.source_state {
        SourceState::Connecting { error } => error.is_some(),
        SourceState::Live { .. } => view.owner.as_ref().is_none_or(|owner| owner.inspected),
        SourceState::Off | SourceState::Disconnected { .. } => true,
    };
    // After the limit the caller continues with an incomplete view.
    let _ = timeout(limit, view.wait_for(is_ready)).await;
}

/// Builds a view whenever a source reports something new, until `shutdown` begins. Logs and
/// publishes the view if it differs from the last, and sets the metric of agents.
async fn publish_views(
    mut sources: Sources,
    view_sender: watch::Sender<Arc<View>>,
    metrics: metrics::DiscoveryMetrics,
    shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            () = shutdown.wait_until_begun() => return,
            () = sources.changed() => {}
        }
        let view = sources.build_view();
        metrics.agent_addresses.set(i64::try_from(view.agents.len()).unwrap_or(i64::MAX));
        view_sender.send_if_modified(|published| {
            let changed = **published != view;
            if changed {
                changes::log(published, &view);
                *published = Arc::new(view);
            }
            changed
        });
    }
}

/// The source of agents that is followed.
enum FollowedSource {
    Off,
    Docker(Docker),
    Kubernetes(Kubernetes),
}

impl FollowedSource {
    /// Waits until the source reports a change; forever if there is no source.
    async fn changed(&mut self) {
        match self {
            Self::Off => std::future::pending().await,
            Self::Docker(docker) => docker.changed().await,
            Self::Kubernetes(kubernetes) => kubernetes.changed().await,
        }
    }

    fn state(&self) -> &SourceState {
        match self {
            Self::Off => &SourceState::Off,
            Self::Docker(docker) => docker.state(),
            Self::Kubernetes(kubernetes) => kubernetes.state(),
        }
    }

    fn docker(&self) -> Option<&Docker> {
        match self {
            Self::Docker(docker) => Some(docker),
            Self::Off | Self::Kubernetes(_) => None,
        }
    }
}

/// All sources of a view, and what is kept between two views.
struct Sources {
    interfaces: InterfaceWatcher,
    agents: FollowedSource,
    /// What identifies the owner besides its addresses.
    hints: OwnerHints,
    any_project: bool,
    services: Vec<AgentService>,
    /// The owner when it was last found, and its names.
    last_owner: Option<(Owner, BTreeSet<String>)>,
    /// The owner's container when its inspection was last started.
    inspected_owner: Option<Container>,
    orphan: OrphanWatch,
}

impl Sources {
    /// Waits until a source reports a change, or for [`TICK`] while time alone may change the view:
    /// agents expire, or the owner is awaited.
    async fn changed(&mut self) {
        let time_matters = self.orphan.is_orphaned() || matches!(self.agents.state(), SourceState::Disconnected { .. });
        tokio::select! {
            () = self.interfaces.changed() => {}
            () = self.agents.changed() => {}
            () = sleep(TICK), if time_matters => {}
        }
    }

    /// Builds a view of what all sources report now.
    ///
    /// Also records the owner and the namespace's state for the next view, and starts an inspection
    /// of the owner if one is due.
    fn build_view(&mut self) -> View {
        let mut view = match &self.agents {
            FollowedSource::Kubernetes(kubernetes) => View::of_pods(self.interfaces.latest(), kubernetes.pods()),
            FollowedSource::Docker(docker) => self.view_of_containers(docker),
            FollowedSource::Off => View { interfaces: self.interfaces.latest().to_vec(), ..View::default() },
        };
        // The kernel's routes name the bridge without an engine too.
        view.bridge_gateways.extend(self.interfaces.gateways());
        let now = Instant::now();
        view.source_state = self.agents.state().clone();
        if let SourceState::Disconnected { since, .. } = &view.source_state {
            view.expire_agents(now - *since);
        }
        if let Some(owner) = &mut view.owner {
            owner.inspected = self.agents.docker().is_some_and(|docker| docker.was_inspected(&owner.id));
        }
        self.keep_owner(&mut view);
        view.namespace = self.orphan.observe(&observation(&view, self.agents.docker(), &self.hints), now);
        self.inspect_owner(&view);
        view
    }

    /// Builds a view of what Docker reports now.
    fn view_of_containers(&self, docker: &Docker) -> View {
        let no_aliases = BTreeSet::new();
        let details = self.last_owner.as_ref().and_then(|(owner, _)| docker.details(&owner.id));
        View::of_containers(ContainerSources {
            interfaces: self.interfaces.latest(),
            containers: docker.containers(),
            hints: &self.hints,
            aliases: details.map_or(&no_aliases, |details| &details.aliases),
            any_project: self.any_project,
            services: &self.services,
        })
    }

    /// Records the owner and its names, or, if the owner is not found now, puts the last ones into
    /// `view`.
    fn keep_owner(&mut self, view: &mut View) {
        match (&view.owner, &self.last_owner) {
            (Some(owner), _) => self.last_owner = Some((owner.clone(), view.own_names.clone())),
            (None, Some((owner, names))) => {
                view.owner = Some(owner.clone());
                view.own_names = names.clone();
            }
            (None, None) => {}
        }
    }

    /// Starts an inspection of the owner if its container has changed since the last one, for
    /// example by a restart, and Docker is live. Tries again with the next view if another
    /// inspection is in progress. Only an inspection states the owner's aliases.
    fn inspect_owner(&mut self, view: &View) {
        let FollowedSource::Docker(docker) = &mut self.agents else { return };
        let owner = view.owner.as_ref().and_then(|owner| docker.container(&owner.id)).cloned();
        if owner != self.inspected_owner && view.source_state.is_live() {
            match &owner {
                Some(container) if !docker.try_start_inspection(&container.id) => {}
                _ => self.inspected_owner = owner,
            }
        }
    }
}

/// Returns what `view` and Docker show of the namespace and its owner.
fn observation<'a>(view: &View, docker: Option<&'a Docker>, hints: &OwnerHints) -> Observation<'a> {
    let life = match (&view.owner, docker.filter(|docker| docker.state().is_live())) {
        (Some(owner), Some(docker)) if docker.container(&owner.id).is_some() => OwnerLife::Running {
            started_at: docker.details(&owner.id).and_then(|details| details.started_at.as_deref()),
        },
        (Some(_), Some(_)) => OwnerLife::Ended,
        _ => OwnerLife::Unknown,
    };
    Observation {
        has_interfaces: view.interfaces.iter().any(|interface| interface.name != "lo"),
        is_container: view.owner.is_some() || hints.is_container(),
        life,
    }
}

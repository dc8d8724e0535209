//! Docker as the source of agents: follows the running containers by lists and events of the Docker
//! Engine API.

mod address;
pub mod agents;
pub mod container;
pub mod engine;
pub mod error;
pub mod images;
pub mod object;
mod request_error;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::{BoxFuture, OptionFuture};
use tokio::time::Instant;
use tracing::{debug, warn};

pub use error::Error;

use super::follower::{AgentSource, Follower, Update};
use super::source_state::SourceState;
use super::text::to_one_line;
use crate::error_chain::error_chain;
use crate::metrics;
use container::Container;
use engine::Engine;
use images::ImageLabels;
use object::{ContainerInspection, EndpointSettings, UnreadableElement};
use session::{DockerSession, SourceChange};

/// The containers that the engine reports, and whether it can be reached.
pub struct Docker {
    engine: Follower<DockerSource>,
    containers: Vec<Container>,
    /// The entries of the last list that could not be parsed.
    unreadable: Vec<UnreadableElement>,
    /// The result of the last successful inspection.
    details: Option<Details>,
    /// The id of the container that was inspected last, successfully or not.
    last_inspected: Option<String>,
    /// The id of the container whose inspection failed, and the error. It is inspected again at the
    /// next list.
    failed_inspection: Option<(String, String)>,
    /// The inspection in progress.
    inspection: Option<BoxFuture<'static, (String, Result<Details, Error>)>>,
}

/// The details of a container that only an inspection states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The container's full id.
    pub id: String,
    /// The network aliases and other names that the engine's DNS resolves, on all networks.
    pub aliases: BTreeSet<String>,
    /// The time of the container's last start, as the engine formats it.
    pub started_at: Option<String>,
}

/// An engine as a source of agents.
pub struct DockerSource {
    engine: Engine,
    /// The services whose containers are agents without a label (`agents.services`).
    services: Arc<[String]>,
    images: ImageLabels,
}

impl AgentSource for DockerSource {
    const NAME: &'static str = "Docker";
    type Session = DockerSession;
    type Change = SourceChange;
    type Error = Error;

    fn endpoint(&self) -> String {
        self.engine.name()
    }

    fn open(&self) -> DockerSession {
        self.engine.warn_of_better_socket();
        DockerSession::open(&self.engine, Arc::clone(&self.services), self.images.clone())
    }

    fn lost_since(session: &DockerSession, error: &Error) -> Instant {
        session.lost_since(error)
    }

    fn next(session: &mut DockerSession) -> impl Future<Output = Result<SourceChange, Error>> + Send {
        session.next_change()
    }

    fn is_absent(&self, error: &Error) -> bool {
        self.engine.is_guessed() && matches!(error, Error::NoSocket { .. })
    }
}

impl Docker {
    /// Begins to follow `engine`. Containers of `services` are agents without a label.
    pub fn new(engine: Engine, services: Arc<[String]>, metrics: metrics::DiscoveryMetrics) -> Self {
        Self {
            engine: Follower::new(DockerSource { engine, services, images: ImageLabels::default() }, metrics),
            containers: Vec::new(),
            unreadable: Vec::new(),
            details: None,
            last_inspected: None,
            failed_inspection: None,
            inspection: None,
        }
    }

    /// Returns whether the engine can be reached, with the time of the last change or the error.
    pub fn state(&self) -> &SourceState {
        self.engine.state()
    }

    /// Returns the running containers, as the engine reported them last.
    pub fn containers(&self) -> &[Container] {
        &self.containers
    }

    /// Returns the running container with `id`.
    pub fn container(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.id == id)
    }

    /// Returns the details of the container with `id`, if the last successful inspection was of it.
    pub fn details(&self, id: &str) -> Option<&Details> {
        self.details.as_ref().filter(|details| details.id == id)
    }

    /// Returns whether the last inspection that ended, successfully or not, was of the container
    /// with `id`.
    pub fn was_inspected(&self, id: &str) -> bool {
        self.last_inspected.as_deref() == Some(id)
    }

    /// Starts to inspect the container with `id`. [`Docker::changed`] resolves when the inspection
    /// has ended. Returns false if another inspection is in progress.
    pub fn try_start_inspection(&mut self, id: &str) -> bool {
        if self.inspection.is_some() {
            return false;
        }
        let (engine, id) = (self.engine.source().engine.clone(), id.to_owned());
        self.inspection = Some(Box::pin(async move {
            let details =
                engine.inspect_container(&id).await.map(|inspected| Details::from_inspection(id.clone(), inspected));
            (id, details)
        }));
        true
    }

    /// Waits until the containers, the details or the state have changed. Cancel safe: dropping the
    /// future loses no change.
    pub async fn changed(&mut self) {
        loop {
            let inspection: OptionFuture<_> = self.inspection.as_mut().into();
            let changed = tokio::select! {
                biased;
                update = self.engine.next_update() => match update {
                    Update::Change(change) => self.apply_change(change),
                    Update::Lost => true,
                },
                Some((id, details)) = inspection => self.record_inspection(&id, details),
            };
            if changed {
                return;
            }
        }
    }

    /// Applies `change`. Returns whether the containers or the state have changed. After a list,
    /// also starts the failed inspection again, if there is one and its container still runs.
    fn apply_change(&mut self, change: SourceChange) -> bool {
        match change {
            SourceChange::Listed(containers, unreadable) => {
                self.report_unreadable(unreadable);
                let changed = self.engine.record_list(containers.len()) || self.containers != containers;
                self.containers = containers;
                if let Some((id, _)) = self.failed_inspection.clone().filter(|(id, _)| self.container(id).is_some()) {
                    self.try_start_inspection(&id);
                }
                changed
            }
            SourceChange::Lost(loss) => {
                debug!(?loss, "an event reported a loss");
                let endpoints = |containers: &[Container]| {
                    containers.iter().map(|container| container.endpoints.len()).sum::<usize>()
                };
                let before = (self.containers.len(), endpoints(&self.containers));
                loss.remove_from(&mut self.containers);
                (self.containers.len(), endpoints(&self.containers)) != before
            }
        }
    }

    /// Logs the entries that can't be parsed and were not in the last list, and records them.
    fn report_unreadable(&mut self, unreadable: Vec<UnreadableElement>) {
        for UnreadableElement { name, error } in unreadable.iter().filter(|element| !self.unreadable.contains(element))
        {
            warn!(container = name, error, "can't read the engine's entry for this container; ignoring it");
        }
        self.unreadable = unreadable;
    }

    /// Records the result of an inspection, and logs a new failure. Returns whether the details
    /// have changed, or whether the last inspection was of another container.
    fn record_inspection(&mut self, id: &str, details: Result<Details, Error>) -> bool {
        self.inspection = None;
        let is_first = !self.was_inspected(id);
        self.last_inspected = Some(id.to_owned());
        match details {
            Ok(details) => {
                self.failed_inspection = None;
                let details = Some(details);
                let changed = self.details != details;
                self.details = details;
                changed || is_first
            }
            Err(error) => {
                let failed = (id.to_owned(), to_one_line(&error_chain(&error)));
                if self.failed_inspection.as_ref() != Some(&failed) {
                    let error = &failed.1;
                    warn!(
                        container = id,
                        error,
                        "can't inspect the container that owns this network namespace; the server certificate lacks \
                         its network aliases"
                    );
                }
                // After a refusal another inspection would fail too. Any other failure may be
                // temporary.
                let is_final = matches!(error, Error::Refused { .. } | Error::NotFound { .. });
                self.failed_inspection = Some(failed).filter(|_| !is_final);
                is_first
            }
        }
    }
}

impl Details {
    fn from_inspection(id: String, inspected: ContainerInspection) -> Self {
        let networks = inspected.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let names = |endpoint: EndpointSettings| [endpoint.aliases, endpoint.dns_names].into_iter().flatten().flatten();
        let aliases = networks.into_values().flatten().flat_map(names).collect();
        Self { id, aliases, started_at: inspected.state.and_then(|state| state.started_at) }
    }
}

//! Docker, followed for ever: a lost stream, a restarted engine and a filter that cuts are all answered by subscribing and listing anew.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::{BoxFuture, OptionFuture};
use tokio::time::{Instant, Sleep, sleep};
use tracing::{debug, info, warn};

use super::container::Container;
use super::engine::{Engine, Error};
use super::session::{News, Session};
use super::view::DockerState;
use crate::backoff::Backoff;
use crate::metrics;

/// The pauses between attempts grow from this.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// ... to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After a session of this length the next one begins at once: filters cut streams every so often, and that is no failure.
const STEADY: Duration = Duration::from_secs(5);
/// How often the same failure is logged.
const REPEAT: Duration = Duration::from_secs(60);

/// What the engine says, and how it is.
pub struct Docker {
    engine: Option<Engine>,
    phase: Phase,
    backoff: Backoff,
    state: DockerState,
    containers: Vec<Container>,
    /// Of the container that was asked about.
    details: Option<Details>,
    /// The container that was last inspected, however that ended.
    inspected: Option<String>,
    /// The container whose inspection came to nothing, and why; it is asked about again at the next list.
    unanswered: Option<(String, String)>,
    inspection: Option<BoxFuture<'static, (String, Result<Details, Error>)>>,
    logged: Option<(String, Instant)>,
    metrics: metrics::Discovery,
}

enum Phase {
    Off,
    Pausing(std::pin::Pin<Box<Sleep>>),
    Following { session: Box<Session>, since: Instant },
}

/// What only inspecting a container tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The container's full id.
    pub id: String,
    /// Its network aliases, on every network.
    pub aliases: BTreeSet<String>,
    /// When its current life began, as the engine spells it.
    pub started: Option<String>,
}

impl Docker {
    /// Begins with `engine`; without one, nothing ever changes.
    pub fn new(engine: Option<Engine>, metrics: metrics::Discovery) -> Self {
        let (phase, state) = match &engine {
            None => (Phase::Off, DockerState::Off),
            Some(engine) => {
                info!(engine = engine.name(), "looking for agents by Docker");
                (Phase::following(engine), DockerState::Connecting { error: None })
            }
        };
        Self {
            engine,
            phase,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            state,
            containers: Vec::new(),
            details: None,
            inspected: None,
            unanswered: None,
            inspection: None,
            logged: None,
            metrics,
        }
    }

    /// How the engine is.
    pub fn state(&self) -> &DockerState {
        &self.state
    }

    /// Every living container when the engine was last heard.
    pub fn containers(&self) -> &[Container] {
        &self.containers
    }

    /// The living container with `id`.
    pub fn container(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.id == id)
    }

    /// What is known of the container with `id` by inspection.
    pub fn details(&self, id: &str) -> Option<&Details> {
        self.details.as_ref().filter(|details| details.id == id)
    }

    /// Whether the container with `id` was inspected, or can't be.
    pub fn was_inspected(&self, id: &str) -> bool {
        self.inspected.as_deref() == Some(id)
    }

    /// Asks for the details of the container with `id`; [`Docker::changed`] tells of them. Says whether that can be done now.
    pub fn inspect(&mut self, id: &str) -> bool {
        let Some(engine) = self.engine.clone().filter(|_| self.inspection.is_none()) else { return false };
        let id = id.to_owned();
        self.inspection = Some(Box::pin(async move {
            let details = engine.inspect(&id).await.map(|told| Details::of(id.clone(), told));
            (id, details)
        }));
        true
    }

    /// Waits until something is known anew. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) {
        loop {
            let inspected: OptionFuture<_> = self.inspection.as_mut().into();
            let changed = tokio::select! {
                biased;
                news = self.phase.next() => match news {
                    Some(Ok(news)) => self.learn(news),
                    Some(Err(error)) => self.lose(&error),
                    None => {
                        if let Some(engine) = &self.engine {
                            self.phase = Phase::following(engine);
                        }
                        false
                    }
                },
                Some((id, details)) = inspected => self.inspected(&id, details),
            };
            if changed {
                return;
            }
        }
    }

    fn learn(&mut self, news: News) -> bool {
        match news {
            News::Listed(containers) => {
                self.metrics.lists.inc();
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.metrics.listed.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
                let came_back = !matches!(self.state, DockerState::Live { .. });
                if came_back {
                    info!(engine = self.engine.as_ref().map(Engine::name), containers = containers.len(), "following Docker");
                    self.state = DockerState::Live { since: Instant::now() };
                    self.metrics.live.set(1);
                    self.logged = None;
                }
                let changed = came_back || self.containers != containers;
                self.containers = containers;
                if let Some((id, _)) = self.unanswered.clone().filter(|(id, _)| self.container(id).is_some()) {
                    self.inspect(&id);
                }
                changed
            }
            News::Lost(loss) => {
                debug!(?loss, "an event took something away");
                let before = self.containers.len();
                let endpoints = |containers: &[Container]| containers.iter().map(|container| container.endpoints.len()).sum::<usize>();
                let had = endpoints(&self.containers);
                loss.apply(&mut self.containers);
                self.containers.len() != before || endpoints(&self.containers) != had
            }
        }
    }

    /// The session is over: the next one begins at once if this one was long, after a pause otherwise.
    fn lose(&mut self, error: &Error) -> bool {
        let now = Instant::now();
        let Phase::Following { since, .. } = self.phase else { return false };
        let Some(engine) = &self.engine else { return false };
        self.metrics.losses.inc();
        let lost = DockerState::Blind { since: now, error: error.chain() };
        if now - since >= STEADY && matches!(self.state, DockerState::Live { .. }) {
            debug!(%error, "subscribing anew");
            self.backoff.reset();
            self.phase = Phase::following(engine);
        } else {
            self.phase = Phase::Pausing(Box::pin(sleep(self.backoff.pause())));
            log(&mut self.logged, engine, error, now);
        }
        self.metrics.live.set(0);
        let state = match &self.state {
            DockerState::Off | DockerState::Connecting { .. } => DockerState::Connecting { error: Some(error.chain()) },
            DockerState::Live { .. } => lost,
            DockerState::Blind { since, .. } => DockerState::Blind { since: *since, error: error.chain() },
        };
        let changed = self.state != state;
        self.state = state;
        changed
    }

    fn inspected(&mut self, id: &str, details: Result<Details, Error>) -> bool {
        self.inspection = None;
        let first = !self.was_inspected(id);
        self.inspected = Some(id.to_owned());
        match details {
            Ok(details) => {
                self.unanswered = None;
                let details = Some(details);
                let changed = self.details != details;
                self.details = details;
                changed || first
            }
            Err(error) => {
                let failed = (id.to_owned(), error.chain());
                if self.unanswered.as_ref() != Some(&failed) {
                    warn!(container = id, error = failed.1, "can't learn this namespace's network aliases, nor when its owner started");
                }
                // A filter's word is final; anything else may be over in a moment.
                let is_final = matches!(error, Error::Refused { .. } | Error::NoContainer { .. });
                self.unanswered = Some(failed).filter(|_| !is_final);
                first
            }
        }
    }
}

impl Phase {
    fn following(engine: &Engine) -> Self {
        Self::Following { session: Box::new(Session::open(engine)), since: Instant::now() }
    }

    /// News of the session; `None` when it is time for a new one.
    async fn next(&mut self) -> Option<Result<News, Error>> {
        match self {
            Self::Off => std::future::pending().await,
            Self::Pausing(pause) => {
                pause.await;
                None
            }
            Self::Following { session, .. } => Some(session.next().await),
        }
    }
}

impl Details {
    fn of(id: String, told: bollard::models::ContainerInspectResponse) -> Self {
        let networks = told.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        Self {
            id,
            aliases: networks.into_values().flat_map(|endpoint| endpoint.aliases.unwrap_or_default()).collect(),
            started: told.state.and_then(|state| state.started_at),
        }
    }
}

/// Says why there is no Docker: at once if it's something new, else once in a while.
fn log(logged: &mut Option<(String, Instant)>, engine: &Engine, error: &Error, now: Instant) {
    let text = error.chain();
    let known = logged.as_ref().filter(|(before, _)| *before == text);
    // Where nobody asked for Docker and there is none, it's enough to have said so.
    let settled = engine.is_guessed() && matches!(error, Error::NoSocket { .. });
    match known {
        Some((_, at)) if settled || now - *at < REPEAT => debug!(error = text, "still no Docker"),
        _ if settled => {
            info!(reason = text, "no Docker: labels make nobody an agent until it is there");
            *logged = Some((text, now));
        }
        _ => {
            warn!(error = text, "Docker can't be followed: labels make nobody an agent until it can, trying again");
            *logged = Some((text, now));
        }
    }
}

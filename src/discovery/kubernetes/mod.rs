//! Kubernetes, followed for ever: a lost watch, a restarted API server, a list that grew too old and a token that was rotated are all
//! answered by listing and watching anew.

mod api;
mod object;
mod session;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use tokio::time::{Instant, Sleep, sleep};
use tracing::{debug, info, warn};

pub use api::{Api, Error, Rule, TokenOf};
use session::{News, Session};

use super::pod::Pod;
use super::view::DockerState;
use crate::backoff::Backoff;
use crate::metrics;

/// The pauses between attempts grow from this.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// ... to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After a session of this length the next one begins at once.
const STEADY: Duration = Duration::from_secs(5);
/// How often the same failure is logged.
const REPEAT: Duration = Duration::from_secs(60);

/// What the API server says, and how it is.
pub struct Kubernetes {
    api: Api,
    phase: Phase,
    backoff: Backoff,
    state: DockerState,
    /// Every living pod with the label when the API server was last heard, in the order of their names.
    pods: Vec<Pod>,
    logged: Option<(String, Instant)>,
    metrics: metrics::Discovery,
}

enum Phase {
    Pausing(std::pin::Pin<Box<Sleep>>),
    Following { session: Session, since: Instant },
}

impl Kubernetes {
    /// Follows `api`.
    pub fn new(api: Api, metrics: metrics::Discovery) -> Self {
        info!(api = api.name(), "looking for agents by Kubernetes");
        Self {
            phase: Phase::following(&api),
            api,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            state: DockerState::Connecting { error: None },
            pods: Vec::new(),
            logged: None,
            metrics,
        }
    }

    /// How the API server is.
    pub fn state(&self) -> &DockerState {
        &self.state
    }

    /// Every living pod with the label when the API server was last heard.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Waits until something is known anew. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) {
        loop {
            let changed = match &mut self.phase {
                Phase::Pausing(pause) => {
                    pause.await;
                    self.phase = Phase::following(&self.api);
                    false
                }
                Phase::Following { session, since } => {
                    let since = *since;
                    match session.next().await {
                        Some(Ok(news)) => self.learn(news),
                        Some(Err(error)) => self.lose(&error, since),
                        None => self.lose(&Error::WatchEnded, since),
                    }
                }
            };
            if changed {
                return;
            }
        }
    }

    fn learn(&mut self, news: News) -> bool {
        match news {
            News::Listed(mut pods) => {
                pods.sort_by(|a, b| a.name.cmp(&b.name));
                self.heard();
                self.metrics.lists.inc();
                let came_back = !matches!(self.state, DockerState::Live { .. });
                if came_back {
                    info!(api = self.api.name(), pods = pods.len(), "following Kubernetes");
                    self.state = DockerState::Live { since: Instant::now() };
                    self.metrics.live.set(1);
                    self.logged = None;
                }
                let changed = came_back || self.pods != pods;
                self.pods = pods;
                changed
            }
            News::Changed(name, pod) => {
                self.heard();
                let at = self.pods.binary_search_by(|known| known.name.cmp(&name));
                match (at, pod) {
                    (Ok(at), Some(pod)) if self.pods[at] == pod => return false,
                    (Ok(at), Some(pod)) => self.pods[at] = pod,
                    (Ok(at), None) => drop(self.pods.remove(at)),
                    (Err(at), Some(pod)) => self.pods.insert(at, pod),
                    (Err(_), None) => return false,
                }
                true
            }
        }
    }

    fn heard(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.metrics.listed.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// The session is over: the next one begins at once if this one was long, after a pause otherwise.
    fn lose(&mut self, error: &Error, since: Instant) -> bool {
        let now = Instant::now();
        self.metrics.losses.inc();
        self.metrics.live.set(0);
        let told = error.chain();
        if now - since >= STEADY && matches!(self.state, DockerState::Live { .. }) {
            debug!(error = told, "listing and watching anew");
            self.backoff.reset();
            self.phase = Phase::following(&self.api);
        } else {
            self.phase = Phase::Pausing(Box::pin(sleep(self.backoff.pause())));
            self.log(&told, now);
        }
        let state = match &self.state {
            DockerState::Off | DockerState::Connecting { .. } => DockerState::Connecting { error: Some(told) },
            DockerState::Live { .. } => DockerState::Blind { since: now, error: told },
            DockerState::Blind { since, .. } => DockerState::Blind { since: *since, error: told },
        };
        let changed = self.state != state;
        self.state = state;
        changed
    }

    /// Says why the API server can't be followed: at once if it's something new, else once in a while.
    fn log(&mut self, error: &str, now: Instant) {
        match &self.logged {
            Some((before, at)) if before == error && now - *at < REPEAT => debug!(error, "still no Kubernetes"),
            _ => {
                warn!(error, "Kubernetes can't be followed: labels make nobody an agent until it can, trying again");
                self.logged = Some((error.to_owned(), now));
            }
        }
    }
}

impl Phase {
    fn following(api: &Api) -> Self {
        Self::Following { session: session::open(api.clone()), since: Instant::now() }
    }
}

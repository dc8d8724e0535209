//! Follows a source of agents without end: the state machine that Docker and Kubernetes share.
//!
//! A lost stream, a restarted source and a filter that cuts connections are all answered in one
//! way: by a new session, which subscribes and lists again.

use std::error::Error;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, Sleep, sleep};
use tracing::{debug, info, warn};

use super::source_state::SourceState;
use super::text::one_line;
use crate::backoff::Backoff;
use crate::error_chain::error_chain;
use crate::metrics;

/// The first pause between two attempts; the pauses grow from here.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After a session of this length the next one begins at once: filters cut streams every so often,
/// and that is no failure.
const STEADY_SESSION: Duration = Duration::from_secs(5);
/// How often the same failure is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A source of agents that can be followed.
pub trait Source {
    /// Its name in log lines.
    const NAME: &'static str;
    /// One subscription to the source.
    type Session;
    /// What a session reports.
    type Change;
    /// Why a session ends.
    type Error: Error;

    /// Returns where the source is, for log lines.
    fn endpoint(&self) -> String;

    /// Opens a session.
    fn open(&self) -> Self::Session;

    /// Waits for the next change that `session` reports. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The session is over.
    fn next(session: &mut Self::Session) -> impl Future<Output = Result<Self::Change, Self::Error>> + Send;

    /// Returns since when the source has been out of reach, after a session ended with `error`.
    fn lost_since(_session: &Self::Session, _error: &Self::Error) -> Instant {
        Instant::now()
    }

    /// Returns whether `error` means that the source is absent where its presence was only guessed.
    fn is_absent(&self, _error: &Self::Error) -> bool {
        false
    }
}

/// A source being followed, and its state.
pub struct Follower<S: Source> {
    source: S,
    phase: Phase<S::Session>,
    backoff: Backoff,
    state: SourceState,
    /// The failure that was logged last, and when.
    last_logged: Option<(String, Instant)>,
    metrics: metrics::DiscoveryMetrics,
}

enum Phase<S> {
    Pausing(Pin<Box<Sleep>>),
    Following { session: Box<S>, since: Instant },
}

/// What [`Follower::next`] reports.
pub enum Update<C> {
    /// The source has changed.
    Change(C),
    /// The session was lost, so the state has changed.
    Lost,
}

impl<S: Source> Follower<S> {
    /// Begins to follow `source`.
    pub fn new(source: S, metrics: metrics::DiscoveryMetrics) -> Self {
        info!(source = S::NAME, endpoint = source.endpoint(), "looking for agents");
        Self {
            phase: Phase::open_session(&source),
            source,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            state: SourceState::Connecting { error: None },
            last_logged: None,
            metrics,
        }
    }

    /// Returns what is followed.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Returns whether the source is followed, since when, and if not, why.
    pub fn state(&self) -> &SourceState {
        &self.state
    }

    /// Waits for a change of the source, or of its state. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Update<S::Change> {
        loop {
            match &mut self.phase {
                Phase::Pausing(pause) => {
                    pause.await;
                    self.phase = Phase::open_session(&self.source);
                }
                Phase::Following { session, since } => {
                    let since = *since;
                    match S::next(session).await {
                        Ok(change) => return Update::Change(change),
                        Err(error) => {
                            let lost_since = S::lost_since(session, &error);
                            if self.end_session(&error, since, lost_since) {
                                return Update::Lost;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Records that the source has just answered.
    pub fn record_answer(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.metrics.listed_at.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// Records a list of `count` containers or pods. Returns whether the source is live from now
    /// on, and was not before.
    pub fn record_list(&mut self, count: usize) -> bool {
        self.record_answer();
        self.metrics.lists_read.inc();
        let connected = !self.state.is_live();
        if connected {
            info!(
                source = S::NAME,
                endpoint = self.source.endpoint(),
                listed = count,
                "reading agents from this source"
            );
            self.state = SourceState::Live { since: Instant::now() };
            self.metrics.live.set(1);
            self.last_logged = None;
        }
        connected
    }

    /// Ends the session that began at `since`, and reached the source until `lost_since`. Returns
    /// whether the state has changed.
    fn end_session(&mut self, error: &S::Error, since: Instant, lost_since: Instant) -> bool {
        let now = Instant::now();
        let text = one_line(&error_chain(error));
        self.metrics.lost_streams.inc();
        self.metrics.live.set(0);
        if now - since >= STEADY_SESSION && self.state.is_live() {
            debug!(source = S::NAME, error = text, "session ended; opening a new one");
            self.backoff.reset();
            self.phase = Phase::open_session(&self.source);
        } else {
            self.phase = Phase::Pausing(Box::pin(sleep(self.backoff.pause())));
            self.log_failure(error, &text, now);
        }
        let state = match &self.state {
            SourceState::Off | SourceState::Connecting { .. } => SourceState::Connecting { error: Some(text) },
            SourceState::Live { .. } => SourceState::Disconnected { since: lost_since, error: text },
            SourceState::Disconnected { since, .. } => SourceState::Disconnected { since: *since, error: text },
        };
        let changed = self.state != state;
        self.state = state;
        changed
    }

    /// Logs why the source can't be followed: at once if the reason is new, else once in a while.
    fn log_failure(&mut self, error: &S::Error, text: &str, now: Instant) {
        let known = self.last_logged.as_ref().filter(|(before, _)| before == text);
        // Where the operator configured no source and there is none, one line is enough.
        let is_absent = self.source.is_absent(error);
        match known {
            Some((_, at)) if is_absent || now - *at < LOG_INTERVAL => {
                debug!(source = S::NAME, error = text, "still can't follow the source")
            }
            _ if is_absent => {
                info!(
                    source = S::NAME,
                    reason = text,
                    "the source of agents is not available; labels are ignored until it is"
                );
                self.last_logged = Some((text.to_owned(), now));
            }
            _ => {
                warn!(
                    source = S::NAME,
                    error = text,
                    "can't follow the source of agents; trying again. New connections of agents by label become external \
                     after 5 s (address) or 30 s (attested)"
                );
                self.last_logged = Some((text.to_owned(), now));
            }
        }
    }
}

impl<S> Phase<S> {
    fn open_session(source: &impl Source<Session = S>) -> Self {
        Self::Following { session: Box::new(source.open()), since: Instant::now() }
    }
}

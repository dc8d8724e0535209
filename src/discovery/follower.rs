//! Follows a source of agents: the state machine that Docker and Kubernetes share.
//!
//! After every failure (a lost stream, a restarted source, a filter that cuts connections) a new
//! session subscribes and lists again.

use std::error::Error;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, Sleep, sleep};
use tracing::{debug, info, warn};

use super::source_state::SourceState;
use super::text::to_one_line;
use super::view::{ADDRESS_GRACE, ATTESTED_GRACE};
use crate::backoff::Backoff;
use crate::error_chain::error_chain;
use crate::metrics;

/// The first pause between two attempts. The pauses grow up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After a session of at least this length the next one opens at once, since a filter that cuts
/// long streams is not a failure.
const STEADY_SESSION: Duration = Duration::from_secs(5);
/// The interval at which a repeated failure is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A source of agents that can be followed.
pub trait AgentSource {
    /// The source's name in log lines.
    const NAME: &'static str;
    /// One subscription to the source.
    type Session;
    /// A change that a session reports.
    type Change;
    /// An error that ends a session.
    type Error: Error;

    /// Returns the source's address, for log lines.
    fn endpoint(&self) -> String;

    /// Opens a session.
    fn open(&self) -> Self::Session;

    /// Waits for the next change that `session` reports. Cancel safe: dropping the future loses no
    /// change.
    ///
    /// # Errors
    /// The error that ended the session.
    fn next(session: &mut Self::Session) -> impl Future<Output = Result<Self::Change, Self::Error>> + Send;

    /// Returns since when the source can't be reached, after `error` ended the session.
    fn lost_since(_session: &Self::Session, _error: &Self::Error) -> Instant {
        Instant::now()
    }

    /// Returns whether `error` means that there is no source, and none was configured.
    fn is_absent(&self, _error: &Self::Error) -> bool {
        false
    }
}

/// Follows a source, and holds its state.
pub struct Follower<S: AgentSource> {
    source: S,
    phase: Phase<S::Session>,
    backoff: Backoff,
    state: SourceState,
    /// The failure that was logged last, and the time.
    last_logged: Option<(String, Instant)>,
    metrics: metrics::DiscoveryMetrics,
}

/// What a follower is waiting for.
enum Phase<S> {
    /// The pause before the next session.
    Pausing(Pin<Box<Sleep>>),
    /// Changes of this session, which began at `since`.
    Following { session: Box<S>, since: Instant },
}

/// An update that [`Follower::next_update`] returns.
pub enum Update<C> {
    /// The session reported this change.
    Change(C),
    /// The session ended, and the state has changed.
    Lost,
}

impl<S: AgentSource> Follower<S> {
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

    /// Returns the source that is followed.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Returns whether the source can be reached, with the time of the last change or the error.
    pub fn state(&self) -> &SourceState {
        &self.state
    }

    /// Waits for a change of the source, or of its state, and meanwhile opens new sessions as
    /// needed. Cancel safe: dropping the future loses no change.
    pub async fn next_update(&mut self) -> Update<S::Change> {
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

    /// Records in the metrics that the source has answered now.
    pub fn record_answer(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.metrics.listed_at.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// Records a list of `count` containers or pods in the metrics. Returns whether this made the
    /// source live, which is logged.
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

    /// Records the end of the session in state, metrics and log, and opens a new session at once or
    /// after a pause. Returns whether the state has changed.
    ///
    /// The session began at `since`, and `error` ended it. The source has been unreachable since
    /// `lost_since`.
    fn end_session(&mut self, error: &S::Error, since: Instant, lost_since: Instant) -> bool {
        let now = Instant::now();
        let message = to_one_line(&error_chain(error));
        self.metrics.lost_streams.inc();
        self.metrics.live.set(0);
        if now - since >= STEADY_SESSION && self.state.is_live() {
            debug!(source = S::NAME, error = message, "session ended; opening a new one");
            self.backoff.reset();
            self.phase = Phase::open_session(&self.source);
        } else {
            self.phase = Phase::Pausing(Box::pin(sleep(self.backoff.next_pause())));
            self.log_failure(error, &message, now);
        }
        let state = match &self.state {
            SourceState::Off | SourceState::Connecting { .. } => SourceState::Connecting { error: Some(message) },
            SourceState::Live { .. } => SourceState::Disconnected { since: lost_since, error: message },
            SourceState::Disconnected { since, .. } => SourceState::Disconnected { since: *since, error: message },
        };
        let changed = self.state != state;
        self.state = state;
        changed
    }

    /// Logs why the source can't be followed: at once if the reason is new, else every
    /// [`LOG_INTERVAL`]; an absent default source only once.
    fn log_failure(&mut self, error: &S::Error, message: &str, now: Instant) {
        let logged_before = self.last_logged.as_ref().filter(|(before, _)| before == message);
        // If the operator configured no source and there is none, one line is enough.
        let is_absent = self.source.is_absent(error);
        match logged_before {
            Some((_, at)) if is_absent || now - *at < LOG_INTERVAL => {
                debug!(source = S::NAME, error = message, "still can't follow the source")
            }
            _ if is_absent => {
                info!(
                    source = S::NAME,
                    reason = message,
                    "the source of agents is not available; labels are ignored until it is"
                );
                self.last_logged = Some((message.to_owned(), now));
            }
            _ => {
                warn!(
                    source = S::NAME,
                    error = message,
                    "can't follow the source of agents; trying again. New connections of agents \
                     become external after {} s (agents by address) or {} s (attested agents)",
                    ADDRESS_GRACE.as_secs(),
                    ATTESTED_GRACE.as_secs()
                );
                self.last_logged = Some((message.to_owned(), now));
            }
        }
    }
}

impl<S> Phase<S> {
    fn open_session(source: &impl AgentSource<Session = S>) -> Self {
        Self::Following { session: Box::new(source.open()), since: Instant::now() }
    }
}

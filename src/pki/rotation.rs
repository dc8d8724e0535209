//! Keeps the certificate right while the process runs: renews what is due, follows files that change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::error_chain::error_chain;
use crate::shutdown::Shutdown;

use super::error::Error;
use super::fingerprint::fingerprint;
use super::source::{Loaded, Source, Stamp};
use super::{Identity, SubjectName};

/// How often to look at the files and the clock. Short ticks, since the wall clock may jump at any time.
const POLL: Duration = Duration::from_secs(2);

/// How long to wait after a failure that no change of a file explains, such as a full disk.
pub(super) const RETRY: Duration = Duration::from_secs(60);

/// The task that owns the certificate.
pub(super) struct Rotation {
    pub(super) source: Arc<Source>,
    /// Names that are always wanted.
    pub(super) fixed_names: BTreeSet<SubjectName>,
    pub(super) names: watch::Receiver<BTreeSet<SubjectName>>,
    pub(super) identity: watch::Sender<Arc<Identity>>,
    pub(super) problem: watch::Sender<Option<Arc<Error>>>,
    pub(super) reload: Arc<Notify>,
    pub(super) memory: Memory,
}

/// What the task remembers from one look to the next.
#[derive(Debug)]
pub(super) struct Memory {
    /// The files as they were when last read to an end, good or bad.
    pub(super) seen: Stamp,
    /// Files that were bad at first sight: someone may be in the middle of replacing a pair.
    pub(super) doubted: Option<Stamp>,
    /// When to try again what failed.
    pub(super) retry_at: Option<Instant>,
}

impl Rotation {
    /// Runs until the end is asked for.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut tick = tokio::time::interval(POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut names_may_change = true;
        loop {
            let asked = tokio::select! {
                biased;
                () = shutdown.begun() => return,
                () = self.reload.notified() => true,
                changed = self.names.changed(), if names_may_change => {
                    names_may_change = changed.is_ok();
                    self.memory.retry_at = None;
                    false
                }
                _ = tick.tick() => false,
            };
            self.look(asked).await;
        }
    }

    /// Looks once at files, names and clock, and does what follows.
    async fn look(&mut self, asked: bool) {
        let source = Arc::clone(&self.source);
        let served = Arc::clone(&self.identity.borrow());
        let wanted = wanted(&self.fixed_names, &self.names.borrow_and_update());
        let seen = self.memory.seen;
        let may_renew = self.memory.retry_at.is_none_or(|at| at <= Instant::now());
        let retry = self.memory.retry_at.is_some() && may_renew;
        let files_and_clock = move || {
            let now = OffsetDateTime::now_utc();
            let stamp = source.stamp();
            let look = asked || retry || stamp != seen || may_renew && source.is_due(&served, &wanted, now);
            look.then(|| (stamp, source.load(&wanted, now)))
        };
        match tokio::task::spawn_blocking(files_and_clock).await {
            Ok(None) => {}
            Ok(Some((stamp, result))) => self.settle(asked, stamp, result),
            // Only a bug or the end of the runtime gets here; the certificate that serves is not affected.
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "could not look at the certificate"),
        }
    }

    fn settle(&mut self, asked: bool, stamp: Stamp, result: Result<Loaded, Error>) {
        let half_written = result.is_err() && !asked && stamp != self.memory.seen && self.memory.doubted != Some(stamp);
        self.memory.doubted = half_written.then_some(stamp);
        if half_written {
            return;
        }
        self.memory.seen = stamp;
        let trouble = match result {
            Ok(Loaded { identity, trouble }) => {
                self.publish(identity);
                trouble
            }
            Err(error) => Some(error),
        };
        self.memory.retry_at = trouble.is_some().then(|| Instant::now() + RETRY);
        self.report(trouble);
    }

    /// Serves `identity` from now on, unless it is what is served, or has expired while what is served has not.
    fn publish(&self, identity: Identity) {
        let now = OffsetDateTime::now_utc();
        self.identity.send_if_modified(|served| {
            let same = served.certified_key.cert == identity.certified_key.cert;
            if same || identity.not_after < now && now <= served.not_after {
                return false;
            }
            announce(&identity);
            *served = Arc::new(identity);
            true
        });
    }

    /// Says what is wrong, once.
    fn report(&self, trouble: Option<Error>) {
        self.problem.send_if_modified(|known| {
            let news = match (&*known, &trouble) {
                (None, None) => false,
                (Some(known), Some(trouble)) => error_chain(known) != error_chain(trouble),
                _ => true,
            };
            if news {
                match &trouble {
                    Some(error) => {
                        tracing::warn!(error = error as &dyn std::error::Error, "keeping the certificate that is served");
                    }
                    None => tracing::info!("the certificate's files are in order again"),
                }
                *known = trouble.map(Arc::new);
            }
            news
        });
    }
}

/// Says what is to be served from now on; whoever serves it tells the operator once it does.
pub(super) fn announce(identity: &Identity) {
    let leaf = &identity.certified_key.cert[0];
    let names: Vec<_> = identity.names.iter().map(ToString::to_string).collect();
    tracing::debug!(fingerprint = fingerprint(leaf), names = names.join(" "), until = %identity.not_after, "a certificate to serve");
}

/// The names to have in the leaf. One that can't stand in a certificate (a network alias may be anything) doesn't spoil the others.
pub(super) fn wanted(fixed: &BTreeSet<SubjectName>, found: &BTreeSet<SubjectName>) -> BTreeSet<SubjectName> {
    let checked = found.iter().filter_map(|name| match name.checked() {
        Ok(name) => Some(name),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "leaving a name out of the certificate");
            None
        }
    });
    checked.chain(fixed.iter().cloned()).collect()
}

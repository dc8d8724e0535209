//! Keeps the certificate up to date in a running process: renews it when it is due, and follows
//! changes of its files.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::error_chain::error_chain;
use crate::fingerprint::Fingerprint;
use crate::shutdown::Shutdown;

use super::error::Error;
use super::identity::ServerIdentity;
use super::loaded::{DigestCache, FilesDigest, LoadedIdentity};
use super::name::SubjectName;
use super::source::CertificateSource;

/// The interval of checks of the files and the clock. It is short, since the wall clock may jump at
/// any time.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The delay before a retry after a failure. Changes of the files are noticed sooner. The retry is
/// for other causes, such as a full disk.
pub(super) const RETRY_DELAY: Duration = Duration::from_secs(60);

/// The task that owns the certificate.
pub(super) struct Rotation {
    pub(super) source: Arc<CertificateSource>,
    /// The names that a leaf always has: `localhost` and `tls.names`.
    pub(super) fixed_names: BTreeSet<SubjectName>,
    pub(super) names: watch::Receiver<BTreeSet<SubjectName>>,
    pub(super) identity_sender: watch::Sender<Arc<ServerIdentity>>,
    pub(super) problem_sender: watch::Sender<Option<Arc<Error>>>,
    pub(super) reload: Arc<Notify>,
    pub(super) state: RotationState,
}

/// The state that is kept between two checks.
#[derive(Debug)]
pub(super) struct RotationState {
    /// The digest of the files at the last check.
    pub(super) cache: DigestCache,
    /// The digest of the files that were loaded last, valid or not.
    pub(super) digest: FilesDigest,
    /// The digest of files that were invalid at one check. Another process may have been replacing
    /// them, so the error is reported only if they are still the same at the next check.
    pub(super) invalid_once: Option<FilesDigest>,
    /// The time of the next retry after a failure.
    pub(super) retry_at: Option<Instant>,
}

impl Rotation {
    /// Runs until `shutdown` begins.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut names_may_change = true;
        loop {
            let requested = tokio::select! {
                biased;
                () = shutdown.wait_until_begun() => return,
                () = self.reload.notified() => true,
                changed = self.names.changed(), if names_may_change => {
                    names_may_change = changed.is_ok();
                    self.state.retry_at = None;
                    false
                }
                _ = tick.tick() => false,
            };
            self.check_once(requested).await;
        }
    }

    /// Checks files, names and clock once, and renews or reloads the certificate if necessary, or
    /// in any case if `requested`.
    async fn check_once(&mut self, requested: bool) {
        let source = Arc::clone(&self.source);
        let served = Arc::clone(&self.identity_sender.borrow());
        let wanted_names = wanted_names(&self.fixed_names, &self.names.borrow_and_update());
        let last_digest = self.state.digest;
        let may_renew = self.state.retry_at.is_none_or(|at| at <= Instant::now());
        let retry = self.state.retry_at.is_some() && may_renew;
        let mut cache = std::mem::take(&mut self.state.cache);
        let files_and_clock = move || {
            let now = OffsetDateTime::now_utc();
            let digest = cache.digest(&source.file_paths(), requested || retry, SystemTime::now());
            let load =
                requested || retry || digest != last_digest || may_renew && source.is_due(&served, &wanted_names, now);
            (cache, load.then(|| (digest, source.load(&wanted_names, now))))
        };
        match tokio::task::spawn_blocking(files_and_clock).await {
            Ok((cache, loaded)) => {
                self.state.cache = cache;
                if let Some((digest, result)) = loaded {
                    self.apply_result(requested, digest, result);
                }
            }
            // This happens only after a panic or at the end of the runtime. The served certificate
            // is not affected.
            Err(error) => {
                tracing::error!(
                    error = error_chain(&error),
                    "a check of the certificate files failed; still serving the present certificate"
                )
            }
        }
    }

    /// Publishes the certificate that was loaded, or reports why it was not. The first error after
    /// a change of the files is ignored, unless the check was `requested`: the files may be half
    /// written.
    fn apply_result(&mut self, requested: bool, digest: FilesDigest, result: Result<LoadedIdentity, Error>) {
        let may_be_half_written =
            result.is_err() && !requested && digest != self.state.digest && self.state.invalid_once != Some(digest);
        self.state.invalid_once = may_be_half_written.then_some(digest);
        if may_be_half_written {
            return;
        }
        self.state.digest = digest;
        let problem = match result {
            Ok(LoadedIdentity { identity, problem }) => {
                self.publish(identity);
                problem
            }
            Err(error) => Some(error),
        };
        self.state.retry_at = problem.is_some().then(|| Instant::now() + RETRY_DELAY);
        self.report_problem(problem);
    }

    /// Publishes `identity`, unless it is already served, or has expired while the served one has
    /// not. Publishes its list of revoked certificates in any case.
    fn publish(&self, identity: ServerIdentity) {
        let now = OffsetDateTime::now_utc();
        self.identity_sender.send_if_modified(|served| {
            let is_same = served.certified_key.cert == identity.certified_key.cert;
            if is_same || identity.not_after < now && now <= served.not_after {
                let revoked = served.revoked != identity.revoked;
                if revoked {
                    *served = Arc::new(ServerIdentity { revoked: identity.revoked, ..(**served).clone() });
                }
                return revoked;
            }
            log_identity(&identity);
            *served = Arc::new(identity);
            true
        });
    }

    /// Publishes `problem`, and logs it if it has changed.
    fn report_problem(&self, problem: Option<Error>) {
        self.problem_sender.send_if_modified(|reported| {
            let changed = match (&*reported, &problem) {
                (None, None) => false,
                (Some(reported), Some(problem)) => error_chain(reported) != error_chain(problem),
                _ => true,
            };
            if changed {
                match &problem {
                    Some(error) => warn_of_problem(error),
                    None => tracing::info!("the certificate problem is solved"),
                }
                *reported = problem.map(Arc::new);
            }
            changed
        });
    }
}

/// Logs that the certificate could not be loaded or renewed.
pub(super) fn warn_of_problem(error: &Error) {
    tracing::warn!(
        error = error_chain(error), retry_in = ?RETRY_DELAY,
        "can't load or renew the certificate; still serving the old one; trying again"
    );
}

/// Logs a certificate that was loaded. The TLS reloader logs when it is served.
pub(super) fn log_identity(identity: &ServerIdentity) {
    let leaf = &identity.certified_key.cert[0];
    let names: Vec<_> = identity.names.iter().map(ToString::to_string).collect();
    tracing::debug!(
        fingerprint = %Fingerprint::of(leaf), names = names.join(" "), not_after = %identity.not_after,
        "certificate loaded"
    );
}

/// Returns the wanted names of the leaf: `fixed`, and those of `found` that are valid in a
/// certificate. A network alias may be any text.
pub(super) fn wanted_names(fixed: &BTreeSet<SubjectName>, found: &BTreeSet<SubjectName>) -> BTreeSet<SubjectName> {
    let checked = found.iter().filter_map(|name| match name.checked() {
        Ok(name) => Some(name),
        Err(error) => {
            tracing::debug!(error = error_chain(&error), "leaving a name out of the certificate");
            None
        }
    });
    checked.chain(fixed.iter().cloned()).collect()
}

//! Keeps the agent enrolled: enrols again after half the certificate's life, when the sidecar
//! refuses the certificate, and after failures.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::connector::Connector;
use super::credentials::{CredentialState, Credentials};
use super::enrol::{self, Attestation};
use crate::backoff::Backoff;
use crate::error_chain::error_chain;
use crate::secret::Secret;

/// The minimum time between two successful enrolments.
const MIN_INTERVAL: Duration = Duration::from_secs(5);
/// The interval at which the wall clock is read. The monotonic clock stops while a machine is
/// suspended.
const CLOCK_CHECK: Duration = Duration::from_secs(15);
/// The maximum pause after a failed attempt.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Enrols repeatedly.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) connector: Arc<Connector>,
    pub(super) attestation: Attestation,
    /// The file to which an inherited token is written.
    pub(super) token_out: Option<PathBuf>,
    /// Notified when the certificate must be renewed at once: the sidecar refused it, or it has
    /// expired.
    pub(super) renewal_needed: Arc<Notify>,
}

impl Renewal {
    /// Enrols and publishes the credentials, again and again. Publishes each failure, and if the
    /// credentials have expired by then, that there are none. Never returns.
    pub(super) async fn keep_enrolled(self, sender: watch::Sender<CredentialState>) {
        let mut backoff = Backoff::new(Duration::from_millis(250), MAX_PAUSE);
        let mut logged_failure = None;
        loop {
            match enrol::enrol(&self.connector, &self.attestation).await {
                Ok((credentials, token)) => {
                    info!(expires = %credentials.not_after, inherits_token = token.is_some(), "enrolled");
                    self.write_token(token.as_ref()).await;
                    sender.send_modify(|state| {
                        *state = CredentialState { credentials: Some(credentials.clone()), token, failure: None }
                    });
                    backoff.reset();
                    logged_failure = None;
                    self.wait_until_due(&credentials).await;
                }
                Err(error) => {
                    let failure = error_chain(&error);
                    let pause = backoff.next_pause();
                    // A repeated failure is logged only at debug.
                    if logged_failure.as_ref() == Some(&failure) {
                        debug!(error = %failure, ?pause, "enrolment failed again");
                    } else {
                        warn!(error = %failure, "enrolment failed; trying again");
                    }
                    logged_failure = Some(failure.clone());
                    let now = OffsetDateTime::now_utc();
                    sender.send_modify(|state| {
                        state.failure = Some(failure);
                        if state.credentials.as_ref().is_some_and(|c| c.remaining_validity(now).is_zero()) {
                            state.credentials = None;
                        }
                    });
                    sleep(pause).await;
                }
            }
        }
    }

    /// Waits until half of the remaining life of `credentials` has elapsed, or until they must be
    /// renewed at once; but at least for [`MIN_INTERVAL`].
    async fn wait_until_due(&self, credentials: &Credentials) {
        let half = credentials.remaining_validity(OffsetDateTime::now_utc()) / 2;
        sleep(MIN_INTERVAL).await;
        while credentials.remaining_validity(OffsetDateTime::now_utc()) > half {
            tokio::select! {
                () = self.renewal_needed.notified() => {
                    return info!("the certificate was refused or has expired; enrolling again");
                }
                () = sleep(CLOCK_CHECK.min(half)) => {}
            }
        }
    }

    /// Writes an inherited token to `token_out`. A failure is only logged.
    async fn write_token(&self, token: Option<&Secret>) {
        let (Some(path), Some(token)) = (self.token_out.clone(), token.cloned()) else { return };
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || write_secret(&path, &token)).await;
        if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
            warn!(path = shown, %error, "can't write the inherited token to --token-out");
        }
    }
}

/// Writes `secret` atomically to the file at `path` with mode 0600.
fn write_secret(path: &Path, secret: &Secret) -> std::io::Result<()> {
    use std::io::Write;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // `tempfile` creates files with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(secret.expose().as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_file_is_readable_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        for token in ["first", "second"] {
            write_secret(&path, &Secret::new(token.to_owned())).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), token);
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

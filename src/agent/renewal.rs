//! Keeps the agent enrolled: enrols again at half the certificate's life, when the sidecar refuses
//! it, and repeatedly while it fails.

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

/// The shortest time between two enrolments.
const MIN_INTERVAL: Duration = Duration::from_secs(5);
/// How often the wall clock is read: the monotonic clock stands still while a laptop sleeps.
const CLOCK_CHECK: Duration = Duration::from_secs(15);
/// The longest pause between attempts that fail.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What repeated enrolment needs.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) connector: Arc<Connector>,
    pub(super) attestation: Attestation,
    /// Where an inherited token is written.
    pub(super) token_out: Option<PathBuf>,
    /// Notified when the sidecar refuses the certificate.
    pub(super) refused: Arc<Notify>,
}

impl Renewal {
    /// Publishes credentials without end, and withdraws them when they expire.
    pub(super) async fn run(self, publish: watch::Sender<CredentialState>) {
        let mut backoff = Backoff::new(Duration::from_millis(250), MAX_PAUSE);
        let mut logged_failure = None;
        loop {
            match enrol::enrol(&self.connector, &self.attestation).await {
                Ok((credentials, token)) => {
                    info!(expires = %credentials.not_after, token = token.is_some(), "enrolled");
                    self.write_token(token.as_ref()).await;
                    publish.send_modify(|state| {
                        *state = CredentialState { credentials: Some(credentials.clone()), token, failure: None }
                    });
                    backoff.reset();
                    logged_failure = None;
                    self.wait_until_due(&credentials).await;
                }
                Err(error) => {
                    let failure = error_chain(&error);
                    let pause = backoff.pause();
                    // The same failure is logged_failure once.
                    if logged_failure.as_ref() == Some(&failure) {
                        debug!(error = %failure, ?pause, "enrolment failed again");
                    } else {
                        warn!(error = %failure, "enrolment failed; trying again");
                    }
                    logged_failure = Some(failure.clone());
                    let now = OffsetDateTime::now_utc();
                    publish.send_modify(|state| {
                        state.failure = Some(failure);
                        if state.credentials.as_ref().is_some_and(|c| c.remaining(now).is_zero()) {
                            state.credentials = None;
                        }
                    });
                    sleep(pause).await;
                }
            }
        }
    }

    /// Waits until half the life of `credentials` is over, or until the sidecar refuses them.
    async fn wait_until_due(&self, credentials: &Credentials) {
        let half = credentials.remaining(OffsetDateTime::now_utc()) / 2;
        sleep(MIN_INTERVAL).await;
        while credentials.remaining(OffsetDateTime::now_utc()) > half {
            tokio::select! {
                () = self.refused.notified() => return info!("the sidecar refused the certificate; enrolling again"),
                () = sleep(CLOCK_CHECK.min(half)) => {}
            }
        }
    }

    async fn write_token(&self, token: Option<&Secret>) {
        let (Some(path), Some(token)) = (self.token_out.clone(), token.cloned()) else { return };
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || write_secret(&path, &token)).await;
        if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
            warn!(path = shown, %error, "can't write the inherited token to --token-out");
        }
    }
}

/// Writes `secret` to the file at `path`, mode 0600, atomically.
fn write_secret(path: &Path, secret: &Secret) -> std::io::Result<()> {
    use std::io::Write;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A temporary file of this crate has mode 0600.
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

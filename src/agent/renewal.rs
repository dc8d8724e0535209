//! Keeps the agent enrolled: again at half-life, again when the sidecar refuses the certificate, again and again while it fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::connector::Connector;
use super::credentials::Credentials;
use super::enrol::Proving;
use super::{State, enrol};
use crate::backoff::Backoff;
use crate::error_chain::error_chain;
use crate::secret::Secret;

/// However often it is asked for, not sooner than this after the last.
const SHORTEST: Duration = Duration::from_secs(5);
/// The clock of the wall counts, not that of the machine, which stands still while a laptop sleeps: so it is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// The longest pause between attempts that fail.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What it takes to stay enrolled.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) connector: Arc<Connector>,
    pub(super) proving: Proving,
    /// Where an inherited token is written.
    pub(super) token_out: Option<PathBuf>,
    /// Somebody found the certificate refused.
    pub(super) asked: Arc<Notify>,
}

impl Renewal {
    /// Publishes credentials for ever; takes them back when they expire.
    pub(super) async fn run(self, publish: watch::Sender<State>) {
        let mut backoff = Backoff::new(Duration::from_millis(250), LONGEST_PAUSE);
        let mut complained = None;
        loop {
            match enrol::enrol(&self.connector, &self.proving).await {
                Ok((credentials, token)) => {
                    info!(expires = %credentials.not_after, token = token.is_some(), "enrolled");
                    self.write_out(token.as_ref()).await;
                    publish.send_modify(|state| *state = State { credentials: Some(credentials.clone()), token, failure: None });
                    backoff.reset();
                    complained = None;
                    self.until_due(&credentials).await;
                }
                Err(error) => {
                    let failure = error_chain(&error);
                    let pause = backoff.pause();
                    // The same complaint every time would drown the rest of the log.
                    if complained.as_ref() == Some(&failure) {
                        debug!(error = %failure, ?pause, "enrolment failed again");
                    } else {
                        warn!(error = %failure, "enrolment failed; it will be tried again");
                    }
                    complained = Some(failure.clone());
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

    /// Waits until half the life of `credentials` is over, or until somebody asks.
    async fn until_due(&self, credentials: &Credentials) {
        let half = credentials.remaining(OffsetDateTime::now_utc()) / 2;
        sleep(SHORTEST).await;
        while credentials.remaining(OffsetDateTime::now_utc()) > half {
            tokio::select! {
                () = self.asked.notified() => return info!("the sidecar refused the certificate; enrolling anew"),
                () = sleep(LOOK_AGAIN.min(half)) => {}
            }
        }
    }

    async fn write_out(&self, token: Option<&Secret>) {
        let (Some(path), Some(token)) = (self.token_out.clone(), token.cloned()) else { return };
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || write_secret(&path, &token)).await;
        if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
            warn!(path = shown, %error, "can't write the token");
        }
    }
}

/// Puts `secret` in the file at `path`, mode 0600, whole or not at all.
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
    fn a_token_is_written_for_its_owner_alone() {
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

//! The agent's certificate and key, and the gateway's token.

use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::{info, warn};

use super::trust;
use crate::config::CertificateFiles;
use crate::secret::Secret;

/// The agent's certificate and key.
#[derive(Debug)]
pub struct Credentials {
    /// The chain, leaf first, and its signing key.
    pub certified_key: Arc<CertifiedKey>,
    /// The end of the certificate's validity.
    pub not_after: OffsetDateTime,
}

/// The agent's current credentials and token, or why there are none.
#[derive(Clone, Debug, Default)]
pub struct CredentialState {
    /// The certificate and key; `None` before the first success, and after their expiry if
    /// enrolment fails.
    pub credentials: Option<Arc<Credentials>>,
    /// The gateway's token, if the agent inherited it.
    pub token: Option<Secret>,
    /// The error of the last attempt to get credentials; `None` if it succeeded.
    pub failure: Option<String>,
}

/// Why a certificate or key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading one of the operator's files failed.
    #[error("can't read {path}")]
    Read {
        /// The file of the chain or of the key.
        path: std::path::PathBuf,
        /// The error of reading it.
        source: std::io::Error,
    },
    /// The chain or the key is not PEM.
    #[error("no PEM certificate or key")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// The chain is empty.
    #[error("there is no certificate")]
    Empty,
    /// The leaf is not an X.509 certificate.
    #[error("the certificate can't be parsed")]
    Certificate,
    /// The key does not belong to the certificate, or has an unknown kind.
    #[error("the key can't be used with the certificate")]
    Key(#[from] rustls::Error),
}

impl Credentials {
    /// Returns the credentials of a certificate chain in PEM and its key.
    ///
    /// # Errors
    /// The chain or the key can't be parsed, or they don't belong together.
    pub fn new(chain: &[u8], key: PrivateKeyDer<'static>) -> Result<Self, Error> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>()?;
        let leaf = chain.first().ok_or(Error::Empty)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| Error::Certificate)?;
        let not_after = parsed.validity().not_after.to_datetime();
        let certified_key = CertifiedKey::from_der(chain, key, &trust::crypto_provider())?;
        Ok(Self { certified_key: Arc::new(certified_key), not_after })
    }

    /// Returns the time from `now` to the end of the certificate's validity; zero if it has
    /// expired.
    pub fn remaining_validity(&self, now: OffsetDateTime) -> Duration {
        (self.not_after - now).try_into().unwrap_or(Duration::ZERO)
    }

    /// Reads credentials from `files`. Returns the contents of the files too, to detect changes.
    async fn read_files(files: &CertificateFiles) -> Result<(Self, [Vec<u8>; 2]), Error> {
        let read = async |path: &std::path::PathBuf| {
            tokio::fs::read(path).await.map_err(|source| Error::Read { path: path.clone(), source })
        };
        let contents = [read(&files.chain).await?, read(&files.key).await?];
        let key = PrivateKeyDer::from_pem_slice(&contents[1])?;
        Ok((Self::new(&contents[0], key)?, contents))
    }
}

/// The interval at which the files are read. Unlike inotify, polling works with bind mounts and
/// Kubernetes secrets.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Publishes the credentials in `files`, now and whenever they change. If the new files can't be
/// used, logs and publishes the failure, and the old credentials stay in use. Never returns.
pub(super) async fn follow_files(files: CertificateFiles, sender: watch::Sender<CredentialState>) {
    let mut loaded = None;
    let mut logged_failure = None;
    loop {
        match Credentials::read_files(&files).await {
            Ok((credentials, contents)) => {
                if loaded.as_ref() != Some(&contents) {
                    info!(chain = %files.chain.display(), expires = %credentials.not_after, "certificate loaded");
                    loaded = Some(contents);
                    sender.send_modify(|state| {
                        *state =
                            CredentialState { credentials: Some(Arc::new(credentials)), ..CredentialState::default() }
                    });
                } else if logged_failure.is_some() {
                    info!(chain = %files.chain.display(), "the certificate can be loaded again");
                    sender.send_modify(|state| state.failure = None);
                }
                logged_failure = None;
            }
            Err(error) => {
                let failure = crate::error_chain::error_chain(&error);
                if logged_failure.as_ref() != Some(&failure) {
                    warn!(
                        chain = %files.chain.display(), key = %files.key.display(), error = %failure,
                        "can't load the certificate; trying again every {} s", POLL_INTERVAL.as_secs()
                    );
                    sender.send_modify(|state| state.failure = Some(failure.clone()));
                    logged_failure = Some(failure);
                }
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_restored_file_ends_the_failure() {
        let directory = tempfile::tempdir().unwrap();
        let [chain, key, moved] = ["chain.pem", "key.pem", "moved.pem"].map(|name| directory.path().join(name));
        let pair = rcgen::generate_simple_self_signed(["agent".to_owned()]).unwrap();
        std::fs::write(&chain, pair.cert.pem()).unwrap();
        std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        let (sender, mut state) = watch::channel(CredentialState::default());
        let shutdown = crate::shutdown::Shutdown::new();
        let files = CertificateFiles { chain: chain.clone(), key };
        shutdown.spawn(follow_files(files, sender));
        state.wait_for(|state| state.credentials.is_some()).await.unwrap();
        std::fs::rename(&chain, &moved).unwrap();
        state.wait_for(|state| state.failure.is_some()).await.unwrap();
        std::fs::rename(&moved, &chain).unwrap();
        let back = state.wait_for(|state| state.failure.is_none()).await.unwrap();
        assert!(back.credentials.is_some());
    }
}

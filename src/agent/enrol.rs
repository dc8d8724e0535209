//! One enrolment, from the agent's side: a new key, a request, a proof shown, a certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::connector::{self, Connector};
use super::credentials::{self, Credentials};
use super::show::Showing;
use crate::attest::{self, Answer, Challenge, DEADLINE, Enrolled, Lines, Refused, Request};
use crate::secret::Secret;

/// How the agent proves who it is.
#[derive(Clone, Debug)]
pub enum Proving {
    /// By showing a proof in its container.
    Show(Showing),
    /// By the service-account token of its pod in this file, which the kubelet rotates.
    Token(PathBuf),
}

/// No certificate this time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sidecar can't be reached or isn't trusted.
    #[error(transparent)]
    Connect(#[from] connector::Error),
    /// The sidecar refuses.
    #[error("the sidecar refuses: {0}")]
    Refused(Refused),
    /// The conversation broke down.
    #[error("enrolment broke down")]
    Broken(#[from] attest::Error),
    /// It took too long.
    #[error("no enrolment within {} s", DEADLINE.as_secs())]
    Deadline,
    /// The sidecar can't read proofs shown this way.
    #[error("the sidecar does not take proofs shown as a {0:?}")]
    Way(attest::Way),
    /// The proof can't be shown.
    #[error("can't show the proof")]
    Show(#[source] io::Error),
    /// The token can't be read. It is never part of this.
    #[error("can't read the service-account token {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No key or request can be made.
    #[error("can't make a certificate request")]
    Key(#[from] rcgen::Error),
    /// What the sidecar sent is no certificate for the key.
    #[error("the sidecar sent a certificate of no use")]
    Certificate(#[from] credentials::Error),
}

/// Enrols once with the sidecar.
///
/// # Errors
/// If there is no certificate in the end; see [`Error`].
pub(super) async fn enrol(connector: &Connector, proving: &Proving) -> Result<(Arc<Credentials>, Option<Secret>), Error> {
    let conversation = async {
        let stream = connector.for_enrolment().await?;
        match proving {
            Proving::Show(showing) => converse(stream, showing).await,
            Proving::Token(file) => converse_by_token(stream, file).await,
        }
    };
    timeout(DEADLINE, conversation).await.map_err(|_| Error::Deadline)?
}

/// The conversation on a connection that negotiated [`attest::ALPN`].
///
/// # Errors
/// As [`Error`] says, except that there is no deadline.
pub async fn converse<S>(stream: S, showing: &Showing) -> Result<(Arc<Credentials>, Option<Secret>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
    let mut lines = Lines::new(stream);
    lines.send(&Request { csr, token: None }).await?;
    let challenge: Challenge = granted(lines.receive().await?)?;
    if !challenge.show.contains(&showing.way()) {
        return Err(Error::Way(showing.way()));
    }

    let proof = attest::proof(&challenge.nonce, &key.subject_public_key_info());
    let showing = showing.clone();
    let shows = tokio::task::spawn_blocking(move || showing.show(&proof)).await.map_err(io::Error::other);
    let shows = shows.and_then(|shows| shows).map_err(Error::Show)?;
    lines.send(&shows.shown()).await?;
    let answer = lines.receive().await;
    // Dropping it waits for the helper's end; the proof is gone before anything else happens.
    let _ = tokio::task::spawn_blocking(move || drop(shows)).await;

    credentials(granted(answer?)?, &key)
}

/// The same with the service-account token in `file`. The connection must be to a sidecar that was verified.
///
/// # Errors
/// As [`Error`] says, except that there is no deadline.
pub async fn converse_by_token<S>(stream: S, file: &Path) -> Result<(Arc<Credentials>, Option<Secret>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = file.to_owned();
    let token = tokio::task::spawn_blocking(move || Secret::read_file(&path)).await.map_err(io::Error::other);
    let token = token.and_then(|token| token).map_err(|source| Error::Token { path: file.to_owned(), source })?;
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
    let mut lines = Lines::new(stream);
    lines.send(&Request { csr, token: Some(token) }).await?;
    credentials(granted(lines.receive().await?)?, &key)
}

fn credentials(enrolled: Enrolled, key: &KeyPair) -> Result<(Arc<Credentials>, Option<Secret>), Error> {
    let Enrolled { certificate, token } = enrolled;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((Arc::new(Credentials::new(certificate.as_bytes(), key)?), token))
}

fn granted<T>(answer: Answer<T>) -> Result<T, Error> {
    match answer {
        Answer::Granted(granted) => Ok(granted),
        Answer::Refused(refused) => Err(Error::Refused(refused)),
    }
}

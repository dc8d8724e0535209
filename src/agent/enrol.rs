//! One enrolment, the agent's side: makes a key and a certificate request, shows a proof, and
//! receives the certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::connector::{self, Connector};
use super::credentials::{self, Credentials};
use super::show::ProofMethod;
use crate::enrolment_protocol::{
    self, Challenge, ENROLMENT_TIMEOUT, Enrolled, EnrolmentRefused, EnrolmentRequest, JsonLines, Reply,
};
use crate::secret::Secret;

/// How the agent proves which container or pod it is.
#[derive(Clone, Debug)]
pub enum Attestation {
    /// By a proof that it shows in its container.
    Show(ProofMethod),
    /// By the service-account token of its pod, which the kubelet writes to this file and rotates.
    Token(PathBuf),
}

/// Why an enrolment failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection for an enrolment.
    #[error(transparent)]
    Connect(#[from] connector::Error),
    /// The sidecar answered with this refusal.
    #[error("the sidecar refuses: {0}")]
    Refused(EnrolmentRefused),
    /// The connection broke, or the sidecar sent a malformed line.
    #[error("the enrolment failed")]
    Broken(#[from] enrolment_protocol::Error),
    /// Connecting and the enrolment took longer than [`ENROLMENT_TIMEOUT`].
    #[error("no enrolment within {} s", ENROLMENT_TIMEOUT.as_secs())]
    Deadline,
    /// The sidecar's challenge does not list this kind of proof.
    #[error("the sidecar does not accept proofs of this kind ({0:?}): see its option agents.proofs")]
    Kind(enrolment_protocol::ProofKind),
    /// The helper process can't be started, or the file can't be created.
    #[error("can't show the proof")]
    Show(#[source] io::Error),
    /// Reading the token failed. The message never contains the token.
    #[error("can't read the service-account token {path}")]
    Token {
        /// The path in [`Attestation::Token`].
        path: PathBuf,
        /// The error of reading the file.
        source: io::Error,
    },
    /// The key or the certificate request can't be made.
    #[error("can't make a certificate request")]
    Key(#[from] rcgen::Error),
    /// The sidecar's last line has no certificate for the key.
    #[error("the sidecar sent an unusable certificate")]
    Certificate(#[from] credentials::Error),
}

/// Enrols once with the sidecar. Returns the credentials, and the gateway's token if the agent
/// inherits it.
///
/// # Errors
/// See [`Error`].
pub(super) async fn enrol(
    connector: &Connector,
    attestation: &Attestation,
) -> Result<(Arc<Credentials>, Option<Secret>), Error> {
    let conversation = async {
        let stream = connector.connect_for_enrolment().await?;
        match attestation {
            Attestation::Show(method) => enrol_by_proof(stream, method).await,
            Attestation::Token(file) => enrol_by_token(stream, file).await,
        }
    };
    timeout(ENROLMENT_TIMEOUT, conversation).await.map_err(|_| Error::Deadline)?
}

/// Enrols by a shown proof, on a connection that negotiated [`enrolment_protocol::ALPN`].
///
/// # Errors
/// See [`Error`]; never [`Error::Deadline`].
pub async fn enrol_by_proof<S>(stream: S, method: &ProofMethod) -> Result<(Arc<Credentials>, Option<Secret>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
    let mut lines = JsonLines::new(stream);
    lines.send(&EnrolmentRequest { csr, token: None }).await?;
    let challenge: Challenge = require_granted(lines.receive().await?)?;
    if !challenge.show.contains(&method.kind()) {
        return Err(Error::Kind(method.kind()));
    }

    let proof = enrolment_protocol::proof_for_key(&challenge.nonce, &key.subject_public_key_info());
    let method = method.clone();
    let visible = tokio::task::spawn_blocking(move || method.show(&proof)).await.map_err(io::Error::other);
    let visible = visible.and_then(|visible| visible).map_err(Error::Show)?;
    lines.send(&visible.to_message()).await?;
    let answer = lines.receive().await;
    // The proof is removed before the reply is used. The drop blocks, since it waits for the helper
    // process to exit.
    let _ = tokio::task::spawn_blocking(move || drop(visible)).await;

    to_credentials(require_granted(answer?)?, &key)
}

/// Enrols by the service-account token in `file`. The sidecar's certificate must have been
/// verified, so that no one else gets the token.
///
/// # Errors
/// See [`Error`]; never [`Error::Deadline`].
pub async fn enrol_by_token<S>(stream: S, file: &Path) -> Result<(Arc<Credentials>, Option<Secret>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = file.to_owned();
    let token = tokio::task::spawn_blocking(move || Secret::read_file(&path)).await.map_err(io::Error::other);
    let token = token.and_then(|token| token).map_err(|source| Error::Token { path: file.to_owned(), source })?;
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
    let mut lines = JsonLines::new(stream);
    lines.send(&EnrolmentRequest { csr, token: Some(token) }).await?;
    to_credentials(require_granted(lines.receive().await?)?, &key)
}

fn to_credentials(enrolled: Enrolled, key: &KeyPair) -> Result<(Arc<Credentials>, Option<Secret>), Error> {
    let Enrolled { certificate, token } = enrolled;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((Arc::new(Credentials::new(certificate.as_bytes(), key)?), token))
}

fn require_granted<T>(answer: Reply<T>) -> Result<T, Error> {
    match answer {
        Reply::Next(message) => Ok(message),
        Reply::Refused(refused) => Err(Error::Refused(refused)),
    }
}

//! The messages of the enrolment protocol, and the proof that agent and sidecar derive.
//!
//! The protocol runs on a TLS connection that negotiated [`ALPN`]. Each line is a JSON object of at
//! most [`MAX_LINE`] bytes:
//!
//! ```text
//! agent    {"csr": "-----BEGIN CERTIFICATE REQUEST-----\n..."}
//! sidecar  {"nonce": "3q2-7w...", "show": ["process"]}
//! agent    {"shown": "process"}   or   {"shown": "file", "path": "/var/lib/loopgate-proof/loopgate-proof-..."}
//! sidecar  {"certificate": "-----BEGIN CERTIFICATE-----\n...", "token": "..."}
//! ```
//!
//! On Kubernetes no proof is shown. The agent's first line has the service-account token of its pod
//! too. The sidecar has the API server review the token, and answers with the certificate at once.
//!
//! ```text
//! agent    {"csr": "-----BEGIN CERTIFICATE REQUEST-----\n...", "token": "eyJ..."}
//! sidecar  {"certificate": "-----BEGIN CERTIFICATE-----\n...", "token": "..."}
//! ```
//!
//! In place of any line the sidecar may send a refusal such as `{"error": "proof-not-found",
//! "message": "..."}`, and close the connection. There is no renewal: an agent enrols again, so a
//! stolen certificate can't be renewed.

use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The protocol's name in the TLS handshake (RFC 7301).
pub const ALPN: &[u8] = b"loopgate-enrol/1";
/// The maximum length of a line, in bytes.
pub const MAX_LINE: u64 = 16 * 1024;
/// The timeout of a whole enrolment, and so the lifetime of a nonce.
pub const ENROLMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// The first argument (`argv[0]`) of the helper process that shows a proof, whatever the program's
/// file is called.
pub const PROOF_PROCESS_NAME: &str = "loopgate";
/// The hidden subcommand of the helper process. Its only argument is a proof:
/// `loopgate attest-proof loopgate-proof-...`.
pub const PROOF_SUBCOMMAND: &str = "attest-proof";
/// The prefix of every proof.
pub const PROOF_PREFIX: &str = "loopgate-proof-";

/// The directory in the agent's container in which a proof is shown as a file. It must be on the
/// container's own file system, and not on a mount.
pub const PROOF_DIRECTORY: &str = "/var/lib/loopgate-proof";
/// The mode of a proof file: the sticky bit, and readable by its owner. Programs that save fetched
/// files don't set this mode.
pub const PROOF_MODE: u32 = 0o1400;
/// The modification time of a proof file: seconds since the Unix epoch, and nanoseconds. Programs
/// that take the time from an HTTP header set whole seconds.
pub const PROOF_MTIME: (i64, u32) = (1_000_000_000, 516_041_219);

/// Returns the proof that the agent must show. It is derived from the sidecar's nonce and the
/// agent's public key, so it is valid for no other key.
///
/// `public_key` is the SubjectPublicKeyInfo in DER. The proof is a valid file name: letters,
/// digits, `-` and `_`.
pub fn proof_for_key(nonce: &Nonce, public_key: &[u8]) -> String {
    let mut digest = Context::new(&SHA256);
    digest.update(b"loopgate-proof v1\0");
    digest.update(&nonce.0);
    digest.update(public_key);
    format!("{PROOF_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(digest.finish()))
}

/// 32 random bytes for one enrolment on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce([u8; 32]);

impl Nonce {
    /// Returns a new random nonce.
    ///
    /// # Panics
    /// If the system has no source of random bytes.
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
        Self(bytes)
    }
}

impl Serialize for Nonce {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(serde::de::Error::custom)?;
        bytes.try_into().map(Self).map_err(|_| serde::de::Error::custom("a nonce has 32 bytes"))
    }
}

/// The agent's first line: the request for a certificate.
#[derive(Debug, Serialize, Deserialize)]
pub struct EnrolmentRequest {
    /// The PKCS#10 request in PEM, signed by the key that the certificate is for. Only the public
    /// key in it is used.
    pub csr: String,
    /// The service-account token of the agent's pod. Sent only to a sidecar whose certificate was
    /// verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// The sidecar's first line: the demand for a proof.
#[derive(Debug, Serialize, Deserialize)]
pub struct Challenge {
    /// The nonce of this enrolment.
    pub nonce: Nonce,
    /// The kinds of proof that the sidecar accepts.
    pub show: Vec<ProofKind>,
}

/// The way in which a proof is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProofKind {
    /// As the argument of a process, which the sidecar reads by `GET /containers/{id}/top`.
    Process,
    /// As the name of a file, which the sidecar reads by `HEAD /containers/{id}/archive`.
    File,
    /// A kind that only a newer version of loopgate knows.
    #[serde(other)]
    Unknown,
}

/// The agent's second line: how the proof is shown now.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "shown", rename_all = "kebab-case")]
pub enum ProofShown {
    /// As the argument of a process with the subcommand [`PROOF_SUBCOMMAND`].
    Process,
    /// As the name of a file.
    File {
        /// The file's path in the agent's container.
        path: PathBuf,
    },
}

/// The sidecar's last line: the certificate.
#[derive(Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// The certificate chain in PEM, leaf first.
    pub certificate: String,
    /// The gateway's token, if the operator lets attested agents inherit it
    /// (`agents.inherit_token`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// The sidecar's refusal, sent instead of any other line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct EnrolmentRefused {
    /// The reason, for programs.
    pub error: RefusalReason,
    /// The reason in words, and what the operator can do.
    pub message: String,
}

/// Why an enrolment is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// No labelled container has the source address.
    NotAnAgent,
    /// The container is an agent by its address alone, and such agents get no certificate.
    AddressAgent,
    /// There were too many attempts from this address.
    TooMany,
    /// A line is not the expected JSON object.
    Malformed,
    /// The certificate request is malformed, is not signed by its own key, or has a kind of key
    /// that is not supported.
    BadRequest,
    /// No proof was shown in time.
    Expired,
    /// The container does not show the proof.
    ProofNotFound,
    /// The proof is at a place where other containers could have put it.
    ProofMisplaced,
    /// The container stopped, or lost its label or its address, during the enrolment.
    AgentGone,
    /// Docker can't be reached.
    Docker,
    /// The sidecar does not accept this kind of proof, or needs a token instead, or no token.
    WrongProof,
    /// The API server does not accept the token, or it is bound to another pod.
    BadToken,
    /// The Kubernetes API server can't be reached.
    Kubernetes,
    /// The sidecar can't sign or read what it needs.
    Internal,
    /// A reason of a newer sidecar.
    #[serde(other)]
    Unknown,
}

impl RefusalReason {
    /// Returns the reason as the metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotAnAgent => "not_an_agent",
            Self::AddressAgent => "address_agent",
            Self::TooMany => "too_many",
            Self::Malformed => "malformed",
            Self::BadRequest => "bad_request",
            Self::Expired => "expired",
            Self::ProofNotFound => "proof_not_found",
            Self::ProofMisplaced => "proof_misplaced",
            Self::AgentGone => "agent_gone",
            Self::Docker => "docker",
            Self::WrongProof => "wrong_proof",
            Self::BadToken => "bad_token",
            Self::Kubernetes => "kubernetes",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }
}

/// A line from the sidecar: the next step of the protocol, or a refusal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply<T> {
    /// The enrolment is refused.
    Refused(EnrolmentRefused),
    /// The message of the next step.
    Next(T),
}

/// Why a line could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke while a line was sent or received.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// The connection was closed before the end of the line.
    #[error("the connection was closed")]
    Closed,
    /// The line is longer than [`MAX_LINE`].
    #[error("a line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// The line is not the expected JSON object. The parser's message is omitted, since it may
    /// quote a token.
    #[error("malformed line in the enrolment protocol")]
    Syntax,
}

/// A stream on which both sides send JSON objects, one in each line.
#[derive(Debug)]
pub struct JsonLines<S>(BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> JsonLines<S> {
    /// Returns a reader and writer of JSON lines on `stream`.
    pub fn new(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    /// Sends `message` as one line.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), Error> {
        let mut line = Zeroizing::new(serde_json::to_vec(message).map_err(|_| Error::Syntax)?);
        line.push(b'\n');
        self.0.write_all(&line).await?;
        Ok(self.0.flush().await?)
    }

    /// Receives one line.
    ///
    /// # Errors
    /// The connection failed or was closed, or the line is too long or not a `T`.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let mut line = Zeroizing::new(Vec::new());
        (&mut self.0).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        match line.last() {
            Some(b'\n') => serde_json::from_slice(&line).map_err(|_| Error::Syntax),
            Some(_) if line.len() as u64 == MAX_LINE => Err(Error::TooLong),
            _ => Err(Error::Closed),
        }
    }

    /// Shuts down the sending side of the connection.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn shutdown(&mut self) -> std::io::Result<()> {
        self.0.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_for_one_nonce_and_one_key() {
        let nonce = Nonce([7; 32]);
        let shown = proof_for_key(&nonce, b"key");
        assert_eq!(shown, "loopgate-proof-LA1ETAKeQF8LpHw74kctp14wmUjFLpZ2paqBOKvuacA");
        assert_ne!(shown, proof_for_key(&Nonce([8; 32]), b"key"));
        assert_ne!(shown, proof_for_key(&nonce, b"another"));
        assert_ne!(Nonce::random(), Nonce::random());
    }

    #[test]
    fn the_lines_read_as_documented() {
        let challenge = Challenge { nonce: Nonce([0; 32]), show: vec![ProofKind::Process, ProofKind::File] };
        let line = serde_json::to_string(&Reply::Next(challenge)).unwrap();
        assert_eq!(line, format!(r#"{{"nonce":"{}","show":["process","file"]}}"#, "A".repeat(43)));
        let shown: ProofShown = serde_json::from_str(r#"{"shown":"file","path":"/tmp/x"}"#).unwrap();
        assert_eq!(shown, ProofShown::File { path: "/tmp/x".into() });
        assert_eq!(serde_json::to_string(&ProofShown::Process).unwrap(), r#"{"shown":"process"}"#);
        let answer: Reply<Enrolled> = serde_json::from_str(r#"{"error":"too-clever","message":"no"}"#).unwrap();
        assert!(matches!(answer, Reply::Refused(EnrolmentRefused { error: RefusalReason::Unknown, .. })));
        let answer: Reply<Enrolled> = serde_json::from_str(r#"{"certificate":"PEM","token":"t"}"#).unwrap();
        assert!(matches!(answer, Reply::Next(Enrolled { token: Some(_), .. })));
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_refused() {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let mut theirs = theirs;
        theirs.write_all(&[b'x'; 20 * 1024]).await.unwrap();
        assert!(matches!(JsonLines::new(ours).receive::<EnrolmentRequest>().await, Err(Error::TooLong)));
    }

    #[tokio::test]
    async fn a_line_without_its_end_is_refused() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(br#"{"csr":"x"}"#).await.unwrap();
        drop(theirs);
        assert!(matches!(JsonLines::new(ours).receive::<EnrolmentRequest>().await, Err(Error::Closed)));
    }
}

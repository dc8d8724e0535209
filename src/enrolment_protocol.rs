//! The enrolment protocol, and the proof that both sides derive.
//!
//! On a TLS connection that negotiated [`ALPN`], one JSON object a line, [`MAX_LINE`] bytes at most:
//!
//! ```text
//! agent    {"csr": "-----BEGIN CERTIFICATE REQUEST-----\n..."}
//! sidecar  {"nonce": "3q2-7w...", "show": ["process"]}
//! agent    {"shown": "process"}   or   {"shown": "file", "path": "/var/lib/loopgate-proof/loopgate-proof-..."}
//! sidecar  {"certificate": "-----BEGIN CERTIFICATE-----\n...", "token": "..."}
//! ```
//!
//! On Kubernetes nothing is shown: the agent's first line carries its pod's service-account token
//! with the request, and the sidecar, which has the API server review the token, answers with the
//! certificate at once.
//!
//! ```text
//! agent    {"csr": "-----BEGIN CERTIFICATE REQUEST-----\n...", "token": "eyJ..."}
//! sidecar  {"certificate": "-----BEGIN CERTIFICATE-----\n...", "token": "..."}
//! ```
//!
//! Instead of any of its lines the sidecar may send `{"error": "proof-not-found", "message":
//! "..."}`, and closes. There is no renewal: an agent enrols again, so a stolen certificate can't
//! be prolonged.

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
/// The longest line that either side accepts, in bytes.
pub const MAX_LINE: u64 = 16 * 1024;
/// How long a whole enrolment may take, and so how long a nonce lives.
pub const ENROLMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// The name of the process that shows a proof, whatever the program's file is called.
pub const PROOF_PROCESS_NAME: &str = "loopgate";
/// The hidden subcommand whose one argument is a proof: `loopgate attest-proof loopgate-proof-...`.
pub const PROOF_SUBCOMMAND: &str = "attest-proof";
/// The prefix of every proof.
pub const PROOF_PREFIX: &str = "loopgate-proof-";

/// The directory in which a proof is shown as a file, in the agent's container. It must belong to
/// the container's own file system.
pub const PROOF_DIRECTORY: &str = "/var/lib/loopgate-proof";
/// The mode of such a file: the sticky bit, and readable by its owner. Programs that save what they
/// fetch don't make such files.
pub const PROOF_MODE: u32 = 0o1400;
/// The modification time of such a file: seconds since the Unix epoch, and nanoseconds. A time from
/// an HTTP header has whole seconds.
pub const PROOF_MTIME: (i64, u32) = (1_000_000_000, 516_041_219);

/// Returns the proof that the agent must show, derived from the sidecar's nonce and the agent's
/// public key: it serves no other key.
///
/// `public_key` is the DER of the SubjectPublicKeyInfo. The proof is a valid file name: letters, digits, `-` and `_`.
pub fn proof(nonce: &Nonce, public_key: &[u8]) -> String {
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

/// The agent's first line.
#[derive(Debug, Serialize, Deserialize)]
pub struct EnrolmentRequest {
    /// A PKCS#10 request in PEM, signed by the key that the certificate is for. Only its public key counts.
    pub csr: String,
    /// The service-account token of the agent's pod. Sent only to a sidecar whose certificate was verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// The sidecar's first line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Challenge {
    /// The nonce of this conversation.
    pub nonce: Nonce,
    /// The kinds of proof that the sidecar accepts.
    pub show: Vec<ProofKind>,
}

/// A kind of proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProofKind {
    /// The argument of a process, seen through `GET /containers/{id}/top`.
    Process,
    /// The name of a file, seen through `HEAD /containers/{id}/archive`.
    File,
    /// A kind that a newer sidecar added.
    #[serde(other)]
    Unknown,
}

/// The agent's second line: the proof can be seen now.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "shown", rename_all = "kebab-case")]
pub enum ProofShown {
    /// As the argument of [`PROOF_SUBCOMMAND`].
    Process,
    /// As the name of a file.
    File {
        /// Its path in the agent's container.
        path: PathBuf,
    },
}

/// The sidecar's last line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// The chain in PEM, leaf first.
    pub certificate: String,
    /// The gateway's token, where the operator lets attested agents inherit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// The sidecar's refusal, sent instead of any other line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct EnrolmentRefused {
    /// The reason, for programs.
    pub error: RefusalReason,
    /// The message for people, with what the operator can do.
    pub message: String,
}

/// Why an enrolment is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// No labelled container has the source address.
    NotAnAgent,
    /// The container is an agent by its address alone, and gets no certificate.
    AddressAgent,
    /// Too many attempts from this address.
    TooMany,
    /// A line is not what the protocol expects.
    Malformed,
    /// The request is not signed by its own key, or of a kind that can't be certified.
    BadRequest,
    /// No proof was shown in time.
    Expired,
    /// The container does not show the proof.
    ProofNotFound,
    /// The proof is where other containers could have put it.
    ProofMisplaced,
    /// The container stopped, or lost its label or its address, meanwhile.
    AgentGone,
    /// Docker can't be reached.
    Docker,
    /// The kind of proof does not fit the sidecar's source of agents.
    WrongProof,
    /// The token is not accepted, or is another pod's.
    BadToken,
    /// The Kubernetes API server can't be reached.
    Kubernetes,
    /// The sidecar can't sign or read what it needs.
    Internal,
    /// A kind that a newer sidecar added.
    #[serde(other)]
    Unknown,
}

impl RefusalReason {
    /// Returns the reason in one word, as the metric names it.
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
    /// The step was granted; holds what the agent needs for the next one.
    Granted(T),
}

/// Why a conversation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// It ended before the line did.
    #[error("the connection was closed")]
    Closed,
    /// The line is longer than [`MAX_LINE`].
    #[error("a line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// The line is not the expected JSON object. The parser's message is left out: it may quote a token.
    #[error("malformed line in the enrolment protocol")]
    Syntax,
}

/// A stream on which lines of JSON go both ways.
#[derive(Debug)]
pub struct JsonLines<S>(BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> JsonLines<S> {
    /// Exchanges lines on `stream`.
    pub fn new(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    /// Sends `message` as one line.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), Error> {
        let mut line = Zeroizing::new(serde_json::to_vec(message).map_err(|_| Error::Syntax)?);
        line.push(b'\n');
        self.0.write_all(&line).await?;
        Ok(self.0.flush().await?)
    }

    /// Receives one line.
    ///
    /// # Errors
    /// If the connection fails or ends, or the line is too long or not a `T`.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let mut line = Zeroizing::new(Vec::new());
        (&mut self.0).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        match line.last() {
            Some(b'\n') => serde_json::from_slice(&line).map_err(|_| Error::Syntax),
            Some(_) if line.len() as u64 == MAX_LINE => Err(Error::TooLong),
            _ => Err(Error::Closed),
        }
    }

    /// Closes the sending side.
    ///
    /// # Errors
    /// If the connection fails.
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
        let shown = proof(&nonce, b"key");
        assert_eq!(shown, "loopgate-proof-LA1ETAKeQF8LpHw74kctp14wmUjFLpZ2paqBOKvuacA");
        assert_ne!(shown, proof(&Nonce([8; 32]), b"key"));
        assert_ne!(shown, proof(&nonce, b"another"));
        assert_ne!(Nonce::random(), Nonce::random());
    }

    #[test]
    fn the_lines_read_as_documented() {
        let challenge = Challenge { nonce: Nonce([0; 32]), show: vec![ProofKind::Process, ProofKind::File] };
        let line = serde_json::to_string(&Reply::Granted(challenge)).unwrap();
        assert_eq!(line, format!(r#"{{"nonce":"{}","show":["process","file"]}}"#, "A".repeat(43)));
        let shown: ProofShown = serde_json::from_str(r#"{"shown":"file","path":"/tmp/x"}"#).unwrap();
        assert_eq!(shown, ProofShown::File { path: "/tmp/x".into() });
        assert_eq!(serde_json::to_string(&ProofShown::Process).unwrap(), r#"{"shown":"process"}"#);
        let answer: Reply<Enrolled> = serde_json::from_str(r#"{"error":"too-clever","message":"no"}"#).unwrap();
        assert!(matches!(answer, Reply::Refused(EnrolmentRefused { error: RefusalReason::Unknown, .. })));
        let answer: Reply<Enrolled> = serde_json::from_str(r#"{"certificate":"PEM","token":"t"}"#).unwrap();
        assert!(matches!(answer, Reply::Granted(Enrolled { token: Some(_), .. })));
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_off() {
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

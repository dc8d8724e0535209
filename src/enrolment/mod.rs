//! Attested enrolment: a certificate request in, a proof read through Docker, a short-lived certificate out.
//!
//! [`crate::attest`] has the protocol. A nonce lives in the task of the one connection that it was made for, and nowhere else: so it is
//! bound to that connection and its source address, can't be used twice, and dies with the conversation's deadline. What must be shown
//! is derived from the nonce and the requested public key, so it serves no other key. And it is looked for only in the container that
//! discovery knows by the source address, or one that shares its network namespace: whoever merely forges the address sees the nonce,
//! but can't show anything in there.

mod docker_proofs;
mod limiter;
mod proof;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

pub use crate::agent_id::AgentId;
pub use docker_proofs::DockerProofs;
pub use proof::{Entry, Housemate, ProofReader, ReadError};

use crate::addr::PeerAddr;
use crate::attest::{self, Answer, Challenge, DEADLINE, Enrolled, Lines, Nonce, Reason, Refused, Request, Shown, Way};
use crate::causes::said;
use crate::config::Config;
use crate::discovery::{Agent, Proof, View};
use crate::metrics::enrolment::Enrolments;
use crate::metrics::traffic::count;
use crate::pki::CertificateAuthority;
use crate::secret::Secret;
use limiter::Limiter;

/// Conversations at once, whoever has them.
const MAX_CONVERSATIONS: usize = 32;
/// How long Docker's word of a new container may take.
const NEWS: Duration = Duration::from_secs(1);
/// How long an answer may take to leave.
const GOODBYE: Duration = Duration::from_secs(2);

/// Signs certificates for agents that prove which container they are.
pub struct Enrolment<P = DockerProofs> {
    view: watch::Receiver<Arc<View>>,
    authority: Option<Arc<CertificateAuthority>>,
    proofs: Option<P>,
    trust_domain: String,
    certificate_life: Duration,
    /// The gateway's token for agents that inherit it.
    token_file: Option<PathBuf>,
    limiter: Limiter,
    places: Semaphore,
    metrics: Enrolments,
}

/// Why a conversation ended without a certificate.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The agent is told.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The agent is told that Docker can't be asked, but not more.
    #[error("Docker can't be asked")]
    Read(#[from] ReadError),
    /// Nobody is left to tell.
    #[error("the conversation broke down")]
    Broken(#[from] attest::Error),
}

impl<P: ProofReader> Enrolment<P> {
    /// Enrolment of the agents in `view`, by certificates of `authority`. Without that, or without a reader of proofs, everybody is
    /// refused.
    pub fn new(config: &Config, view: watch::Receiver<Arc<View>>, authority: Option<Arc<CertificateAuthority>>, proofs: Option<P>) -> Self {
        Self {
            view,
            authority,
            proofs,
            trust_domain: config.agents.trust_domain.clone(),
            certificate_life: config.agents.certificate_life,
            token_file: config.gateway.token_file.clone().filter(|_| config.agents.inherit_token),
            limiter: Limiter::default(),
            places: Semaphore::new(MAX_CONVERSATIONS),
            metrics: Enrolments::default(),
        }
    }

    /// What is counted here.
    pub fn metrics(&self) -> &Enrolments {
        &self.metrics
    }

    /// Holds the conversation with `peer` on a connection that negotiated [`attest::ALPN`], to its end.
    pub async fn serve<S>(&self, stream: S, peer: PeerAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut lines = Lines::new(stream);
        let outcome = timeout(DEADLINE, self.converse(&mut lines, peer)).await;
        let error = match outcome.unwrap_or_else(|_| Err(refuse(Reason::Expired, "no proof was shown in time"))) {
            Ok(()) => {
                self.metrics.issued.inc();
                let _ = timeout(GOODBYE, lines.shutdown()).await;
                return;
            }
            Err(error) => error,
        };
        let refused = match &error {
            Error::Refused(refused) => refused.clone(),
            Error::Read(_) => refused(Reason::Docker, "Docker can't be asked for the proof; the sidecar's log says why"),
            Error::Broken(attest::Error::Syntax | attest::Error::TooLong) => refused(Reason::Malformed, "this is not what was expected"),
            Error::Broken(broken) => {
                count(&self.metrics.refused, "broken");
                return debug!(%peer, error = %broken, "an enrolment broke down");
            }
        };
        count(&self.metrics.refused, refused.error.label());
        let (reason, cause) = (refused.error.label(), causes(&error));
        match refused.error {
            // Anybody on the network can have these.
            Reason::NotAnAgent | Reason::AddressAgent | Reason::TooMany | Reason::Malformed => {
                info!(%peer, reason, "enrolment refused: {}", refused.message);
            }
            _ => warn!(%peer, reason, cause, "enrolment refused: {}", refused.message),
        }
        let goodbye = async {
            if lines.send(&Answer::<()>::Refused(refused)).await.is_ok() {
                let _ = lines.shutdown().await;
            }
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }

    async fn converse<S>(&self, lines: &mut Lines<S>, peer: PeerAddr) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let agent = self.await_agent_at(peer).await?;
        let Ok(_place) = self.places.try_acquire() else { return Err(refuse(Reason::TooMany, "too many agents enrol at once")) };
        if !self.limiter.admits(peer.ip()) {
            return Err(refuse(Reason::TooMany, "too many attempts from this address; wait for some seconds"));
        }
        let (Some(authority), Some(proofs)) = (&self.authority, &self.proofs) else {
            return Err(refuse(Reason::Docker, "this sidecar can't attest agents: it has no Docker, or no CA of its own"));
        };

        let Request { csr } = lines.receive().await?;
        let (csr, public_key) = parse(&csr).ok_or_else(|| refuse(Reason::BadRequest, "this is no certificate request in PEM"))?;
        let nonce = Nonce::random();
        let proof = attest::proof(&nonce, &public_key);
        lines.send(&Answer::Granted(Challenge { nonce, show: vec![Way::Process, Way::File] })).await?;
        let shown: Shown = lines.receive().await?;
        let seen_in = proof::find(proofs, &agent.id, &proof, &shown).await?;

        // The world may have moved on meanwhile, and what was proven must still be who has the address.
        if self.agent_at(peer).map_err(|_| gone())?.id != agent.id {
            return Err(gone());
        }
        let id = AgentId {
            trust_domain: self.trust_domain.clone(),
            project: agent.project.clone(),
            service: agent.service.clone(),
            container: agent.id.clone(),
        };
        let chain = authority.issue_client(&csr, &id.to_string(), self.certificate_life).map_err(|error| {
            warn!(%peer, agent = agent.name, cause = causes(&error), "can't sign: {error}");
            refuse(Reason::BadRequest, "the request can't be signed: it takes a P-256 key and a signature by it")
        })?;
        let token = self.token().await;
        info!(%peer, agent = agent.name, container = agent.id, seen_in, token = token.is_some(), "enrolled");
        Ok(lines.send(&Answer::Granted(Enrolled { certificate: pem(&chain), token })).await?)
    }

    /// The same as [`Self::agent_at`], for a container that may have started a moment ago, before Docker's word of it has arrived.
    async fn await_agent_at(&self, peer: PeerAddr) -> Result<Arc<Agent>, Error> {
        let mut view = self.view.clone();
        let _ = timeout(NEWS, view.wait_for(|view| view.agents.contains_key(&peer.ip()))).await;
        self.agent_at(peer)
    }

    /// The container that may enrol from `peer`.
    fn agent_at(&self, peer: PeerAddr) -> Result<Arc<Agent>, Error> {
        let view = self.view.borrow();
        match view.agents.get(&peer.ip()) {
            None => {
                let message = format!("no running container with the label loopgate.agent has the address {}", peer.ip());
                Err(refuse(Reason::NotAnAgent, &message))
            }
            Some(agent) if agent.proof == Proof::Attested => Ok(Arc::clone(agent)),
            Some(_) => {
                let message = "this container is admitted by its address alone; to enrol it needs the label loopgate.agent=true";
                Err(refuse(Reason::AddressAgent, message))
            }
        }
    }

    async fn token(&self) -> Option<Secret> {
        let path = self.token_file.clone()?;
        let shown = path.display().to_string();
        let read = tokio::task::spawn_blocking(move || Secret::read_file(&path)).await.map_err(std::io::Error::other);
        read.and_then(|read| read).inspect_err(|error| warn!(path = shown, %error, "agents inherit no token: it can't be read")).ok()
    }
}

fn refused(error: Reason, message: &str) -> Refused {
    Refused { error, message: message.to_owned() }
}

fn refuse(error: Reason, message: &str) -> Error {
    Error::Refused(refused(error, message))
}

fn gone() -> Error {
    refuse(Reason::AgentGone, "the container has stopped, or lost its label or its address")
}

/// What `error` comes from, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    error.source().map(said).unwrap_or_default()
}

/// The request and its SubjectPublicKeyInfo. Its signature is checked when it is signed in turn.
pub(crate) fn parse(pem: &str) -> Option<(CertificateSigningRequestDer<'static>, Vec<u8>)> {
    let csr = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (rest, parsed) = X509CertificationRequest::from_der(&csr).ok()?;
    let public_key = parsed.certification_request_info.subject_pki.raw.to_vec();
    let alone = rest.is_empty();
    alone.then_some((csr, public_key))
}

fn pem(chain: &[CertificateDer<'_>]) -> String {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    let mut text = String::new();
    for certificate in chain {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let base64 = BASE64_STANDARD.encode(certificate);
        for line in base64.as_bytes().chunks(64) {
            text.extend(line.iter().map(|byte| char::from(*byte)));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
mod tests;

//! Attested enrolment, the sidecar's side: receives a certificate request, verifies a proof, and
//! issues a short-lived certificate. [`crate::enrolment_protocol`] describes the protocol.
//!
//! With Docker the agent shows a proof in its container, and the sidecar reads it there:
//! - The proof is derived from a nonce and from the requested public key, so it is valid for no
//!   other key.
//! - The nonce exists only in the task of one connection. So it is bound to that connection and its
//!   source address, can't be used twice, and expires with the enrolment.
//! - The proof is read only in the container that discovery found at the source address, and in no
//!   other that shares its network namespace. A neighbour that forges the address receives a nonce,
//!   but can't place a proof in that container.
//!
//! On Kubernetes the proof is a service-account token that is bound to a pod: only the kubelet gets
//! such a token. The API server reviews it, and the pod must be the one that discovery found at the
//! source address.

mod docker_proofs;
mod error;
mod limiter;
mod proof;
mod proof_reader;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

pub use crate::agent_id::{AgentId, WorkloadKind};
pub use docker_proofs::DockerProofs;
pub use proof_reader::{Entry, FileStat, ProofEnvironment, ProofReader, ReadError};

use crate::addr::PeerAddr;
use crate::audit;
use crate::config::{AgentSourceKind, Config};
use crate::discovery::kubernetes::api::Api;
use crate::discovery::{Agent, AgentKind, View, agent_labels};
use crate::enrolment_protocol::{
    self, Challenge, ENROLMENT_TIMEOUT, Enrolled, EnrolmentRequest, JsonLines, Nonce, ProofKind, ProofShown,
    RefusalReason, Reply,
};
use crate::error_chain::error_chain;
use crate::metrics::enrolment::EnrolmentMetrics;
use crate::metrics::traffic::count_reason;
use crate::pki::{self, CertificateAuthority};
use crate::secret::Secret;
use error::{Error, agent_gone_error, refusal_error};
use limiter::AttemptLimiter;

/// The maximum number of proofs and tokens that are checked at the same time. Others wait.
const MAX_CONCURRENT_CHECKS: usize = 32;
/// The time to wait for discovery to find a new container.
const DISCOVERY_DELAY: Duration = Duration::from_secs(1);
/// The timeout of sending the last line and closing.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Issues certificates to agents that prove which container or pod they are.
pub struct Enrolment<P = DockerProofs> {
    view: watch::Receiver<Arc<View>>,
    authority: Option<Arc<CertificateAuthority>>,
    proofs: Option<P>,
    /// The kinds of proof that are accepted (`agents.proofs`).
    accepted_kinds: Vec<ProofKind>,
    /// The directory in the agent's container in which a proof may be shown as a file.
    proof_directory: PathBuf,
    /// The API server that reviews tokens; `None` if agents are containers.
    token_reviewer: Option<Api>,
    trust_domain: String,
    certificate_life: Duration,
    /// Whether agents inherit the gateway's token (`agents.inherit_token`).
    inherits_token: bool,
    token_file: Option<PathBuf>,
    limiter: AttemptLimiter,
    check_permits: Semaphore,
    metrics: EnrolmentMetrics,
}

impl<P: ProofReader> Enrolment<P> {
    /// Returns a service that enrols the agents in `view`, and signs their certificates with
    /// `authority`.
    ///
    /// Every enrolment is refused if there is no authority, or if there is neither a proof reader
    /// (`proofs`) nor a token reviewer ([`Self::with_token_reviewer`]).
    pub fn new(
        config: &Config,
        view: watch::Receiver<Arc<View>>,
        authority: Option<Arc<CertificateAuthority>>,
        proofs: Option<P>,
    ) -> Self {
        Self {
            view,
            authority,
            proofs,
            accepted_kinds: config.agents.proofs.clone(),
            proof_directory: enrolment_protocol::PROOF_DIRECTORY.into(),
            token_reviewer: None,
            trust_domain: config.agents.trust_domain.clone(),
            certificate_life: config.agents.certificate_life,
            inherits_token: config.agents.inherit_token,
            token_file: config.gateway.token_file.clone(),
            limiter: AttemptLimiter::default(),
            check_permits: Semaphore::new(MAX_CONCURRENT_CHECKS),
            metrics: EnrolmentMetrics::default(),
        }
    }

    /// Enrols pods instead of containers: the API server of `api` reviews their tokens.
    #[must_use]
    pub fn with_token_reviewer(self, api: Api) -> Self {
        Self { token_reviewer: Some(api), ..self }
    }

    /// Returns the metrics of enrolments.
    pub fn metrics(&self) -> &EnrolmentMetrics {
        &self.metrics
    }

    /// Serves one enrolment of `peer` on a connection that negotiated [`enrolment_protocol::ALPN`],
    /// within [`ENROLMENT_TIMEOUT`]. Counts and logs the outcome, sends the refusal if there is
    /// one, and closes the connection.
    pub async fn serve<S>(&self, stream: S, peer: PeerAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut lines = JsonLines::new(stream);
        let outcome = timeout(ENROLMENT_TIMEOUT, self.run_protocol(&mut lines, peer)).await;
        let error = match outcome
            .unwrap_or_else(|_| Err(refusal_error(RefusalReason::Expired, "the enrolment did not end in time")))
        {
            Ok(()) => {
                self.metrics.certificates_issued.inc();
                let _ = timeout(CLOSE_TIMEOUT, lines.shutdown()).await;
                return;
            }
            Err(error) => error,
        };
        let Some(refused) = error.to_refusal() else {
            count_reason(&self.metrics.attempts_refused, "broken");
            return debug!(%peer, error = error_chain(&error), "an enrolment failed");
        };
        count_reason(&self.metrics.attempts_refused, refused.error.label());
        log_refusal(peer, refused.error, &error);
        let closing = async {
            if lines.send(&Reply::<()>::Refused(refused)).await.is_ok() {
                let _ = lines.shutdown().await;
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }

    /// Speaks the protocol with the agent until it has a certificate, which is logged.
    ///
    /// # Errors
    /// The enrolment is refused, the proof can't be checked, or the connection broke.
    async fn run_protocol<S>(&self, lines: &mut JsonLines<S>, peer: PeerAddr) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        // The limit comes first, since finding out that a client is not an agent takes time.
        if !self.limiter.try_attempt(peer.ip()) {
            return Err(refusal_error(
                RefusalReason::TooMany,
                "too many attempts from this address; wait for some seconds",
            ));
        }
        let agent = self.wait_for_enrollable_agent(peer).await?;
        let Some(authority) =
            self.authority.as_ref().filter(|_| self.proofs.is_some() || self.token_reviewer.is_some())
        else {
            return Err(refusal_error(
                RefusalReason::Docker,
                "this sidecar can't attest agents: it has no access to Docker or Kubernetes, or no CA of its own",
            ));
        };

        let EnrolmentRequest { csr, token } = lines.receive().await?;
        let (csr, public_key) = parse_csr(&csr).ok_or_else(|| {
            refusal_error(RefusalReason::BadRequest, "the request is not a certificate request in PEM")
        })?;
        self.verify_proof(lines, &agent, &public_key, token).await?;

        // The view may have changed meanwhile. The container that proved itself must still have the
        // address.
        if self.find_enrollable_agent(peer).map_err(|_| agent_gone_error())?.id != agent.id {
            return Err(agent_gone_error());
        }
        let id = self.id_of(&agent);
        let chain = authority.issue_client(&csr, &id.to_string(), self.certificate_life).map_err(|error| {
            warn!(%peer, agent = agent.name, error = error_chain(&error), "can't sign the certificate");
            refusal_error(
                RefusalReason::BadRequest,
                "the certificate request must have a P-256 key and be signed with it",
            )
        })?;
        let token = self.read_inherited_token().await;
        let (agent_name, workload, inherits_token) = (&agent.name, &agent.id, token.is_some());
        info!(%peer, agent = agent_name, workload, inherits_token, "enrolled");
        info!(
            target: audit::TARGET, kind = "enrolment", outcome = "issued", %peer, agent = agent_name,
            workload, inherits_token, %id,
            "enrolled"
        );
        Ok(lines.send(&Reply::Next(Enrolled { certificate: pki::encode_certificates(&chain), token })).await?)
    }

    /// Verifies that the client that speaks on `lines` is `agent`: by the service-account token
    /// that it sent, if agents are pods, or else by a proof of `public_key` in its container.
    ///
    /// # Errors
    /// The proof is missing, of the wrong kind, or not the agent's; or it can't be checked.
    async fn verify_proof<S>(
        &self,
        lines: &mut JsonLines<S>,
        agent: &Agent,
        public_key: &[u8],
        token: Option<Secret>,
    ) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match (&self.token_reviewer, token, &self.proofs) {
            (Some(api), Some(token), _) => {
                let _permit = self.check_permits.acquire().await;
                check_pod_token(api, agent, &token).await
            }
            (Some(_), None, _) => {
                Err(refusal_error(RefusalReason::WrongProof, "agents are pods here: give --kubernetes-token FILE"))
            }
            (None, None, Some(proofs)) => self.read_proof(lines, public_key, proofs, agent).await,
            (None, _, _) => {
                Err(refusal_error(RefusalReason::WrongProof, "agents are containers here: omit --kubernetes-token"))
            }
        }
    }

    /// Sends a challenge, waits until the agent shows the proof, and checks it in the agent's
    /// container.
    ///
    /// # Errors
    /// See [`Self::verify_proof`].
    async fn read_proof<S>(
        &self,
        lines: &mut JsonLines<S>,
        public_key: &[u8],
        proofs: &P,
        agent: &Agent,
    ) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let nonce = Nonce::random();
        let proof = enrolment_protocol::proof_for_key(&nonce, public_key);
        lines.send(&Reply::Next(Challenge { nonce, show: self.accepted_kinds.clone() })).await?;
        let shown: ProofShown = lines.receive().await?;
        if !self.accepted_kinds.contains(&proof::kind_of(&shown)) {
            return Err(refusal_error(
                RefusalReason::WrongProof,
                "this sidecar does not accept proofs of this kind: see its option agents.proofs",
            ));
        }
        // The permit is acquired only now, since silent agents that held one would keep others from
        // enrolling.
        let _permit = self.check_permits.acquire().await;
        proof::check_proof(proofs, &agent.id, &proof, &shown, &self.proof_directory).await
    }

    /// Waits up to [`DISCOVERY_DELAY`] for the discovery of the agent at `peer`, then acts like
    /// [`Self::find_enrollable_agent`].
    async fn wait_for_enrollable_agent(&self, peer: PeerAddr) -> Result<Arc<Agent>, Error> {
        let mut view = self.view.clone();
        let _ = timeout(DISCOVERY_DELAY, view.wait_for(|view| view.agents.contains_key(&peer.ip()))).await;
        self.find_enrollable_agent(peer)
    }

    /// Returns the agent that may enrol from `peer`.
    ///
    /// # Errors
    /// No agent has the address, or the agent has the kind `address`.
    fn find_enrollable_agent(&self, peer: PeerAddr) -> Result<Arc<Agent>, Error> {
        let view = self.view.borrow();
        match view.agents.get(&peer.ip()) {
            None => {
                let (what, label) = noun_and_label(view.source);
                let message = format!("no running {what} with the label {label} has the address {}", peer.ip());
                Err(refusal_error(RefusalReason::NotAnAgent, &message))
            }
            Some(agent) if agent.kind == AgentKind::Attested => Ok(Arc::clone(agent)),
            Some(_) => {
                let (what, label) = noun_and_label(view.source);
                let message =
                    format!("this {what} is admitted by its address alone; to enrol it needs the label {label}=true");
                Err(refusal_error(RefusalReason::AddressAgent, &message))
            }
        }
    }

    /// Returns the identity that the certificate of `agent` states.
    fn id_of(&self, agent: &Agent) -> AgentId {
        AgentId {
            trust_domain: self.trust_domain.clone(),
            kind: if self.token_reviewer.is_some() { WorkloadKind::Pod } else { WorkloadKind::Container },
            project: agent.project.clone(),
            service: agent.service.clone(),
            workload: agent.id.clone(),
        }
    }

    /// Returns the gateway's token; `None` if agents do not inherit it, or it can't be read, which
    /// is logged.
    async fn read_inherited_token(&self) -> Option<Secret> {
        if !self.inherits_token {
            return None;
        }
        let file = self.token_file.clone();
        let read = tokio::task::spawn_blocking(move || Secret::read_gateway_token(file.as_deref()))
            .await
            .map_err(std::io::Error::other);
        read.and_then(|read| read)
            .inspect_err(|error| {
                warn!(
                    path = self.token_file.as_ref().map(|path| tracing::field::display(path.display())), %error,
                    "can't read the gateway's token, so agents inherit none"
                )
            })
            .ok()?
    }
}

/// Logs a refused enrolment, and records it in the audit log. The level of the log line depends on
/// which clients can cause the refusal.
fn log_refusal(peer: PeerAddr, refusal_reason: RefusalReason, error: &Error) {
    let reason = refusal_reason.label();
    let why = || error_chain(error);
    info!(target: audit::TARGET, kind = "enrolment", outcome = "refused", %peer, reason, "enrolment refused");
    match refusal_reason {
        // Any client on the network can cause these, with each connection.
        RefusalReason::NotAnAgent | RefusalReason::TooMany => {
            debug!(%peer, reason, error = why(), "enrolment refused")
        }
        // Any labelled container can cause these.
        RefusalReason::AddressAgent | RefusalReason::Malformed => {
            info!(%peer, reason, error = why(), "enrolment refused")
        }
        _ => warn!(%peer, reason, error = why(), "enrolment refused"),
    }
}

/// Returns the words "container" or "pod", and the name of the label that makes one an agent.
fn noun_and_label(source: AgentSourceKind) -> (&'static str, &'static str) {
    match source {
        AgentSourceKind::Docker => ("container", agent_labels::AGENT),
        AgentSourceKind::Kubernetes => ("pod", agent_labels::POD_AGENT),
    }
}

/// Checks by a token review that `token` is bound to the pod `agent` and of its service account.
///
/// # Errors
/// The token is refused, or another pod's; or the API server can't be asked.
async fn check_pod_token(api: &Api, agent: &Agent, token: &Secret) -> Result<(), Error> {
    let Some(owner) = api.review_token(token).await? else {
        let message = "the API server does not accept the token as a pod's for this audience: project one with that \
                       audience into the pod";
        return Err(refusal_error(RefusalReason::BadToken, message));
    };
    let account = |field: &Option<String>| field.clone().unwrap_or_default();
    let user = format!("system:serviceaccount:{}:{}", account(&agent.project), account(&agent.service));
    if owner.uid != agent.id || owner.pod != agent.name || owner.user != user {
        return Err(refusal_error(RefusalReason::BadToken, "the token is not that of the pod that has this address"));
    }
    Ok(())
}

/// Parses a certificate request in PEM, and returns it with its SubjectPublicKeyInfo; `None` if it
/// is malformed. The signature is verified later, when the certificate is issued.
pub(crate) fn parse_csr(pem: &str) -> Option<(CertificateSigningRequestDer<'static>, Vec<u8>)> {
    let csr = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (rest, parsed) = X509CertificationRequest::from_der(&csr).ok()?;
    let public_key = parsed.certification_request_info.subject_pki.raw.to_vec();
    let is_whole = rest.is_empty();
    is_whole.then_some((csr, public_key))
}

#[cfg(test)]
mod tests;

//! The agent side: `ws://127.0.0.1` in, mTLS to the sidecar out.
//!
//! [`start`] opens a loopback listener and, beside it, keeps a certificate current: its own by
//! enrolment, which Docker attests, or the operator's files. Each local connection becomes one TLS
//! connection to the sidecar, byte for byte.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use crate::config::CertificateFiles;
use crate::openclaw::ready;
use crate::shutdown::Shutdown;

pub mod connector;
pub mod credentials;
pub mod enrol;
mod forward;
mod renewal;
pub mod show;
pub mod supervise;
pub mod trust;

pub use connector::{Connector, Endpoint};
pub use credentials::{CredentialState, Credentials};
pub use show::ProofMethod;
pub use trust::ServerTrust;

/// The settings of [`start`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address on which it listens for local clients.
    pub listen: SocketAddr,
    /// Whether `listen` may be something else than loopback (`--unsafe-listen`).
    pub unsafe_listen: bool,
    /// The sidecar's address; its name is resolved for every connection.
    pub sidecar: Endpoint,
    /// The name that the sidecar's certificate must carry, if not the sidecar's host.
    pub server_name: Option<String>,
    /// How the sidecar's certificate is verified.
    pub trust: ServerTrust,
    /// Where the agent's own certificate comes from.
    pub identity: CredentialSource,
    /// Where an inherited token is written, for other programs.
    pub token_out: Option<PathBuf>,
    /// How long a local connection waits for a sidecar that can't be reached.
    pub wait_limit: Duration,
}

/// Where the agent's own certificate comes from.
#[derive(Clone, Debug)]
pub enum CredentialSource {
    /// Enrolment, with the proof shown in this way.
    Enrol(ProofMethod),
    /// Enrolment, by the service-account token of this pod in this file.
    Token(PathBuf),
    /// The operator's files, read again when they change.
    Files(CertificateFiles),
}

/// An agent that runs until its shutdown begins.
#[derive(Debug)]
pub struct Agent {
    /// Where it listens; the real port if port 0 was asked for.
    pub address: SocketAddr,
    /// Its current credentials.
    pub state: watch::Receiver<CredentialState>,
}

impl Agent {
    /// Returns the error for a gateway that has not answered within `waited`; `last` is the last attempt's error.
    pub fn not_ready(&self, waited: Duration, last: ready::Error) -> Error {
        match self.state.borrow().failure.clone() {
            Some(failure) => Error::NoCredentials { waited, failure },
            None => Error::NoGateway { waited, source: last },
        }
    }
}

/// Why the agent can't start, or is not ready in time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener would face the network.
    #[error(
        "{0} is not a loopback address: every client that reaches it becomes this agent (--unsafe-listen allows it)"
    )]
    NotLoopback(SocketAddr),
    /// The listener can't be opened.
    #[error("can't listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The sidecar's certificate can't be verified.
    #[error(transparent)]
    Trust(#[from] trust::Error),
    /// There is still no certificate.
    #[error("no certificate within {waited:?}: {failure}")]
    NoCredentials {
        /// How long this process waited.
        waited: Duration,
        /// Why the last attempt failed.
        failure: String,
    },
    /// The gateway still does not answer.
    #[error("the gateway does not answer within {waited:?}")]
    NoGateway {
        /// How long this process waited.
        waited: Duration,
        /// Why the last attempt failed.
        source: ready::Error,
    },
}

/// Opens the listener and begins to get credentials. The sidecar need not run yet.
///
/// # Errors
/// If the listener can't be opened.
pub async fn start(settings: Settings, shutdown: &Shutdown) -> Result<Agent, Error> {
    let address = settings.listen;
    if !address.ip().to_canonical().is_loopback() && !settings.unsafe_listen {
        return Err(Error::NotLoopback(address));
    }
    let connector = Arc::new(Connector::new(settings.sidecar, settings.server_name.as_deref(), settings.trust)?);
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let address = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
    info!(%address, sidecar = %connector.endpoint(), "local clients may connect");

    let (publish, state) = watch::channel(CredentialState::default());
    let renew = Arc::new(tokio::sync::Notify::new());
    match settings.identity {
        identity @ (CredentialSource::Enrol(_) | CredentialSource::Token(_)) => {
            let attestation = match identity {
                CredentialSource::Token(file) => enrol::Attestation::Token(file),
                CredentialSource::Enrol(method) => enrol::Attestation::Show(method),
                CredentialSource::Files(_) => unreachable!("matched above"),
            };
            let renewal = renewal::Renewal {
                connector: connector.clone(),
                attestation,
                token_out: settings.token_out,
                refused: renew.clone(),
            };
            let token = shutdown.token().clone();
            shutdown.spawn(async move {
                tokio::select! { () = token.cancelled() => {}, () = renewal.run(publish) => {} }
            });
        }
        CredentialSource::Files(files) => {
            let token = shutdown.token().clone();
            shutdown.spawn(async move {
                tokio::select! { () = token.cancelled() => {}, () = credentials::follow_files(files, publish) => {} }
            });
        }
    }
    let forward = forward::LocalForwarder { connector, state: state.clone(), renew, wait_limit: settings.wait_limit };
    let stop = shutdown.clone();
    shutdown.spawn(async move { forward.run(listener, stop).await });
    Ok(Agent { address, state })
}

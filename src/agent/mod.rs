//! The agent side: relays local connections (`ws://127.0.0.1`) to the sidecar over mTLS.
//!
//! [`start`] opens a loopback listener and keeps a client certificate current, by enrolment or from
//! the operator's files. Each local connection is relayed byte for byte over one TLS connection to
//! the sidecar.

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
mod relay;
mod renewal;
pub mod show;
pub mod supervise;
pub mod trust;

pub use connector::{Connector, Endpoint};
pub use credentials::{CredentialState, Credentials};
pub use enrol::Attestation;
pub use show::ProofMethod;
pub use trust::ServerTrust;

/// The settings of [`start`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address of the listener for local clients.
    pub listen: SocketAddr,
    /// Whether `listen` may be an address other than loopback (`--unsafe-listen`).
    pub unsafe_listen: bool,
    /// The sidecar's host and port. The host's name is resolved for every connection.
    pub sidecar: Endpoint,
    /// The name that the sidecar's certificate must have; `None` means the sidecar's host.
    pub server_name: Option<String>,
    /// How the sidecar's certificate is verified.
    pub trust: ServerTrust,
    /// The source of the agent's certificate.
    pub credential_source: CredentialSource,
    /// The file to which an inherited token is written, for other programs (`--token-out`).
    pub token_out: Option<PathBuf>,
    /// The time for which a local connection waits for a sidecar that can't be reached (`--hold`).
    pub wait_limit: Duration,
}

/// The source of the agent's certificate.
#[derive(Clone, Debug)]
pub enum CredentialSource {
    /// Enrolment with this proof, repeated before the certificate expires.
    Enrol(Attestation),
    /// The operator's files, which are read again when they change.
    Files(CertificateFiles),
}

/// An agent that runs until its shutdown begins.
#[derive(Debug)]
pub struct Agent {
    /// The listener's address, with the actual port if the requested one was 0.
    pub address: SocketAddr,
    /// The agent's current credentials.
    pub state: watch::Receiver<CredentialState>,
}

impl Agent {
    /// Returns the error for a gateway that has not answered within `waited`: why there is no
    /// certificate, or else `last`, the error of the last request.
    pub fn not_ready_error(&self, waited: Duration, last: ready::Error) -> Error {
        let state = self.state.borrow();
        match &state.failure {
            Some(failure) if state.credentials.is_none() => Error::NoCredentials { waited, failure: failure.clone() },
            _ => Error::NoGateway { waited, source: last },
        }
    }
}

/// Why the agent can't start, or is not ready in time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Clients on the network could reach the listener at this address.
    #[error(
        "{0} is not a loopback address: every client that reaches it becomes this agent (--unsafe-listen allows it)"
    )]
    NotLoopback(SocketAddr),
    /// Opening the listener failed.
    #[error("can't listen on {address}")]
    Listen {
        /// The address in [`Settings::listen`].
        address: SocketAddr,
        /// The error of opening it.
        source: std::io::Error,
    },
    /// The name for verifying the sidecar's certificate is malformed.
    #[error(transparent)]
    Trust(#[from] trust::Error),
    /// The gateway did not answer in time, since the agent got no certificate.
    #[error("no certificate within {waited:?}: {failure}")]
    NoCredentials {
        /// The time for which this process waited.
        waited: Duration,
        /// The error of the last attempt.
        failure: String,
    },
    /// The gateway did not answer in time, for another reason.
    #[error("the gateway does not answer within {waited:?}")]
    NoGateway {
        /// The time for which this process waited.
        waited: Duration,
        /// The error of the last attempt.
        source: ready::Error,
    },
}

/// Opens the listener, and starts to get credentials. The sidecar need not run yet.
///
/// # Errors
/// The listener can't be opened, or a setting is invalid.
pub async fn start(settings: Settings, shutdown: &Shutdown) -> Result<Agent, Error> {
    let address = settings.listen;
    if !address.ip().to_canonical().is_loopback() && !settings.unsafe_listen {
        return Err(Error::NotLoopback(address));
    }
    let connector = Arc::new(Connector::new(settings.sidecar, settings.server_name.as_deref(), settings.trust)?);
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let address = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
    info!(%address, sidecar = %connector.endpoint(), "local clients may connect");

    let (sender, state) = watch::channel(CredentialState::default());
    let renewal_needed = Arc::new(tokio::sync::Notify::new());
    match settings.credential_source {
        CredentialSource::Enrol(attestation) => {
            let renewal = renewal::Renewal {
                connector: connector.clone(),
                attestation,
                token_out: settings.token_out,
                renewal_needed: renewal_needed.clone(),
            };
            shutdown.spawn_until_begun(renewal.keep_enrolled(sender));
        }
        CredentialSource::Files(files) => shutdown.spawn_until_begun(credentials::follow_files(files, sender)),
    }
    let relay = relay::LocalRelay { connector, state: state.clone(), renewal_needed, wait_limit: settings.wait_limit };
    let stop = shutdown.clone();
    shutdown.spawn(async move { relay.accept_connections(listener, stop).await });
    Ok(Agent { address, state })
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;

    #[test]
    fn a_failed_renewal_does_not_explain_a_silent_gateway() {
        let pair = rcgen::generate_simple_self_signed(["agent".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
        let credentials = Arc::new(Credentials::new(pair.cert.pem().as_bytes(), key).unwrap());
        for (credentials, is_certificate_missing) in [(None, true), (Some(credentials), false)] {
            let failed = CredentialState { credentials, token: None, failure: Some("refused".into()) };
            let agent = Agent { address: SocketAddr::from(([127, 0, 0, 1], 1)), state: watch::channel(failed).1 };
            let error = agent.not_ready_error(Duration::from_secs(1), ready::Error::Timeout);
            assert_eq!(matches!(error, Error::NoCredentials { .. }), is_certificate_missing, "{error}");
        }
    }
}

//! Relays the bytes of local connections to the sidecar.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_rustls::client::TlsStream;
use tracing::{debug, warn};

use super::connector::Connector;
use super::credentials::{CredentialState, Credentials};
use crate::backoff::Backoff;
use crate::error_chain::error_chain;
use crate::shutdown::Shutdown;

/// The maximum number of concurrent local connections. Further ones wait in the kernel's accept
/// queue.
const MAX_CONNECTIONS: usize = 1024;
/// The pause after a failed accept, whose cause is nearly always a full file-descriptor table.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Relays local connections to the sidecar.
#[derive(Clone, Debug)]
pub(super) struct LocalRelay {
    pub(super) connector: Arc<Connector>,
    pub(super) state: watch::Receiver<CredentialState>,
    /// Notified when the certificate must be renewed at once: the sidecar refused it, or it has
    /// expired.
    pub(super) renewal_needed: Arc<Notify>,
    /// The time for which a local connection waits for credentials and for the sidecar (`--hold`).
    pub(super) wait_limit: Duration,
}

/// Why a local client gets no connection to the sidecar.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no certificate yet{}", failure_suffix(.0.as_ref()))]
    NoCredentials(Option<String>),
    #[error("the certificate has expired{}", failure_suffix(.0.as_ref()))]
    Expired(Option<String>),
    #[error(transparent)]
    Connect(#[from] super::connector::Error),
}

fn failure_suffix(failure: Option<&String>) -> String {
    failure.map(|why| format!(": {why}")).unwrap_or_default()
}

impl LocalRelay {
    /// Accepts and relays local connections until `shutdown` begins, which also closes the open
    /// ones.
    pub(super) async fn accept_connections(self, listener: TcpListener, shutdown: Shutdown) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accept = async {
            loop {
                let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
                match listener.accept().await {
                    Ok((local, peer)) => {
                        let (relay, stop) = (self.clone(), shutdown.clone());
                        shutdown.spawn(async move {
                            tokio::select! {
                                () = stop.wait_until_begun() => {}
                                () = relay.relay_connection(local, peer) => {}
                            }
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        warn!(%error, "can't accept a local connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! { () = shutdown.wait_until_begun() => {}, () = accept => {} }
    }

    /// Relays the bytes of the connection `local` to the sidecar and back, until both sides have
    /// ended or one fails. Closes it, with a warning, if there is no connection to the sidecar.
    async fn relay_connection(&self, mut local: TcpStream, peer: SocketAddr) {
        let mut sidecar = match self.connect_with_retries().await {
            Ok(sidecar) => sidecar,
            Err(error) => {
                let error = error_chain(&error);
                return warn!(%peer, error, "closed a local connection: no connection to the sidecar");
            }
        };
        let _ = local.set_nodelay(true);
        match tokio::io::copy_bidirectional(&mut local, &mut sidecar).await {
            Ok((sent, received)) => debug!(%peer, sent, received, "a local connection ended"),
            Err(error) => {
                self.renew_if_refused(&error);
                debug!(%peer, %error, "a local connection broke");
            }
        }
    }

    /// Tries to connect to the sidecar until it succeeds, or until [`LocalRelay::wait_limit`] would
    /// elapse in the next pause.
    ///
    /// # Errors
    /// The error of the last attempt, or why there are no valid credentials.
    async fn connect_with_retries(&self) -> Result<TlsStream<TcpStream>, Error> {
        let deadline = Instant::now() + self.wait_limit;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let credentials = self.wait_for_credentials(deadline).await?;
            let error = match self.connector.connect_for_client(&credentials).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            if let super::connector::Error::Handshake { source, .. } = &error {
                self.renew_if_refused(source);
            }
            let retry_at = Instant::now() + backoff.next_pause();
            if retry_at > deadline {
                return Err(error.into());
            }
            debug!(error = %error_chain(&error), "can't reach the sidecar yet");
            sleep_until(retry_at).await;
        }
    }

    /// Waits until `deadline` for valid credentials: with expired ones the sidecar would put the
    /// client on the external lane. Requests a renewal if they have expired.
    ///
    /// # Errors
    /// There are none at `deadline`.
    async fn wait_for_credentials(&self, deadline: Instant) -> Result<Arc<Credentials>, Error> {
        let now = OffsetDateTime::now_utc();
        let is_valid = |credentials: &&Arc<Credentials>| !credentials.remaining_validity(now).is_zero();
        let mut state = self.state.clone();
        if state.borrow().credentials.as_ref().is_some_and(|credentials| !is_valid(&credentials)) {
            // After a suspension of the machine the renewal is overdue, and it would be noticed
            // only at the next check of the clock.
            self.renewal_needed.notify_one();
        }
        let state_with_valid =
            timeout_at(deadline, state.wait_for(|state| state.credentials.as_ref().is_some_and(|c| is_valid(&c))))
                .await;
        if let Some(credentials) =
            state_with_valid.ok().and_then(Result::ok).and_then(|state| state.credentials.clone())
        {
            return Ok(credentials);
        }
        let state = self.state.borrow();
        let why = state.failure.clone();
        Err(if state.credentials.is_some() { Error::Expired(why) } else { Error::NoCredentials(why) })
    }

    /// Requests new credentials if `error` is a TLS alert: the sidecar refused the certificate,
    /// perhaps because its CA has changed.
    fn renew_if_refused(&self, error: &io::Error) {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if matches!(tls, Some(rustls::Error::AlertReceived(_))) {
            self.renewal_needed.notify_one();
        }
    }
}

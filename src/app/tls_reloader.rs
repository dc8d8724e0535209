//! Makes TLS handshakes use the newest server certificate and client CAs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info};

use super::error::Error;
use crate::config::Config;
use crate::error_chain::error_chain;
use crate::pki::{ServedCa, ServerIdentity};
use crate::proxy::Proxy;
use crate::shutdown::Shutdown;
use crate::tls::{self, ClientAuthorities, TlsServerConfig};

/// The pause before a failed update is tried again. The client CA file may have been half written,
/// and the next certificate, which would cause an update, may be weeks away.
const RETRY: Duration = Duration::from_secs(5);

/// Builds the TLS configuration of new handshakes, and passes it to the proxy.
pub(super) struct TlsReloader {
    newest: watch::Receiver<Arc<ServerIdentity>>,
    config: Arc<ArcSwap<Config>>,
    proxy: Arc<Proxy>,
    /// The certificate that new handshakes use.
    served: watch::Sender<Arc<ServerIdentity>>,
    /// Why the last update failed; `None` if it succeeded.
    problem: watch::Sender<Option<String>>,
    /// Held during an update, so that of two concurrent updates the one with the older certificate
    /// can't win.
    updating: Mutex<()>,
}

impl TlsReloader {
    /// Creates a reloader that serves `served` until the first update.
    pub(super) fn new(
        newest: watch::Receiver<Arc<ServerIdentity>>,
        served: Arc<ServerIdentity>,
        config: Arc<ArcSwap<Config>>,
        proxy: Arc<Proxy>,
    ) -> Self {
        Self {
            newest,
            config,
            proxy,
            served: watch::Sender::new(served),
            problem: watch::Sender::new(None),
            updating: Mutex::default(),
        }
    }

    /// Returns the certificate that new handshakes use.
    pub(super) fn served_identity(&self) -> watch::Receiver<Arc<ServerIdentity>> {
        self.served.subscribe()
    }

    /// Returns why the newest certificate or client CA is not in use; `None` if it is.
    pub(super) fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// Makes new handshakes use the newest certificate and client CA, and closes connections whose
    /// client certificate no longer counts. If they can't be used, the previous ones stay; the
    /// reason is published, and logged when it changes.
    pub(super) fn serve_newest(&self) {
        let _guard = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = Arc::clone(&self.newest.borrow());
        let problem = match server_config(&identity, &self.config.load()) {
            Ok(tls_config) => {
                info!(until = %identity.not_after, names = identity.names.len(), "serving this certificate");
                self.proxy.update_tls(tls_config);
                self.served.send_replace(identity);
                None
            }
            Err(error) => Some(error_chain(&error)),
        };
        self.problem.send_if_modified(|known| {
            let changed = *known != problem;
            if let Some(problem) = problem.as_ref().filter(|_| changed) {
                error!(
                    error = problem, retry_in = ?RETRY,
                    "can't apply the new TLS settings (certificate or tls.client_ca); still using the previous ones"
                );
            }
            *known = problem;
            changed
        });
    }

    /// Updates at each new certificate, and retries a failed update. Returns when the shutdown
    /// begins.
    pub(super) async fn follow_certificates(self: Arc<Self>, shutdown: Shutdown) {
        let (mut newest, mut problem) = (self.newest.clone(), self.problem.subscribe());
        loop {
            let has_failed = problem.borrow_and_update().is_some();
            tokio::select! {
                () = shutdown.wait_until_begun() => return,
                changed = newest.changed() => if changed.is_err() { return },
                // A reload has set or cleared the problem, so the need for a retry is decided
                // again.
                _ = problem.changed() => continue,
                () = sleep(RETRY), if has_failed => {}
            }
            self.serve_newest();
        }
    }
}

/// Builds the TLS configuration that serves `identity`.
///
/// # Errors
/// If the certificate can't be served, or the client CA can't be read.
pub(super) fn server_config(identity: &ServerIdentity, config: &Config) -> Result<TlsServerConfig, Error> {
    let authorities =
        ClientAuthorities::new(identity.ca.clone(), config.tls.client_ca.as_deref(), Arc::clone(&identity.revoked));
    let authorities = authorities.map_err(tls::Error::from)?;
    let further = config.tls.names.iter().filter_map(|name| name.parse().ok());
    // If the operator provides the certificate, clients don't need loopgate's CA to verify it.
    let serves_ca = config.external.serve_ca && config.tls.provided.is_none();
    let served_ca = identity.ca.as_ref().filter(|_| serves_ca).map(ServedCa::new);
    Ok(TlsServerConfig::new(identity, Arc::new(authorities), further)?.with_served_ca(served_ca))
}

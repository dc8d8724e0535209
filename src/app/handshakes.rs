//! Handshakes by the newest certificate and the newest client authorities.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info};

use super::Error;
use crate::config::Config;
use crate::error_chain::error_chain;
use crate::pki::Identity;
use crate::proxy::Proxy;
use crate::shutdown::Shutdown;
use crate::tls::{self, ClientAuthorities, Terms};

/// How long to wait before trying again what could not be served: the file of the client authorities may be in the middle of being
/// replaced, and the next change of the certificate is far away.
const RETRY: Duration = Duration::from_secs(5);

/// What handshakes are made of, and who makes them.
pub(super) struct Handshakes {
    newest: watch::Receiver<Arc<Identity>>,
    config: Arc<ArcSwap<Config>>,
    proxy: Arc<Proxy>,
    /// What clients are shown.
    served: watch::Sender<Arc<Identity>>,
    /// Why they are not shown the newest.
    problem: watch::Sender<Option<String>>,
    /// Held from the look at what is newest until it is in use, so that nothing older can come after it.
    renewing: Mutex<()>,
}

impl Handshakes {
    /// Handshakes that show `served` for now.
    pub(super) fn new(
        newest: watch::Receiver<Arc<Identity>>,
        served: Arc<Identity>,
        config: Arc<ArcSwap<Config>>,
        proxy: Arc<Proxy>,
    ) -> Self {
        Self { newest, config, proxy, served: watch::Sender::new(served), problem: watch::Sender::new(None), renewing: Mutex::default() }
    }

    /// What clients are shown.
    pub(super) fn served(&self) -> watch::Receiver<Arc<Identity>> {
        self.served.subscribe()
    }

    /// Why they are not shown the newest certificate, or by the newest client authorities.
    pub(super) fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// Makes new handshakes use what is newest. What can't be used leaves in place what was before.
    pub(super) fn renew(&self) {
        let _one = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = Arc::clone(&self.newest.borrow());
        let problem = match terms(&identity, &self.config.load()) {
            Ok(terms) => {
                info!(until = %identity.not_after, names = identity.names.len(), "serving this certificate");
                self.proxy.renew_terms(terms);
                self.served.send_replace(identity);
                None
            }
            Err(error) => Some(error_chain(&error)),
        };
        self.problem.send_if_modified(|known| {
            let news = *known != problem;
            if let Some(problem) = problem.as_ref().filter(|_| news) {
                error!("the new certificate can't be served, keeping the one before: {problem}");
            }
            *known = problem;
            news
        });
    }

    /// Renews at each change of the identity, and again where that failed.
    pub(super) async fn follow(self: Arc<Self>, shutdown: Shutdown) {
        let mut newest = self.newest.clone();
        loop {
            tokio::select! {
                () = shutdown.begun() => return,
                changed = newest.changed() => if changed.is_err() { return },
                () = sleep(RETRY) => if self.problem.borrow().is_none() { continue },
            }
            self.renew();
        }
    }
}

/// The terms of handshakes that show `identity`.
pub(super) fn terms(identity: &Identity, config: &Config) -> Result<Terms, Error> {
    let authorities = ClientAuthorities::new(identity.ca.clone(), config.tls.client_ca.as_deref()).map_err(tls::Error::from)?;
    let further = config.tls.names.iter().filter_map(|name| name.parse().ok());
    Ok(Terms::new(identity, Arc::new(authorities), further)?)
}

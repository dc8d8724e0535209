//! Handshakes by the newest certificate and the newest client authorities.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tracing::{error, info};

use super::Error;
use crate::config::Config;
use crate::pki::Identity;
use crate::proxy::Proxy;
use crate::shutdown::Shutdown;
use crate::tls::{self, ClientAuthorities, Terms};

/// What handshakes are made of, and who makes them.
pub(super) struct Handshakes {
    identity: watch::Receiver<Arc<Identity>>,
    config: Arc<ArcSwap<Config>>,
    proxy: Arc<Proxy>,
    /// Held from the look at what is newest until it is in use, so that nothing older can come after it.
    renewing: Mutex<()>,
}

impl Handshakes {
    pub(super) fn new(identity: watch::Receiver<Arc<Identity>>, config: Arc<ArcSwap<Config>>, proxy: Arc<Proxy>) -> Self {
        Self { identity, config, proxy, renewing: Mutex::default() }
    }

    /// Makes new handshakes use what is newest. What can't be used leaves in place what was before.
    pub(super) fn renew(&self) {
        let _one = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = Arc::clone(&self.identity.borrow());
        match terms(&identity, &self.config.load()) {
            Ok(terms) => {
                info!(until = %identity.not_after, names = identity.names.len(), "serving this certificate");
                self.proxy.renew_terms(terms);
            }
            Err(error) => error!("the new certificate can't be served, keeping the one before: {error}"),
        }
    }

    /// Renews at each change of the identity.
    pub(super) async fn follow(self: Arc<Self>, shutdown: Shutdown) {
        let mut identity = self.identity.clone();
        loop {
            tokio::select! {
                () = shutdown.begun() => return,
                changed = identity.changed() => if changed.is_err() { return },
            }
            self.renew();
        }
    }
}

/// The terms of handshakes that show `identity`.
pub(super) fn terms(identity: &Identity, config: &Config) -> Result<Terms, Error> {
    let authorities = ClientAuthorities::new(identity.ca.clone(), config.tls.client_ca.as_deref()).map_err(tls::Error::from)?;
    Ok(Terms::new(identity, Arc::new(authorities))?)
}

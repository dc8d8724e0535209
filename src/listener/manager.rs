//! Opens and closes listeners as the addresses of the network namespace change.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::DropGuard;
use tracing::{debug, info, warn};

use super::accept_loop::AcceptLoop;
use super::accepted::Accepted;
use super::limits::ConnectionLimits;
use super::{plan, socket};
use crate::addr::canonical;
use crate::backoff::Backoff;
use crate::config::{Config, ListenAddresses};
use crate::discovery::View;
use crate::metrics::ListenerMetrics;
use crate::shutdown::Shutdown;

/// The pauses before an address that can't be bound is tried again: it may be in use for now, or an
/// IPv6 address that is still tentative (RFC 4862).
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// Why the listeners can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A `--listen` address that names one exact address can't be bound.
    #[error("can't listen on {address} (listen.on)")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A `--listen` address is the gateway's own.
    #[error("can't listen on {address} (listen.on): it would take the gateway's own address {gateway}")]
    GatewayAddress {
        /// The address to listen on.
        address: SocketAddr,
        /// The gateway's.
        gateway: SocketAddr,
    },
}

/// Opens the listeners that `config.listen` asks for, and follows `view` until `shutdown`: an
/// address that appears gets a listener, an address that vanishes loses it. Each connection within
/// `limits` is passed to `serve`, which must not block.
///
/// Returns the addresses listened on, with the real ports. The list may be empty, since addresses
/// may appear later; only an address that the configuration names exactly must be bound now. Must
/// be called within a Tokio runtime.
///
/// # Errors
/// An address that the configuration names exactly can't be bound, or is the gateway's own.
pub fn follow(
    config: &Config,
    view: watch::Receiver<Arc<View>>,
    shutdown: &Shutdown,
    limits: &Arc<ConnectionLimits>,
    serve: impl Fn(Accepted) + Clone + Send + Sync + 'static,
) -> Result<watch::Receiver<Arc<Vec<SocketAddr>>>, Error> {
    let gateway = config.gateway.address;
    if let Some(address) = plan::gateway_conflict(&config.listen.on, gateway) {
        return Err(Error::GatewayAddress { address, gateway });
    }
    let (bound, receiver) = watch::channel(Arc::default());
    let mut manager = ListenerManager {
        limits: Arc::clone(limits),
        config: config.clone(),
        metrics: limits.metrics().clone(),
        shutdown: shutdown.clone(),
        serve,
        open: BTreeMap::new(),
        failed: BTreeMap::new(),
        unmatched: BTreeSet::new(),
        bound,
    };
    manager.apply(&view.borrow());
    if let Some(error) = manager.take_named_failure() {
        return Err(error);
    }
    shutdown.spawn(manager.follow(view));
    Ok(receiver)
}

/// Owns the listeners.
struct ListenerManager<S> {
    config: Config,
    limits: Arc<ConnectionLimits>,
    metrics: ListenerMetrics,
    shutdown: Shutdown,
    serve: S,
    /// By the wanted address, whose port may be 0.
    open: BTreeMap<SocketAddr, OpenListener>,
    /// Wanted addresses that could not be bound, with the reason.
    failed: BTreeMap<SocketAddr, io::Error>,
    /// Values of `listen.on` that match no local address.
    unmatched: BTreeSet<String>,
    bound: watch::Sender<Arc<Vec<SocketAddr>>>,
}

/// A listener that is closed when this is dropped.
struct OpenListener {
    local: SocketAddr,
    _close: DropGuard,
}

impl<S: Fn(Accepted) + Clone + Send + Sync + 'static> ListenerManager<S> {
    async fn follow(mut self, mut view: watch::Receiver<Arc<View>>) {
        let mut retry = RETRY;
        while !self.shutdown.has_begun() {
            let latest = Arc::clone(&view.borrow_and_update());
            self.apply(&latest);
            if self.failed.is_empty() {
                retry.reset();
            }
            tokio::select! {
                () = self.shutdown.begun() => {}
                Ok(()) = view.changed() => retry.reset(),
                () = tokio::time::sleep(retry.pause()), if !self.failed.is_empty() => {}
            }
        }
        self.open.clear();
        self.publish();
    }

    /// Opens and closes listeners until they are those that `view` calls for, except those that can't be bound now.
    fn apply(&mut self, view: &View) {
        let scope_of = |name: &str| nix::net::if_::if_nametoindex(name).unwrap_or(0);
        let wanted = plan::wanted(&self.config.listen.on, self.config.gateway.address, &view.interfaces, scope_of);
        let plan = plan::plan(&wanted, &self.open.keys().copied().collect::<BTreeSet<_>>());
        for address in plan.close {
            self.close(address);
        }
        let unmatched = plan::unmatched(&self.config.listen.on, &view.interfaces).map(ToString::to_string).collect();
        for listen in BTreeSet::difference(&unmatched, &self.unmatched) {
            warn!(listen, "no local address matches this --listen value; will listen when one appears");
        }
        self.unmatched = unmatched;
        self.failed.retain(|address, _| wanted.contains(address));
        for address in plan.open {
            match self.open(address) {
                Ok(()) => drop(self.failed.remove(&address)),
                Err(error) => self.record_failure(address, error),
            }
        }
        self.publish();
    }

    fn open(&mut self, address: SocketAddr) -> io::Result<()> {
        let listener = socket::listen(address)?;
        let local = listener.local_addr()?;
        let closed = self.shutdown.token().child_token();
        let accept_loop = AcceptLoop::new(listener, Arc::clone(&self.limits), self.metrics.clone());
        self.shutdown.spawn(accept_loop.run(closed.clone(), self.serve.clone()));
        self.open.insert(address, OpenListener { local, _close: closed.drop_guard() });
        info!(address = %local, "listening");
        Ok(())
    }

    fn close(&mut self, address: SocketAddr) {
        if let Some(listener) = self.open.remove(&address) {
            info!(address = %listener.local, "no longer listening");
        }
    }

    /// Remembers to try `address` again. Warns once for each kind of failure.
    fn record_failure(&mut self, address: SocketAddr, error: io::Error) {
        let known = self.failed.get(&address).is_some_and(|before| before.raw_os_error() == error.raw_os_error());
        if known {
            debug!(%address, %error, "still can't listen");
        } else {
            warn!(%address, %error, "can't listen on this address; will try again");
        }
        self.failed.insert(address, error);
    }

    /// Returns the failure, if any, to bind an address that the configuration names exactly.
    fn take_named_failure(&mut self) -> Option<Error> {
        let named = |address: &SocketAddr| {
            self.config.listen.on.iter().any(|on| {
                matches!(on.addresses, ListenAddresses::Address(ip) if canonical(ip) == address.ip())
                    && on.port == address.port()
            })
        };
        let address = *self.failed.keys().find(|address| named(address))?;
        self.failed.remove(&address).map(|source| Error::Bind { address, source })
    }

    fn publish(&self) {
        let now: Vec<SocketAddr> = self.open.values().map(|listener| listener.local).collect();
        self.bound.send_if_modified(|bound| {
            let changed = **bound != now;
            if changed {
                *bound = Arc::new(now);
            }
            changed
        });
    }
}

//! Doors: sockets that follow the addresses of this namespace, and the limits at them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;
use tracing::{debug, info, warn};

use crate::addr::{PeerAddr, canonical};
use crate::backoff::Backoff;
use crate::config::{Config, ListenAddresses};
use crate::discovery::View;
use crate::metrics::Doors;
use crate::shutdown::Shutdown;

mod accept;
mod limits;
pub mod plan;
pub mod proxy_protocol;
mod socket;
#[cfg(test)]
mod stories;

pub use limits::{Limits, Permit, WAITING};

/// The pauses before an address that can't be bound is tried again: taken for now, or IPv6 and still tentative (RFC 4862).
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// A connection that was let in.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, with TCP_NODELAY, keep-alive and TCP_USER_TIMEOUT set.
    pub stream: TcpStream,
    /// Its far end.
    pub peer: PeerAddr,
    /// Its near end, folded.
    pub local: SocketAddr,
    /// Keeps it counted; to be held until the connection is over.
    pub permit: Permit,
}

/// Why the doors can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A named address can't be listened on.
    #[error("binding {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The operator named an address that is the gateway's.
    #[error("listening on {address} would take the gateway's own address {gateway}")]
    GatewaysOwn {
        /// The address to listen on.
        address: SocketAddr,
        /// The gateway's.
        gateway: SocketAddr,
    },
}

/// Opens the doors that `config.listen` asks for, and follows `view` until `shutdown`: addresses that appear get one, addresses that
/// vanish lose it. Each connection within `limits` is handed to `serve`, which must not block.
///
/// Returns the addresses listened on, with the real ports. None at all is no error: they may come. But an address that the operator
/// named must be bound now. Must be called within a Tokio runtime.
pub fn follow(
    config: &Config,
    view: watch::Receiver<Arc<View>>,
    shutdown: &Shutdown,
    limits: &Arc<Limits>,
    serve: impl Fn(Accepted) + Clone + Send + Sync + 'static,
) -> Result<watch::Receiver<Arc<Vec<SocketAddr>>>, Error> {
    let gateway = config.gateway.address;
    if let Some(address) = plan::takes_gateways_own(&config.listen.on, gateway) {
        return Err(Error::GatewaysOwn { address, gateway });
    }
    let (bound, receiver) = watch::channel(Arc::default());
    let mut porter = Porter {
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
    porter.follow_once(&view.borrow());
    if let Some(error) = porter.named_and_failed() {
        return Err(error);
    }
    shutdown.spawn(porter.follow(view));
    Ok(receiver)
}

/// Owns the doors.
struct Porter<S> {
    config: Config,
    limits: Arc<Limits>,
    metrics: Doors,
    shutdown: Shutdown,
    serve: S,
    /// By the address wanted, whose port may be 0.
    open: BTreeMap<SocketAddr, OpenDoor>,
    /// Wanted addresses that could not be bound, and why.
    failed: BTreeMap<SocketAddr, io::Error>,
    /// What of `listen.on` no address is such as.
    unmatched: BTreeSet<String>,
    bound: watch::Sender<Arc<Vec<SocketAddr>>>,
}

/// A door that closes when this is dropped.
struct OpenDoor {
    local: SocketAddr,
    _close: DropGuard,
}

impl<S: Fn(Accepted) + Clone + Send + Sync + 'static> Porter<S> {
    async fn follow(mut self, mut view: watch::Receiver<Arc<View>>) {
        let mut retry = RETRY;
        while !self.shutdown.has_begun() {
            let latest = Arc::clone(&view.borrow_and_update());
            self.follow_once(&latest);
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

    /// Makes the doors those that `view` calls for, as far as they can be bound now.
    fn follow_once(&mut self, view: &View) {
        let scope_of = |name: &str| nix::net::if_::if_nametoindex(name).unwrap_or(0);
        let wanted = plan::wanted(&self.config.listen.on, self.config.gateway.address, &view.interfaces, scope_of);
        let plan = plan::plan(&wanted, &self.open.keys().copied().collect::<BTreeSet<_>>());
        for address in plan.close {
            self.close(address);
        }
        let unmatched = plan::unmatched(&self.config.listen.on, &view.interfaces).map(ToString::to_string).collect();
        for listen in BTreeSet::difference(&unmatched, &self.unmatched) {
            warn!(listen, "no address to listen on is such as this: not listening there until one is");
        }
        self.unmatched = unmatched;
        self.failed.retain(|address, _| wanted.contains(address));
        for address in plan.open {
            match self.open(address) {
                Ok(()) => drop(self.failed.remove(&address)),
                Err(error) => self.remember(address, error),
            }
        }
        self.publish();
    }

    fn open(&mut self, address: SocketAddr) -> io::Result<()> {
        let listener = socket::listen(address)?;
        let local = listener.local_addr()?;
        let closed = self.shutdown.token().child_token();
        let door = accept::Door::new(listener, Arc::clone(&self.limits), self.metrics.clone());
        self.shutdown.spawn(door.keep(closed.clone(), self.serve.clone()));
        self.open.insert(address, OpenDoor { local, _close: closed.drop_guard() });
        info!(address = %local, "listening");
        Ok(())
    }

    fn close(&mut self, address: SocketAddr) {
        if let Some(door) = self.open.remove(&address) {
            info!(address = %door.local, "no longer listening");
        }
    }

    /// Keeps in mind that `address` is to be tried again, and says so once for each kind of failure.
    fn remember(&mut self, address: SocketAddr, error: io::Error) {
        let known = self.failed.get(&address).is_some_and(|before| before.raw_os_error() == error.raw_os_error());
        if known {
            debug!(%address, %error, "still can't listen");
        } else {
            warn!(%address, %error, "can't listen, will go on trying");
        }
        self.failed.insert(address, error);
    }

    /// The failure, if any, to bind an address that the operator named.
    fn named_and_failed(&mut self) -> Option<Error> {
        let named = |address: &SocketAddr| {
            self.config.listen.on.iter().any(|on| {
                matches!(on.addresses, ListenAddresses::Address(ip) if canonical(ip) == address.ip()) && on.port == address.port()
            })
        };
        let address = *self.failed.keys().find(|address| named(address))?;
        self.failed.remove(&address).map(|source| Error::Bind { address, source })
    }

    fn publish(&self) {
        let now: Vec<SocketAddr> = self.open.values().map(|door| door.local).collect();
        self.bound.send_if_modified(|bound| {
            let changed = **bound != now;
            if changed {
                *bound = Arc::new(now);
            }
            changed
        });
    }
}

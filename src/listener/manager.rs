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
use super::kind::ListenerAddress;
use super::limits::ConnectionLimits;
use super::{plan, socket};
use crate::backoff::Backoff;
use crate::config::Config;
use crate::discovery::View;
use crate::metrics::ListenerMetrics;
use crate::shutdown::Shutdown;

/// The pauses before an address that can't be bound is tried again. It may be in use, or an IPv6
/// address that is still tentative (RFC 4862).
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// The reason why the listeners can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that an option names exactly can't be bound.
    #[error("can't listen on {} ({})", .listener.address, .listener.kind.option_key())]
    Bind {
        /// The listener.
        listener: ListenerAddress,
        /// The error of the operating system.
        source: io::Error,
    },
    /// An address to listen on is the gateway's own, or one that a port forward leads to.
    #[error(
        "can't listen on {} ({}): it would take the gateway's own address {taken}",
        .listener.address, .listener.kind.option_key()
    )]
    GatewayAddress {
        /// The listener.
        listener: ListenerAddress,
        /// The address that it would take.
        taken: SocketAddr,
    },
}

/// Opens the listeners that `config.listen` asks for, and follows `view` until `shutdown` begins: a
/// new address gets a listener, and a removed address loses it. Passes each connection within
/// `limits` to `serve`, which must not block.
///
/// Returns the addresses of the open listeners, with their real ports. There may be none, since
/// addresses may appear later, but an address that the configuration names exactly must be bound
/// now. Must be called within a Tokio runtime.
///
/// # Errors
/// An address that the configuration names exactly can't be bound, or is the gateway's own.
pub fn start(
    config: &Config,
    view: watch::Receiver<Arc<View>>,
    shutdown: &Shutdown,
    limits: &Arc<ConnectionLimits>,
    serve: impl Fn(Accepted) + Clone + Send + Sync + 'static,
) -> Result<watch::Receiver<Arc<Vec<ListenerAddress>>>, Error> {
    if let Some((listener, taken)) = plan::find_conflict(&config.listen, config.gateway.address) {
        return Err(Error::GatewayAddress { listener, taken });
    }
    let (bound_sender, receiver) = watch::channel(Arc::default());
    let mut manager = ListenerManager {
        limits: Arc::clone(limits),
        config: config.clone(),
        metrics: limits.metrics().clone(),
        shutdown: shutdown.clone(),
        serve,
        open_listeners: BTreeMap::new(),
        bind_failures: BTreeMap::new(),
        unmatched_values: BTreeSet::new(),
        bound_sender,
    };
    manager.apply_view(&view.borrow());
    if let Some(error) = manager.take_named_failure() {
        return Err(error);
    }
    shutdown.spawn(manager.follow_view(view));
    Ok(receiver)
}

/// Owns the open listeners, and opens and closes them.
struct ListenerManager<S> {
    config: Config,
    limits: Arc<ConnectionLimits>,
    metrics: ListenerMetrics,
    shutdown: Shutdown,
    serve: S,
    /// The open listeners, by the wanted address, whose port may be 0.
    open_listeners: BTreeMap<ListenerAddress, OpenListener>,
    /// The wanted addresses that can't be bound, with the reason.
    bind_failures: BTreeMap<ListenerAddress, io::Error>,
    /// The keys and values of options that match no local address.
    unmatched_values: BTreeSet<(&'static str, String)>,
    /// Publishes the addresses of the open listeners.
    bound_sender: watch::Sender<Arc<Vec<ListenerAddress>>>,
}

/// An open listener. It is closed when this is dropped.
struct OpenListener {
    local: SocketAddr,
    _close: DropGuard,
}

impl<S: Fn(Accepted) + Clone + Send + Sync + 'static> ListenerManager<S> {
    /// Applies each change of `view`, and tries addresses that can't be bound again, until the
    /// shutdown.
    async fn follow_view(mut self, mut view: watch::Receiver<Arc<View>>) {
        let mut retry = RETRY;
        while !self.shutdown.has_begun() {
            let latest = Arc::clone(&view.borrow_and_update());
            self.apply_view(&latest);
            if self.bind_failures.is_empty() {
                retry.reset();
            }
            tokio::select! {
                () = self.shutdown.wait_until_begun() => {}
                Ok(()) = view.changed() => retry.reset(),
                () = tokio::time::sleep(retry.next_pause()), if !self.bind_failures.is_empty() => {}
            }
        }
        self.open_listeners.clear();
        self.publish_addresses();
    }

    /// Opens and closes listeners so that they are those for the addresses of `view`, except those
    /// that can't be bound. Publishes their addresses, and warns of values that have newly lost
    /// their last matching address.
    fn apply_view(&mut self, view: &View) {
        let scope_of = |name: &str| nix::net::if_::if_nametoindex(name).unwrap_or(0);
        let wanted =
            plan::wanted_listeners(&self.config.listen, self.config.gateway.address, &view.interfaces, scope_of);
        let plan = plan::plan_changes(&wanted, &self.open_listeners.keys().copied().collect::<BTreeSet<_>>());
        for listener in plan.close {
            self.close_listener(listener);
        }
        let unmatched = plan::find_unmatched_values(&self.config.listen, &view.interfaces);
        let unmatched = unmatched.map(|(kind, on)| (kind.option_key(), on.to_string())).collect();
        for (option, listen) in BTreeSet::difference(&unmatched, &self.unmatched_values) {
            warn!(option, listen, "no local address matches this value; will listen when one appears");
        }
        self.unmatched_values = unmatched;
        self.bind_failures.retain(|listener, _| wanted.contains(listener));
        for listener in plan.open {
            match self.open_listener(listener) {
                Ok(()) => drop(self.bind_failures.remove(&listener)),
                Err(error) => self.record_failure(listener, error),
            }
        }
        self.publish_addresses();
    }

    /// Listens on `wanted`, and starts to accept connections.
    ///
    /// # Errors
    /// The address can't be bound.
    fn open_listener(&mut self, wanted: ListenerAddress) -> io::Result<()> {
        let ListenerAddress { address, kind } = wanted;
        let listener = socket::listen(address)?;
        let local = listener.local_addr()?;
        let closed = self.shutdown.cancellation_token().child_token();
        let accept_loop = AcceptLoop::new(listener, kind, Arc::clone(&self.limits), self.metrics.clone());
        self.shutdown.spawn(accept_loop.run(closed.clone(), self.serve.clone()));
        self.open_listeners.insert(wanted, OpenListener { local, _close: closed.drop_guard() });
        info!(address = %local, option = kind.option_key(), "listening");
        Ok(())
    }

    /// Closes the listener on `wanted`, if it is open. Its accepted connections stay open.
    fn close_listener(&mut self, wanted: ListenerAddress) {
        if let Some(listener) = self.open_listeners.remove(&wanted) {
            info!(address = %listener.local, option = wanted.kind.option_key(), "no longer listening");
        }
    }

    /// Notes that `wanted` can't be bound, so that it is tried again. Warns if the error code
    /// differs from that of the attempt before.
    fn record_failure(&mut self, wanted: ListenerAddress, error: io::Error) {
        let (address, option) = (wanted.address, wanted.kind.option_key());
        let known = self.bind_failures.get(&wanted).is_some_and(|before| before.raw_os_error() == error.raw_os_error());
        if known {
            debug!(%address, option, %error, "still can't listen");
        } else {
            warn!(%address, option, %error, "can't listen on this address; trying again");
        }
        self.bind_failures.insert(wanted, error);
    }

    /// Takes the failure to bind an address that the configuration names exactly, if there is one.
    fn take_named_failure(&mut self) -> Option<Error> {
        let listener =
            *self.bind_failures.keys().find(|listener| plan::is_named_exactly(&self.config.listen, listener))?;
        self.bind_failures.remove(&listener).map(|source| Error::Bind { listener, source })
    }

    /// Publishes the addresses of the open listeners, if they have changed.
    fn publish_addresses(&self) {
        let local =
            |(wanted, open): (&ListenerAddress, &OpenListener)| ListenerAddress { address: open.local, ..*wanted };
        let now: Vec<ListenerAddress> = self.open_listeners.iter().map(local).collect();
        self.bound_sender.send_if_modified(|bound| {
            let changed = **bound != now;
            if changed {
                *bound = Arc::new(now);
            }
            changed
        });
    }
}

//! Accepts connections from one listening socket, and continues after failures of accept(2).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::accepted::Accepted;
use super::kind::ListenerKind;
use super::limits::{ConnectionLimits, PermitGrant};
use crate::addr::{PeerAddr, canonical};
use crate::backoff::Backoff;
use crate::metrics::ListenerMetrics;

/// The pauses after an error that is not a connection's, such as a lack of file descriptors.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
/// The least time between two warnings about such errors.
const WARN_INTERVAL: Duration = Duration::from_secs(5);

/// Accepts the connections of one listening socket.
pub struct AcceptLoop {
    listener: TcpListener,
    kind: ListenerKind,
    limits: Arc<ConnectionLimits>,
    metrics: ListenerMetrics,
    pauses: Backoff,
    /// The time of the last warning.
    warned_at: Option<Instant>,
}

impl AcceptLoop {
    /// Creates a loop for `listener`. It starts with [`AcceptLoop::run`].
    pub fn new(
        listener: TcpListener,
        kind: ListenerKind,
        limits: Arc<ConnectionLimits>,
        metrics: ListenerMetrics,
    ) -> Self {
        Self { listener, kind, limits, metrics, pauses: PAUSES, warned_at: None }
    }

    /// Passes each connection within the limits to `serve` once it has its permit, and closes the
    /// others, until `closed` is cancelled. Connections that still wait for a permit are then
    /// closed.
    pub async fn run(mut self, closed: CancellationToken, serve: impl Fn(Accepted)) {
        let mut waiting = FuturesUnordered::new();
        let kind = self.kind;
        loop {
            tokio::select! {
                biased;
                () = closed.cancelled() => return,
                Some(accepted) = waiting.next() => serve(accepted),
                (stream, peer, local) = self.accept_next() => {
                    let accepted = move |permit| Accepted { stream, peer, local, kind, permit };
                    match self.limits.take_permit(peer) {
                        Ok(PermitGrant::Now(permit)) => serve(accepted(permit)),
                        Ok(PermitGrant::Later(permit)) => waiting.push(permit.map(accepted)),
                        Err(reason) => debug!(%peer, reason = reason.label(), "connection refused by a limit"),
                    }
                }
            }
        }
    }

    /// Accepts the next connection; returns it with its remote and its local address.
    async fn accept_next(&mut self) -> (TcpStream, PeerAddr, SocketAddr) {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok((stream, peer)) => (stream, PeerAddr::new(peer)),
                Err(error) => {
                    self.handle_accept_error(&error).await;
                    continue;
                }
            };
            self.pauses.reset();
            // A connection that its peer has already reset has no local address.
            let Ok(local) = stream.local_addr() else { continue };
            return (stream, peer, SocketAddr::new(canonical(local.ip()), local.port()));
        }
    }

    /// Ignores an error that concerns only one connection. Counts any other error, warns at most
    /// once every [`WARN_INTERVAL`], and pauses.
    async fn handle_accept_error(&mut self, error: &io::Error) {
        if is_peer_failure(error) {
            return;
        }
        self.metrics.accept_failures.inc();
        if self.warned_at.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
            self.warned_at = Some(Instant::now());
            let address = self.listener.local_addr().ok().map(tracing::field::display);
            warn!(address, option = self.kind.option_key(), %error, "can't accept connections; trying again");
        }
        tokio::time::sleep(self.pauses.next_pause()).await;
    }
}

/// Returns whether `error` concerns only the connection that would have been accepted (accept(2),
/// "Error handling").
fn is_peer_failure(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ECONNABORTED
                | Errno::ECONNRESET
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::EINTR
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::ENONET
                | Errno::ENOPROTOOPT
                | Errno::EOPNOTSUPP
                | Errno::EPERM
                | Errno::EPROTO
                | Errno::ETIMEDOUT
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_of_the_peer_are_ignored() {
        for (errno, peers) in [
            (Errno::ECONNABORTED, true),
            (Errno::EPERM, true),
            (Errno::EPROTO, true),
            (Errno::EMFILE, false),
            (Errno::ENFILE, false),
            (Errno::ENOBUFS, false),
            (Errno::ENOMEM, false),
            (Errno::EINVAL, false),
        ] {
            assert_eq!(is_peer_failure(&errno.into()), peers, "{errno}");
        }
    }
}

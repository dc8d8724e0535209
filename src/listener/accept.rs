//! A door: accepts connections for as long as it is wanted, whatever `accept(2)` says.

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

use super::limits::Admission;
use super::{Accepted, Limits};
use crate::addr::{PeerAddr, canonical};
use crate::backoff::Backoff;
use crate::metrics::Doors;

/// The rests after failures that only time can mend.
const REST: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
/// Such failures are logged this often at most.
const COMPLAINT: Duration = Duration::from_secs(5);

/// One listening socket and what its connections need.
pub struct Door {
    listener: TcpListener,
    limits: Arc<Limits>,
    metrics: Doors,
    rest: Backoff,
    complained: Option<Instant>,
}

impl Door {
    /// A door that nobody waits at yet.
    pub fn new(listener: TcpListener, limits: Arc<Limits>, metrics: Doors) -> Self {
        Self { listener, limits, metrics, rest: REST, complained: None }
    }

    /// Hands each connection to `serve` until `closed`.
    pub async fn keep(mut self, closed: CancellationToken, serve: impl Fn(Accepted)) {
        let mut waiting = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                () = closed.cancelled() => return,
                Some(accepted) = waiting.next() => serve(accepted),
                (stream, peer, local) = self.next() => {
                    let accepted = move |permit| Accepted { stream, peer, local, permit };
                    match self.limits.admit(peer) {
                        Ok(Admission::Now(permit)) => serve(accepted(permit)),
                        Ok(Admission::Later(permit)) => waiting.push(permit.map(accepted)),
                        Err(reason) => debug!(%peer, ?reason, "connection refused"),
                    }
                }
            }
        }
    }

    /// The next connection.
    async fn next(&mut self) -> (TcpStream, PeerAddr, SocketAddr) {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok((stream, peer)) => (stream, PeerAddr::new(peer)),
                Err(error) => {
                    self.endure(&error).await;
                    continue;
                }
            };
            self.rest.reset();
            // A peer that is gone already has no local address either.
            let Ok(local) = stream.local_addr() else { continue };
            return (stream, peer, SocketAddr::new(canonical(local.ip()), local.port()));
        }
    }

    async fn endure(&mut self, error: &io::Error) {
        if is_the_peers(error) {
            return;
        }
        self.metrics.accept_failures.inc();
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAINT) {
            self.complained = Some(Instant::now());
            warn!(%error, "can't accept connections, will go on trying");
        }
        tokio::time::sleep(self.rest.pause()).await;
    }
}

/// Says whether `error` concerns just the connection that would have been accepted (accept(2), "Error handling").
fn is_the_peers(error: &io::Error) -> bool {
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
    fn whose_fault_a_failure_is() {
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
            assert_eq!(is_the_peers(&errno.into()), peers, "{errno}");
        }
    }
}

//! Detects a gateway that speaks TLS itself, where loopgate speaks plain HTTP to it.
//!
//! Node.js closes a TLS connection on which plain HTTP arrives without a byte in answer, so such a
//! gateway accepts connections and answers no request. Only a TLS handshake shows what is wrong.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{error, info};

use super::server_certificate::server_certificate;

/// What is wrong with a gateway that speaks TLS, and what to do about it.
pub const PROBLEM: &str =
    "the gateway speaks TLS, and loopgate speaks plain HTTP to it; set gateway.tls.enabled to false in openclaw.json";

/// The time limit of a handshake. On loopback it takes milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// The least time between two handshakes that broken answers cause.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Finds out whether the gateway speaks TLS, with as few handshakes as possible: a gateway that
/// speaks plain HTTP answers each with an error.
#[derive(Debug)]
pub struct TlsDetector {
    gateway: SocketAddr,
    /// Whether something happened since the last handshake that may mean TLS.
    is_suspected: AtomicBool,
    last: Mutex<LastHandshake>,
}

/// The last handshake.
#[derive(Debug, Default)]
struct LastHandshake {
    at: Option<Instant>,
    speaks_tls: bool,
}

impl TlsDetector {
    /// Creates a detector for the server at `gateway`, which has not been asked yet.
    pub fn new(gateway: SocketAddr) -> Self {
        Self { gateway, is_suspected: AtomicBool::new(true), last: Mutex::default() }
    }

    /// Notes that the gateway was restarted, or that it did not answer: it may speak TLS now.
    pub fn suspect(&self) {
        self.is_suspected.store(true, Ordering::Relaxed);
    }

    /// Returns whether the gateway speaks TLS. It is asked if that is suspected, and again for as long as it is so.
    pub async fn speaks_tls(&self) -> bool {
        let mut last = self.last.lock().await;
        if self.is_suspected.load(Ordering::Relaxed) || last.speaks_tls {
            self.try_handshake(&mut last).await;
        }
        last.speaks_tls
    }

    /// Returns whether that is why the gateway closed a connection instead of answering. It is
    /// asked at most once a second.
    pub async fn explains_broken_answer(&self) -> bool {
        self.suspect();
        let mut last = self.last.lock().await;
        if last.at.is_none_or(|at| at.elapsed() >= MIN_INTERVAL) {
            self.try_handshake(&mut last).await;
        }
        last.speaks_tls
    }

    async fn try_handshake(&self, last: &mut LastHandshake) {
        let answer = timeout(HANDSHAKE_TIMEOUT, server_certificate(self.gateway)).await;
        // A gateway that is too busy to answer is asked again.
        self.is_suspected.store(answer.is_err(), Ordering::Relaxed);
        let speaks_tls = answer.map_or(last.speaks_tls, |certificate| certificate.is_some());
        match (last.speaks_tls, speaks_tls) {
            (false, true) => error!(gateway = %self.gateway, "{PROBLEM}"),
            (true, false) => info!(gateway = %self.gateway, "the gateway no longer speaks TLS"),
            _ => {}
        }
        *last = LastHandshake { at: Some(Instant::now()), speaks_tls };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::shutdown::Shutdown;

    /// A server that answers plain HTTP to whatever it reads, and counts its connections.
    async fn plain_server(shutdown: &Shutdown) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, count) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&count);
        shutdown.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
            }
        });
        (address, count)
    }

    #[tokio::test]
    async fn a_gateway_gets_a_handshake_only_if_tls_is_suspected() {
        let shutdown = Shutdown::new();
        let (address, count) = plain_server(&shutdown).await;
        let detector = TlsDetector::new(address);
        for _ in 0..3 {
            assert!(!detector.speaks_tls().await);
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
        for _ in 0..3 {
            assert!(!detector.explains_broken_answer().await);
        }
        assert_eq!(count.load(Ordering::SeqCst), 1, "at most once a second");
        assert!(!detector.speaks_tls().await);
        assert_eq!(count.load(Ordering::SeqCst), 2, "the broken answer counts at the next check");
    }
}

//! Detects a gateway that speaks TLS, while loopgate sends plain HTTP to it.
//!
//! If plain HTTP arrives on a TLS port, Node.js closes the connection without a response. So a
//! gateway with TLS accepts connections and answers no request, and only a TLS handshake shows the
//! cause.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{error, info};

use super::server_certificate::fetch_server_certificate;

/// The message for a gateway that speaks TLS, with the remedy.
pub const PROBLEM: &str =
    "the gateway speaks TLS, and loopgate speaks plain HTTP to it; set gateway.tls.enabled to false in openclaw.json";

/// The timeout of a handshake, which takes milliseconds on loopback.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// The minimum time between two handshakes in [`TlsDetector::detect_tls_after_broken_answer`].
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Finds out whether the gateway speaks TLS. The detector makes as few handshakes as possible,
/// since a gateway with plain HTTP sees each as a malformed request.
#[derive(Debug)]
pub struct TlsDetector {
    gateway: SocketAddr,
    /// Whether the gateway was restarted, or did not answer, since the last handshake.
    is_suspected: AtomicBool,
    last_handshake: Mutex<LastHandshake>,
}

/// The time and the result of the last handshake.
#[derive(Debug, Default)]
struct LastHandshake {
    at: Option<Instant>,
    speaks_tls: bool,
}

impl TlsDetector {
    /// Returns a detector for the server at `gateway`. It makes no handshake yet.
    pub fn new(gateway: SocketAddr) -> Self {
        Self { gateway, is_suspected: AtomicBool::new(true), last_handshake: Mutex::default() }
    }

    /// Records that the gateway was restarted, or did not answer, so that it may speak TLS now.
    pub fn suspect_tls(&self) {
        self.is_suspected.store(true, Ordering::Relaxed);
    }

    /// Returns whether the gateway speaks TLS. Makes a handshake if TLS is suspected, or was spoken
    /// at the last handshake.
    pub async fn detect_tls(&self) -> bool {
        let mut last = self.last_handshake.lock().await;
        if self.is_suspected.load(Ordering::Relaxed) || last.speaks_tls {
            self.try_handshake(&mut last).await;
        }
        last.speaks_tls
    }

    /// Returns whether the gateway speaks TLS, after it closed a connection without a response.
    /// Makes a handshake at most every `MIN_INTERVAL`.
    pub async fn detect_tls_after_broken_answer(&self) -> bool {
        self.suspect_tls();
        let mut last = self.last_handshake.lock().await;
        if last.at.is_none_or(|at| at.elapsed() >= MIN_INTERVAL) {
            self.try_handshake(&mut last).await;
        }
        last.speaks_tls
    }

    /// Tries a TLS handshake with the gateway, records the result in `last`, and logs if it has
    /// changed.
    async fn try_handshake(&self, last: &mut LastHandshake) {
        let answer = timeout(HANDSHAKE_TIMEOUT, fetch_server_certificate(self.gateway)).await;
        // If the gateway was too busy to answer, the next call makes a handshake again.
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
            assert!(!detector.detect_tls().await);
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
        for _ in 0..3 {
            assert!(!detector.detect_tls_after_broken_answer().await);
        }
        assert_eq!(count.load(Ordering::SeqCst), 1, "at most once a second");
        assert!(!detector.detect_tls().await);
        assert_eq!(count.load(Ordering::SeqCst), 2, "the broken answer counts at the next check");
    }
}

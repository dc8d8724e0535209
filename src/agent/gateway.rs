//! A look at the gateway from where its clients are: does it answer, and does it need pre-pairing?

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::backoff::Backoff;
use crate::exchange::exchange;

/// For one look. A sidecar holds a request for some seconds while the gateway starts.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);
/// More than the answer that is looked for.
const MAX_BODY: usize = 64 * 1024;

/// A gateway that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Whether it is of a kind that pairs a device silently only for the scopes of its first request (OpenClaw 2026.2.19): one that
    /// does not know `/startupz`. To pre-pair with others does no harm.
    pub needs_prepairing: bool,
}

/// The gateway does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error("no connection")]
    Connect(#[from] std::io::Error),
    /// The connection breaks, as it does when there is no way to the sidecar.
    #[error("the connection was closed without an answer")]
    Http(#[from] hyper::Error),
    /// It takes too long.
    #[error("no answer within {} s", LOOK_TIMEOUT.as_secs())]
    Timeout,
    /// It, or the sidecar in its place, says that it is not there yet.
    #[error("it answers {0}")]
    NotYet(StatusCode),
}

/// Looks once at the gateway behind `address`.
///
/// # Errors
/// If it does not answer.
pub async fn look(address: SocketAddr) -> Result<Answers, Error> {
    timeout(LOOK_TIMEOUT, ask(address)).await.map_err(|_| Error::Timeout)?
}

async fn ask(address: SocketAddr) -> Result<Answers, Error> {
    let stream = TcpStream::connect(address).await?;
    let request = Request::get("/startupz")
        .header(http::header::HOST, address.to_string())
        .header(http::header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .expect("a valid request");
    let response = exchange(stream, request).await?;
    if matches!(response.status(), StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) {
        return Err(Error::NotYet(response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map(|body| body.to_bytes());
    let told = body.ok().and_then(|body| serde_json::from_slice::<serde_json::Value>(&body).ok());
    Ok(Answers { needs_prepairing: told.is_none_or(|told| told["ok"] != true) })
}

/// Looks until the gateway behind `address` answers, for `patience` at most.
///
/// # Errors
/// The last look's, if it never answered.
pub async fn wait(address: SocketAddr, patience: Duration) -> Result<Answers, Error> {
    let deadline = Instant::now() + patience;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    let mut last = Error::Timeout;
    loop {
        match timeout_at(deadline, look(address)).await {
            Ok(Ok(answers)) => return Ok(answers),
            Ok(Err(error)) => last = error,
            Err(_) => return Err(last),
        }
        if timeout_at(deadline, sleep(backoff.pause())).await.is_err() {
            return Err(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::shutdown::Shutdown;

    /// A gateway that gives each connection the next of `answers`, the last one for ever.
    async fn gateway(answers: &'static [&'static str], shutdown: &Shutdown) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        shutdown.spawn(async move {
            let mut answers = answers.iter();
            let mut answer = answers.next().unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 1024];
                let _ = stream.read(&mut head).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                answer = answers.next().unwrap_or(answer);
            }
        });
        address
    }

    #[tokio::test]
    async fn the_old_gateway_serves_its_page_and_needs_prepairing() {
        let shutdown = Shutdown::new();
        let old = gateway(&["HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"], &shutdown).await;
        assert_eq!(look(old).await.unwrap(), Answers { needs_prepairing: true });
        let new = gateway(&["HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"ok\":true}"], &shutdown).await;
        assert_eq!(look(new).await.unwrap(), Answers { needs_prepairing: false });
    }

    #[tokio::test]
    async fn a_gateway_that_starts_is_waited_for() {
        let shutdown = Shutdown::new();
        const STARTING: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        let address = gateway(&[STARTING, "", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"], &shutdown).await;
        assert!(wait(address, Duration::from_secs(20)).await.is_ok());
        let never = gateway(&[STARTING], &shutdown).await;
        assert!(matches!(wait(never, Duration::from_millis(50)).await, Err(Error::NotYet(StatusCode::SERVICE_UNAVAILABLE))));
    }
}

//! Finds out by a request whether the gateway answers, and whether it needs pre-pairing.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::backoff::Backoff;
use crate::http_client::send_request;

/// The timeout of one request. A sidecar holds a request for some seconds while the gateway starts.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The maximum size of a response body, in bytes. The expected one is smaller.
const MAX_BODY: usize = 64 * 1024;

/// A gateway that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Whether the gateway pairs a device silently only for the scopes of its first request, like
    /// OpenClaw 2026.2.19. A gateway without `/startupz` counts as one. Pre-pairing with another
    /// version does no harm.
    pub needs_prepairing: bool,
}

/// Why the gateway is not ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection could not be opened.
    #[error("can't connect")]
    Connect(#[from] std::io::Error),
    /// The connection was closed before a response. `loopgate agent` does this if it can't reach
    /// the sidecar.
    #[error("the gateway closed the connection without an answer")]
    Http(#[from] hyper::Error),
    /// The response did not arrive within `REQUEST_TIMEOUT`.
    #[error("no response within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// The gateway, or the sidecar in its place, answers 502, 503 or 504.
    #[error("the response is {0}")]
    NotReady(StatusCode),
}

/// Sends one request to the gateway behind `address`.
///
/// # Errors
/// The gateway does not answer, or answers that it is not ready.
pub async fn ask_once(address: SocketAddr) -> Result<Ready, Error> {
    timeout(REQUEST_TIMEOUT, request_startupz(address)).await.map_err(|_| Error::Timeout)?
}

/// Requests `/startupz`. A gateway that has no such path answers too, and needs pre-pairing. The
/// statuses 502, 503 and 504 are errors.
async fn request_startupz(address: SocketAddr) -> Result<Ready, Error> {
    let stream = TcpStream::connect(address).await?;
    let request = Request::get("/startupz")
        .header(http::header::HOST, address.to_string())
        .header(http::header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .expect("a valid request");
    let response = send_request(stream, request).await?;
    if matches!(
        response.status(),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    ) {
        return Err(Error::NotReady(response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map(|body| body.to_bytes());
    let json = body.ok().and_then(|body| serde_json::from_slice::<serde_json::Value>(&body).ok());
    Ok(Ready { needs_prepairing: json.is_none_or(|json| json["ok"] != true) })
}

/// Waits until the gateway behind `address` answers, for at most `limit`.
///
/// # Errors
/// The error of the last request that ended, or [`Error::Timeout`] if none did.
pub async fn wait_until_ready(address: SocketAddr, limit: Duration) -> Result<Ready, Error> {
    let deadline = Instant::now() + limit;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    let mut last = Error::Timeout;
    loop {
        match timeout_at(deadline, ask_once(address)).await {
            Ok(Ok(ready)) => return Ok(ready),
            Ok(Err(error)) => last = error,
            Err(_) => return Err(last),
        }
        if timeout_at(deadline, sleep(backoff.next_pause())).await.is_err() {
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

    /// A gateway that gives each connection the next of `answers`, and repeats the last one.
    async fn start_gateway(answers: &'static [&'static str], shutdown: &Shutdown) -> SocketAddr {
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
    async fn only_a_gateway_without_startupz_needs_prepairing() {
        let shutdown = Shutdown::new();
        let old = start_gateway(&["HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"], &shutdown).await;
        assert_eq!(ask_once(old).await.unwrap(), Ready { needs_prepairing: true });
        let new = start_gateway(&["HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"ok\":true}"], &shutdown).await;
        assert_eq!(ask_once(new).await.unwrap(), Ready { needs_prepairing: false });
    }

    #[tokio::test]
    async fn wait_returns_once_a_starting_gateway_answers() {
        let shutdown = Shutdown::new();
        const STARTING: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        let address =
            start_gateway(&[STARTING, "", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"], &shutdown).await;
        assert!(wait_until_ready(address, Duration::from_secs(20)).await.is_ok());
        let never = start_gateway(&[STARTING], &shutdown).await;
        assert!(matches!(
            wait_until_ready(never, Duration::from_millis(50)).await,
            Err(Error::NotReady(StatusCode::SERVICE_UNAVAILABLE))
        ));
    }
}

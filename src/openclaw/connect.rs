//! Opens connections to the gateway from a chosen source address, and sends single GET requests.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::http_client::send_request;

/// The client address in the forwarding headers of probes (TEST-NET-2, RFC 5737). With it the
/// gateway's rate limit for failed logins affects no real client.
pub(super) const PROBE_CLIENT: &str = "198.51.100.7";
/// The timeout of opening a connection, and of a response.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of a response body, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Opens a connection to `to`. `from` is the source address; `None` lets the kernel choose.
pub(super) async fn connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    within_timeout(socket.connect(to)).await
}

/// Waits for `work`, but no longer than [`PROBE_TIMEOUT`].
pub(super) async fn within_timeout<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PROBE_TIMEOUT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The response to a GET request.
#[derive(Clone, Debug)]
pub(super) struct ProbeResponse {
    pub status: u16,
    pub is_json: bool,
    pub body: String,
}

/// Sends `GET path` with `headers` to `to` from the address `from`, and reads the whole response
/// within [`PROBE_TIMEOUT`]. `Host` is `to` unless `headers` has another.
pub(super) async fn get(
    to: SocketAddr,
    from: Option<IpAddr>,
    path: &str,
    headers: &[(HeaderName, &str)],
) -> io::Result<ProbeResponse> {
    let stream = connect(to, from).await?;
    let mut request = Request::get(path).header(USER_AGENT, "loopgate-check").header(CONNECTION, "close");
    if headers.iter().all(|(name, _)| *name != HOST) {
        request = request.header(HOST, to.to_string());
    }
    for (name, value) in headers {
        request = request.header(name, HeaderValue::from_str(value).map_err(io::Error::other)?);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let exchange = async {
        let response = send_request(stream, request).await.map_err(io::Error::other)?;
        let status = response.status().as_u16();
        let content_type =
            response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_json = content_type.starts_with("application/json");
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(ProbeResponse { status, is_json, body: String::from_utf8_lossy(&body).into_owned() })
    };
    within_timeout(exchange).await
}

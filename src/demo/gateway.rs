//! The demonstration's gateway. It responds to every request with the request as it received it,
//! and listens on loopback, like the real gateway.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::debug;

use super::page;
use super::received::Received;
use crate::error_chain::error_chain;
use crate::shutdown::Shutdown;

/// The `Content-Security-Policy` of the page: its inline style and script, and connections to its
/// own origin.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The pause after a failed accept.
const RETRY: Duration = Duration::from_millis(50);

/// Starts a gateway that trusts the proxy at `trusted`, and returns its address. It ends when
/// `shutdown` begins.
pub(super) async fn start(trusted: Ipv4Addr, shutdown: &Shutdown) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let task_shutdown = shutdown.clone();
    shutdown.spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = task_shutdown.wait_until_begun() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => task_shutdown.spawn(serve(stream, from, trusted, task_shutdown.clone())),
                // The process is probably out of file descriptors.
                Err(error) => {
                    debug!(%error, "the gateway of the demonstration can't accept a connection");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    });
    Ok(address)
}

/// Serves the connection `stream` from the address `from`. `trusted` is the gateway's trusted
/// proxy.
async fn serve(stream: TcpStream, from: SocketAddr, trusted: Ipv4Addr, shutdown: Shutdown) {
    let _ = stream.set_nodelay(true);
    let answer = |request| {
        let response = respond(request, from, trusted, &shutdown);
        async { Ok::<_, Infallible>(response) }
    };
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).with_upgrades();
    tokio::select! {
        () = shutdown.wait_until_begun() => {}
        result = connection => if let Err(error) = result {
            debug!(%from, error = error_chain(&error), "connection to the gateway of the demonstration ended");
        },
    }
}

/// Responds with the request as it was received: as a page, as JSON, or as messages of a WebSocket.
fn respond(
    mut request: Request<Incoming>,
    from: SocketAddr,
    trusted: Ipv4Addr,
    shutdown: &Shutdown,
) -> Response<Full<Bytes>> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, _) = request.into_parts();
    let received = Received::new(from, &head, trusted);
    let is_websocket =
        head.headers.get(UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if let Some(key) = head.headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_websocket) {
        shutdown.spawn_until_begun(echo_messages(upgrade, received));
        return switch_to_websocket(key);
    }
    match head.uri.path() {
        "/json" => content_response("application/json", received.to_json()),
        _ => content_response("text/html; charset=utf-8", page::render(&received)),
    }
}

/// Returns the response 101 to an upgrade with the `Sec-WebSocket-Key` `key`.
fn switch_to_websocket(key: &HeaderValue) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// Returns a response with a body of the type `kind`, which browsers do not store.
fn content_response(kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    response
}

/// Sends the request as it was received, then echoes every message.
async fn echo_messages(upgrade: OnUpgrade, received: Received) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut websocket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    if websocket.send(received.to_json().into()).await.is_err() {
        return;
    }
    while let Some(Ok(message)) = websocket.next().await {
        // tungstenite answers pings and closes itself.
        if (message.is_text() || message.is_binary()) && websocket.send(message).await.is_err() {
            return;
        }
    }
}

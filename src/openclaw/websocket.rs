//! Probes the gateway by WebSocket handshakes that end before a token is needed.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures_util::{SinkExt, StreamExt};
use http::header::{HOST, ORIGIN};
use http::{HeaderValue, Uri};
use serde_json::{Value, json};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::connect::{PROBE_CLIENT, connect, within_timeout};

/// Returns whether the server sends `connect.challenge`, the first message of every version of the
/// gateway.
pub(super) async fn probe_challenge(gateway: SocketAddr) -> bool {
    let handshake = async {
        let request = format!("ws://{gateway}/").into_client_request().map_err(io::Error::other)?;
        let (mut socket, _) = client_async(request, connect(gateway, None).await?).await.map_err(io::Error::other)?;
        let first = socket.next().await.transpose().map_err(io::Error::other)?;
        Ok(first.is_some_and(|message| is_challenge(&message)))
    };
    within_timeout(handshake).await.unwrap_or(false)
}

/// Returns whether a page of `origin` may connect through the external lane; `None` if the
/// responses do not show it.
///
/// The probe has no token, since the gateway checks the origin before the token (2026.2.19 and
/// 2026.9).
pub(super) async fn probe_origin(gateway: SocketAddr, source: IpAddr, origin: &str) -> Option<bool> {
    let handshake = async {
        let uri: Uri = origin.parse().map_err(io::Error::other)?;
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = format!("ws://{gateway}/").into_client_request().map_err(io::Error::other)?;
        let headers = request.headers_mut();
        let header_value = |text: &str| HeaderValue::from_str(text).map_err(io::Error::other);
        headers.insert(HOST, header_value(&host)?);
        headers.insert(ORIGIN, header_value(origin)?);
        headers.insert("x-forwarded-for", header_value(PROBE_CLIENT)?);
        headers.insert("x-forwarded-proto", header_value("https")?);
        headers.insert("x-forwarded-host", header_value(&host)?);
        let (mut socket, _) =
            client_async(request, connect(gateway, Some(source)).await?).await.map_err(io::Error::other)?;
        while let Some(message) = socket.next().await.transpose().map_err(io::Error::other)? {
            if is_challenge(&message) {
                socket
                    .send(Message::Text(Utf8Bytes::from(connect_request().to_string())))
                    .await
                    .map_err(io::Error::other)?;
            } else if let Some(answer) = parse_frame(&message).filter(|answer| answer["type"] == "res") {
                return Ok(Some(is_origin_allowed(&answer)));
            }
        }
        Ok(None)
    };
    within_timeout(handshake).await.ok().flatten()
}

/// Returns the `connect` request of the Control UI, without a token and without a device.
fn connect_request() -> Value {
    json!({"type": "req", "id": "check", "method": "connect", "params": {
        "minProtocol": 3, "maxProtocol": 10, "role": "operator", "scopes": [],
        "client": {"id": "openclaw-control-ui", "version": "check", "platform": "linux", "mode": "webchat"},
    }})
}

fn parse_frame(message: &Message) -> Option<Value> {
    serde_json::from_str(message.to_text().ok()?).ok()
}

fn is_challenge(message: &Message) -> bool {
    parse_frame(message).is_some_and(|frame| frame["event"] == "connect.challenge")
}

/// Returns whether the gateway accepted the origin. The gateway checks the origin first, so any
/// other error means that the origin was accepted.
fn is_origin_allowed(answer: &Value) -> bool {
    !answer["error"]["message"].as_str().unwrap_or_default().starts_with("origin not allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_origin_error_counts_as_a_refused_origin() {
        for (message, expected) in [
            (
                "origin not allowed (open the Control UI from the gateway host or allow it in \
                 gateway.controlUi.allowedOrigins)",
                false,
            ),
            ("control ui requires device identity (use HTTPS or localhost secure context)", true),
            ("unauthorized: gateway token missing", true),
        ] {
            assert_eq!(
                is_origin_allowed(&json!({"type": "res", "ok": false, "error": {"message": message}})),
                expected,
                "{message}"
            );
        }
    }
}

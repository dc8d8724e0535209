//! A WebSocket handshake with the gateway, up to where it would ask for a token.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures_util::{SinkExt, StreamExt};
use http::header::{HOST, ORIGIN};
use http::{HeaderValue, Uri};
use serde_json::{Value, json};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{CLIENT, connect, within};

/// Whether the gateway sends the challenge that all its versions begin with.
pub(super) async fn challenges(gateway: SocketAddr) -> bool {
    let talk = async {
        let request = format!("ws://{gateway}/").into_client_request().map_err(io::Error::other)?;
        let (mut socket, _) = client_async(request, connect(gateway, None).await?).await.map_err(io::Error::other)?;
        let first = socket.next().await.transpose().map_err(io::Error::other)?;
        Ok(first.is_some_and(|message| is_challenge(&message)))
    };
    within(talk).await.unwrap_or(false)
}

/// Whether a browser's page of `origin` may connect through the external lane; `None` if that doesn't become clear.
///
/// It asks without a token, which both versions look at only after the origin.
pub(super) async fn allows(gateway: SocketAddr, source: IpAddr, origin: &str) -> Option<bool> {
    let talk = async {
        let uri: Uri = origin.parse().map_err(io::Error::other)?;
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = format!("ws://{gateway}/").into_client_request().map_err(io::Error::other)?;
        let headers = request.headers_mut();
        let text = |text: &str| HeaderValue::from_str(text).map_err(io::Error::other);
        headers.insert(HOST, text(&host)?);
        headers.insert(ORIGIN, text(origin)?);
        headers.insert("x-forwarded-for", text(CLIENT)?);
        headers.insert("x-forwarded-proto", text("https")?);
        headers.insert("x-forwarded-host", text(&host)?);
        let (mut socket, _) = client_async(request, connect(gateway, Some(source)).await?).await.map_err(io::Error::other)?;
        while let Some(message) = socket.next().await.transpose().map_err(io::Error::other)? {
            if is_challenge(&message) {
                socket.send(Message::Text(Utf8Bytes::from(hello().to_string()))).await.map_err(io::Error::other)?;
            } else if let Some(answer) = frame(&message).filter(|answer| answer["type"] == "res") {
                return Ok(Some(judge(&answer)));
            }
        }
        Ok(None)
    };
    within(talk).await.ok().flatten()
}

/// What the Control UI says, without a token and without a device.
fn hello() -> Value {
    json!({"type": "req", "id": "check", "method": "connect", "params": {
        "minProtocol": 3, "maxProtocol": 10, "role": "operator", "scopes": [],
        "client": {"id": "openclaw-control-ui", "version": "check", "platform": "linux", "mode": "webchat"},
    }})
}

fn frame(message: &Message) -> Option<Value> {
    serde_json::from_str(message.to_text().ok()?).ok()
}

fn is_challenge(message: &Message) -> bool {
    frame(message).is_some_and(|frame| frame["event"] == "connect.challenge")
}

/// Whatever else is wrong with such a client, it was not its origin.
fn judge(answer: &Value) -> bool {
    !answer["error"]["message"].as_str().unwrap_or_default().starts_with("origin not allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refused_origin_is_one() {
        for (message, expected) in [
            ("origin not allowed (open the Control UI from the gateway host or allow it in gateway.controlUi.allowedOrigins)", false),
            ("control ui requires device identity (use HTTPS or localhost secure context)", true),
            ("unauthorized: gateway token missing", true),
        ] {
            assert_eq!(judge(&json!({"type": "res", "ok": false, "error": {"message": message}})), expected, "{message}");
        }
    }
}

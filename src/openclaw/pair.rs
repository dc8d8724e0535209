//! Pre-pairing: one handshake that asks the gateway for all operator scopes at once.
//!
//! OpenClaw 2026.2.19 pairs a local device silently only for the scopes of its first request; a
//! human must approve each further scope. So the first request must ask for all scopes. Pairing a
//! paired device again changes nothing.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::device::Device;
use crate::secret::Secret;

/// Every scope of an operator (OpenClaw 2026.2.19).
pub const SCOPES: [&str; 5] =
    ["operator.admin", "operator.approvals", "operator.pairing", "operator.read", "operator.write"];

/// The timeout of pairing, and of a call. The gateway's own timeout of one handshake is 10 s.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between attempts while the gateway is starting.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const CLIENT_ID: &str = "cli";
const ROLE: &str = "operator";
const REQUEST_ID: &str = "loopgate-pair";

/// A device that the gateway has paired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paired {
    /// The device's id.
    pub device: String,
    /// The granted scopes; empty if the gateway does not state them.
    pub scopes: Vec<String>,
}

/// Why the device could not be paired, or a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection could not be opened.
    #[error("can't connect to {address}")]
    Connect {
        /// The gateway's address.
        address: SocketAddr,
        /// The error of the connection.
        source: std::io::Error,
    },
    /// No key could be made for a temporary device.
    #[error("can't make a key for a temporary device")]
    Key(#[source] std::io::Error),
    /// The WebSocket handshake failed, or the connection broke.
    #[error("the WebSocket to the gateway failed")]
    WebSocket(#[from] tungstenite::Error),
    /// The device was not paired, or the call not answered, within `PAIR_TIMEOUT`.
    #[error("no answer within {} s", PAIR_TIMEOUT.as_secs())]
    Timeout,
    /// The gateway regards the device as remote, or the device asked for more scopes than it was
    /// paired for.
    #[error(
        "the gateway wants a human to approve the device: run `openclaw devices approve{}` beside it, once",
        .request.as_ref().map(|id| format!(" {id}")).unwrap_or_default()
    )]
    NeedsApproval {
        /// The id of the pending request, if the gateway states it.
        request: Option<String>,
    },
    /// The gateway is starting, and does not pair devices yet.
    #[error("the gateway is still starting and can't pair yet; try again in a moment")]
    Starting,
    /// The gateway refuses the device with this message, for example because the token is wrong.
    #[error("the gateway refused to pair the device: {0}")]
    Refused(String),
    /// The gateway refuses a call on the connection of a paired device.
    #[error("the gateway refused the call of {method}: {message}")]
    CallRefused {
        /// The method that was called.
        method: String,
        /// The gateway's message.
        message: String,
    },
    /// The server sends what no OpenClaw gateway sends, or closes the WebSocket without a reason.
    #[error("the server does not speak OpenClaw's protocol: {0}")]
    Protocol(&'static str),
}

/// Pairs `device` with the gateway behind `address`, a loopback address of this network namespace.
/// While the gateway is starting, this is tried again until `PAIR_TIMEOUT`.
///
/// # Errors
/// The gateway does not accept the device with all scopes.
pub async fn pair(address: SocketAddr, device: &Device, token: Option<&Secret>) -> Result<Paired, Error> {
    let mut connection = connect(address, device, token).await?;
    let _ = connection.socket.close(None).await;
    Ok(to_paired(device, &connection.hello))
}

/// A connection on which the gateway has accepted a device.
pub(super) struct PairedConnection {
    socket: WebSocketStream<TcpStream>,
    /// The payload of the gateway's response to `connect`.
    hello: Value,
}

/// Opens a connection on which `device` has all operator scopes. While the gateway is starting,
/// this is tried again until `PAIR_TIMEOUT`.
///
/// # Errors
/// The gateway does not accept the device.
pub(super) async fn connect(
    address: SocketAddr,
    device: &Device,
    token: Option<&Secret>,
) -> Result<PairedConnection, Error> {
    let connected = async {
        loop {
            let stream = TcpStream::connect(address).await.map_err(|source| Error::Connect { address, source })?;
            let (mut socket, _) = client_async(format!("ws://{address}/"), stream).await?;
            match handshake(&mut socket, device, token).await {
                Err(Error::Starting) => sleep(RETRY_PAUSE).await,
                Ok(hello) => return Ok(PairedConnection { socket, hello }),
                Err(error) => return Err(error),
            }
        }
    };
    timeout(PAIR_TIMEOUT, connected).await.map_err(|_| Error::Timeout)?
}

impl PairedConnection {
    /// Calls `method` of the gateway, and returns the payload of the response.
    ///
    /// # Errors
    /// The gateway refuses the call, or does not answer in time.
    pub(super) async fn call_method(&mut self, method: &str, params: Value) -> Result<Value, Error> {
        let request = json!({ "type": "req", "id": method, "method": method, "params": params });
        let called = async {
            self.socket.send(Message::text(request.to_string())).await?;
            while let Some(message) = self.socket.next().await {
                let Message::Text(text) = message? else { continue };
                match serde_json::from_str(&text) {
                    Ok(Frame::Res { id, ok: true, payload, .. }) if id == method => return Ok(payload),
                    Ok(Frame::Res { id, error, .. }) if id == method => {
                        return Err(match error_of_response(&error) {
                            Error::Refused(message) => Error::CallRefused { method: method.to_owned(), message },
                            other => other,
                        });
                    }
                    _ => {}
                }
            }
            Err(Error::Protocol("it closed the WebSocket"))
        };
        timeout(PAIR_TIMEOUT, called).await.map_err(|_| Error::Timeout)?
    }
}

/// A frame from the gateway: an event, or the response to a request.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Frame {
    Event {
        event: String,
        #[serde(default)]
        payload: Value,
    },
    Res {
        id: String,
        ok: bool,
        #[serde(default)]
        payload: Value,
        #[serde(default)]
        error: Value,
    },
    #[serde(other)]
    Other,
}

/// Sends `connect` in answer to the gateway's challenge, and returns the payload of the response.
async fn handshake<S>(socket: &mut WebSocketStream<S>, device: &Device, token: Option<&Secret>) -> Result<Value, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = socket.next().await {
        let text = match message? {
            Message::Text(text) => text,
            Message::Close(close) => {
                return Err(error_of_close(close.map(|close| close.reason.to_string()).unwrap_or_default()));
            }
            _ => continue,
        };
        match serde_json::from_str(&text).map_err(|_| Error::Protocol("a frame that is no JSON object"))? {
            Frame::Event { event, payload } if event == "connect.challenge" => {
                let nonce = payload["nonce"].as_str().ok_or(Error::Protocol("a challenge without a nonce"))?;
                let request = connect_request(device, token, nonce, SystemTime::now());
                socket.send(Message::text(request.to_string())).await?;
            }
            Frame::Res { id, ok: true, payload, .. } if id == REQUEST_ID => return Ok(payload),
            Frame::Res { id, error, .. } if id == REQUEST_ID => {
                let _ = socket.close(None).await;
                return Err(error_of_response(&error));
            }
            _ => {}
        }
    }
    Err(Error::Protocol("it closed the WebSocket"))
}

/// Builds the `connect` request, signed as `device-auth` version 2 prescribes.
fn connect_request(device: &Device, token: Option<&Secret>, nonce: &str, now: SystemTime) -> Value {
    let signed_at = u64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or_default();
    let (id, secret) = (device.id(), token.map(Secret::expose).unwrap_or_default());
    let signed = zeroize::Zeroizing::new(format!(
        "v2|{id}|{CLIENT_ID}|{CLIENT_ID}|{ROLE}|{}|{signed_at}|{secret}|{nonce}",
        SCOPES.join(",")
    ));
    let mut params = json!({
        "minProtocol": 3,
        "maxProtocol": 4,
        "client": { "id": CLIENT_ID, "version": env!("CARGO_PKG_VERSION"), "platform": std::env::consts::OS,
            "mode": CLIENT_ID },
        "role": ROLE,
        "scopes": SCOPES,
        "caps": [],
        "device": {
            "id": id,
            "publicKey": device.public_key(),
            "signature": device.sign(&signed),
            "signedAt": signed_at,
            "nonce": nonce,
        },
    });
    if token.is_some() {
        params["auth"] = json!({ "token": secret });
    }
    json!({ "type": "req", "id": REQUEST_ID, "method": "connect", "params": params })
}

/// Returns `device` with the scopes in `payload`, the gateway's response to `connect`.
fn to_paired(device: &Device, payload: &Value) -> Paired {
    let scopes = payload["auth"]["scopes"].as_array().into_iter().flatten();
    Paired { device: device.id(), scopes: scopes.filter_map(Value::as_str).map(str::to_owned).collect() }
}

/// Returns the error that the gateway states in a response.
fn error_of_response(error: &Value) -> Error {
    let request = error["details"]["requestId"].as_str().map(str::to_owned);
    match error["code"].as_str() {
        Some("NOT_PAIRED") => Error::NeedsApproval { request },
        Some("UNAVAILABLE") => Error::Starting,
        _ => Error::Refused(error["message"].as_str().unwrap_or("no reason given").to_owned()),
    }
}

/// Returns the error for a WebSocket that the gateway closed with `reason` before it answered.
fn error_of_close(reason: String) -> Error {
    if reason.starts_with("pairing required") { Error::NeedsApproval { request: None } } else { Error::Refused(reason) }
}

#[cfg(test)]
pub(super) mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_tungstenite::accept_async;

    use super::*;
    use crate::shutdown::Shutdown;

    fn device() -> Device {
        Device::create(&tempfile::tempdir().unwrap().path().join("device.json")).unwrap()
    }

    /// A gateway that challenges with the nonce `n-1`, checks the signature as OpenClaw does, and
    /// gives `answer`.
    async fn start_gateway(answer: Value, shutdown: &Shutdown) -> SocketAddr {
        gateway_with_answers(vec![answer], shutdown).await
    }

    /// Like [`start_gateway`], but gives each connection the next of `answers`. It answers plain
    /// HTTP like 2026.2.19.
    pub(in crate::openclaw) async fn gateway_with_answers(answers: Vec<Value>, shutdown: &Shutdown) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        shutdown.spawn(async move {
            for answer in answers {
                let mut socket = loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut start = [0; 14];
                    stream.peek(&mut start).await.unwrap();
                    if !start.starts_with(b"GET /startupz") {
                        break accept_async(stream).await.unwrap();
                    }
                    let _ = stream.read(&mut [0; 1024]).await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>").await.unwrap();
                };
                let challenge =
                    json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n-1", "ts": 1}});
                socket.send(Message::text(challenge.to_string())).await.unwrap();
                let request: Value =
                    serde_json::from_str(socket.next().await.unwrap().unwrap().to_text().unwrap()).unwrap();
                let answer = if has_valid_signature(&request["params"]) {
                    answer
                } else {
                    json!({"ok": false, "error": {"message": "bad signature"}})
                };
                let mut response = json!({"type": "res", "id": request["id"]});
                response.as_object_mut().unwrap().extend(answer.as_object().unwrap().clone());
                socket.send(Message::text(response.to_string())).await.unwrap();
                while socket.next().await.is_some() {}
            }
        });
        address
    }

    fn has_valid_signature(params: &Value) -> bool {
        let device = &params["device"];
        let bytes = |field: &str| BASE64_URL_SAFE_NO_PAD.decode(device[field].as_str().unwrap()).unwrap();
        let scopes: Vec<&str> = params["scopes"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
        let payload = [
            "v2",
            device["id"].as_str().unwrap(),
            params["client"]["id"].as_str().unwrap(),
            params["client"]["mode"].as_str().unwrap(),
            params["role"].as_str().unwrap(),
            &scopes.join(","),
            &device["signedAt"].to_string(),
            params["auth"]["token"].as_str().unwrap_or(""),
            "n-1",
        ]
        .join("|");
        UnparsedPublicKey::new(&ED25519, bytes("publicKey")).verify(payload.as_bytes(), &bytes("signature")).is_ok()
    }

    #[tokio::test]
    async fn a_local_device_is_paired_with_every_scope() {
        let shutdown = Shutdown::new();
        let hello =
            json!({"ok": true, "payload": {"type": "hello-ok", "auth": {"role": "operator", "scopes": SCOPES}}});
        let (device, token) = (device(), Secret::new("my-token".to_owned()));
        for token in [Some(&token), None] {
            let paired = pair(start_gateway(hello.clone(), &shutdown).await, &device, token).await.unwrap();
            assert_eq!(paired, Paired { device: device.id(), scopes: SCOPES.map(str::to_owned).to_vec() });
        }
    }

    #[tokio::test]
    async fn a_gateway_that_is_starting_is_tried_again() {
        let shutdown = Shutdown::new();
        let starting =
            json!({"ok": false, "error": {"code": "UNAVAILABLE", "message": "gateway starting; retry shortly"}});
        let hello = json!({"ok": true, "payload": {"type": "hello-ok"}});
        assert!(pair(gateway_with_answers(vec![starting, hello], &shutdown).await, &device(), None).await.is_ok());
    }

    #[tokio::test]
    async fn each_refusal_of_the_gateway_has_its_own_error() {
        let shutdown = Shutdown::new();
        let device = device();
        let refuse = json!({"ok": false, "error": {"code": "NOT_PAIRED", "message": "pairing required",
            "details": {"requestId": "r-7"}}});
        let error = pair(start_gateway(refuse, &shutdown).await, &device, None).await.unwrap_err();
        assert!(matches!(&error, Error::NeedsApproval { request: Some(id) } if id == "r-7"), "{error:?}");
        let refuse = json!({"ok": false, "error": {"code": "INVALID_REQUEST",
            "message": "unauthorized: gateway token mismatch"}});
        let error = pair(start_gateway(refuse, &shutdown).await, &device, None).await.unwrap_err();
        assert_eq!(error.to_string(), "the gateway refused to pair the device: unauthorized: gateway token mismatch");
        assert!(matches!(
            error_of_close("pairing required: device is not approved yet".into()),
            Error::NeedsApproval { request: None }
        ));
    }
}

//! WebSocket clients over HTTP/1.1 and HTTP/2 (RFC 8441).

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::tls_client::{Protocol, TlsClient};

/// A byte stream.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// An open WebSocket.
pub type Socket = WebSocketStream<Box<dyn Io>>;

/// Returns a configuration without limits on sizes, because the sidecar must have none either.
fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

impl TlsClient {
    /// Opens a WebSocket from `source` to `path`.
    pub async fn open_websocket(&self, protocol: Protocol, source: &str, path: &str) -> Socket {
        match protocol {
            Protocol::H1 => {
                let stream = self.handshake(self.connect_tcp(source).await, "http/1.1").await.unwrap();
                let stream: Box<dyn Io> = Box::new(stream);
                client_async_with_config(format!("wss://gateway.example:18789{path}"), stream, Some(config()))
                    .await
                    .unwrap()
                    .0
            }
            Protocol::H2 => self.open_websockets(source, path, &[&[]]).await.pop().unwrap(),
        }
    }

    /// Opens WebSockets from `source` to `path` on one HTTP/2 connection, one for each list of
    /// further fields.
    pub async fn open_websockets(&self, source: &str, path: &str, each: &[&[(&'static str, &str)]]) -> Vec<Socket> {
        let stream = TokioIo::new(self.handshake(self.connect_tcp(source).await, "h2").await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), stream).await.unwrap();
        self.tasks.spawn(async move {
            let _ = connection.await;
        });
        let mut sockets = Vec::new();
        for fields in each {
            let mut request =
                http::Request::connect(format!("https://gateway.example:18789{path}")).body(Empty::new()).unwrap();
            request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
            request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
            for (name, value) in *fields {
                request.headers_mut().insert(*name, value.parse().unwrap());
            }
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let stream: Box<dyn Io> = Box::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
            sockets.push(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config())).await);
        }
        sockets
    }
}

/// Sends a message, and fails unless its echo is the same.
pub async fn assert_echo(socket: &mut Socket, message: Bytes) {
    let (mut send, mut receive) = socket.split();
    // The test sends and receives at once, because the echo of a message larger than all buffers
    // begins before the message is sent.
    let (sent, echo) = tokio::join!(send.send(Message::Binary(message.clone())), receive.next());
    sent.expect("an open WebSocket");
    let echo = echo.expect("an open WebSocket").expect("a message");
    assert!(echo == Message::Binary(message), "the echo of {} bytes differs", echo.len());
}

/// Closes a WebSocket, and waits until it is closed from the other end.
pub async fn close(mut socket: Socket) {
    socket.close(None).await.expect("an open WebSocket");
    while let Some(Ok(_)) = socket.next().await {}
}

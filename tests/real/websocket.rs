//! A WebSocket client over TLS that trusts one CA, over HTTP/1.1 or over HTTP/2 (RFC 8441).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// Where the sidecar is.
const SIDECAR: &str = "172.18.0.2:18789";

/// Bytes both ways; which HTTP they ride on does not matter once they do.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open WebSocket to the backend's `/echo`.
pub struct WebSocket(WebSocketStream<Box<dyn Stream>>);

/// TLS as a client that trusts the CA in `file` does it, for one protocol.
pub fn tls(ca: &Path, alpn: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("a certificate")).expect("a certificate");
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.into()];
    TlsConnector::from(Arc::new(config))
}

/// No limit on sizes, for the sidecar is to have none either.
pub fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

impl WebSocket {
    /// Connects from an address of this host, over HTTP/1.1.
    pub async fn over_h1(tls: &TlsConnector, from: IpAddr) -> Self {
        let stream: Box<dyn Stream> = Box::new(connect(tls, from).await);
        let url = format!("wss://{SIDECAR}/echo");
        let (socket, _) = tokio_tungstenite::client_async_with_config(url, stream, Some(config())).await.expect("a 101");
        Self(socket)
    }

    /// Connects from an address of this host, by an extended CONNECT.
    pub async fn over_h2(tls: &TlsConnector, from: IpAddr) -> Self {
        let stream = TokioIo::new(connect(tls, from).await);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP/2");
        tokio::task::spawn_local(connection);
        // The answer to a plain request comes after the server's SETTINGS, which allow what follows.
        let plain = Request::get(format!("https://{SIDECAR}/")).body(Empty::<Bytes>::new()).expect("a request");
        assert!(sender.send_request(plain).await.expect("an answer").status().is_success());
        let request = Request::connect(format!("https://{SIDECAR}/echo"))
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .body(Empty::new())
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert!(response.status().is_success(), "extended CONNECT: {}", response.status());
        let stream: Box<dyn Stream> = Box::new(TokioIo::new(hyper::upgrade::on(response).await.expect("a tunnel")));
        Self(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config())).await)
    }

    /// Sends a message, waits for its echo and compares.
    pub async fn echoes(&mut self, message: Bytes) {
        let (mut send, mut receive) = (&mut self.0).split();
        // At once, for a message larger than all buffers on its way comes back while it is still being sent.
        let (sent, echo) = tokio::join!(send.send(Message::Binary(message.clone())), receive.next());
        sent.expect("an open WebSocket");
        let echo = echo.expect("an open WebSocket").expect("a message");
        assert!(echo == Message::Binary(message), "the echo of {} bytes differs", echo.len());
    }

    /// Closes it, and waits until it is closed from the other end.
    pub async fn close(mut self) {
        self.0.close(None).await.expect("an open WebSocket");
        while let Some(Ok(_)) = self.0.next().await {}
    }
}

async fn connect(tls: &TlsConnector, from: IpAddr) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(from, 0)).expect("an address of this host");
    let sidecar: SocketAddr = SIDECAR.parse().expect("an address");
    let stream = socket.connect(sidecar).await.expect("the sidecar listens");
    tls.connect(ServerName::from(sidecar.ip()), stream).await.expect("a certificate for its address")
}

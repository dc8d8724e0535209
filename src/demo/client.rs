//! The self-check's client. It sends requests to the gateway through the sidecar, over HTTP/1.1 and
//! HTTP/2, and as WebSockets over either.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{HOST, SEC_WEBSOCKET_VERSION};
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Error as WebSocketError};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::received::Received;
use crate::http_client::send_request;
use crate::shutdown::Shutdown;
use crate::tls;

/// The time limit of one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest response body that is read, in bytes.
const MAX_BODY: usize = 1 << 20;

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestProtocol {
    H1,
    H2,
    /// WebSocket by an upgrade (RFC 6455).
    WebSocketOnH1,
    /// WebSocket by an extended CONNECT (RFC 8441).
    WebSocketOnH2,
}

impl RequestProtocol {
    pub(super) const ALL: [Self; 4] = [Self::H1, Self::H2, Self::WebSocketOnH1, Self::WebSocketOnH2];

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::H1 | Self::WebSocketOnH1 => b"http/1.1",
            Self::H2 | Self::WebSocketOnH2 => b"h2",
        }
    }
}

impl fmt::Display for RequestProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::H1 => "HTTP/1.1",
            Self::H2 => "HTTP/2",
            Self::WebSocketOnH1 => "WebSocket, h1",
            Self::WebSocketOnH2 => "WebSocket, h2",
        })
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sidecar has no listener that a client on loopback can reach.
    #[error("the sidecar listens on no address that a loopback client can reach")]
    NotListening,
    /// The CA is missing, or can't be used.
    #[error("the CA can't be used")]
    Authority(#[source] Option<rustls::Error>),
    /// The TCP connection or the TLS handshake failed.
    #[error("can't connect from {from}")]
    Connect {
        /// The client's address.
        from: Ipv4Addr,
        /// The cause.
        source: io::Error,
    },
    /// The sidecar chose another protocol than the one that was asked for.
    #[error("the sidecar did not choose {0}")]
    Protocol(&'static str),
    /// The HTTP exchange failed.
    #[error("the HTTP exchange failed")]
    Http(#[from] hyper::Error),
    /// The request is malformed.
    #[error("the request is malformed")]
    Request(#[from] http::Error),
    /// The body of the answer is incomplete or too long.
    #[error("the answer's body can't be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer has an unexpected status.
    #[error("the answer is {0}")]
    Status(StatusCode),
    /// The WebSocket failed.
    #[error("the WebSocket failed")]
    WebSocket(#[source] Box<WebSocketError>),
    /// The WebSocket ended, or sent something unexpected.
    #[error("the WebSocket did not {0}")]
    Echo(&'static str),
    /// The answer is not one of the demonstration's gateway.
    #[error("the answer can't be read")]
    Answer(#[from] serde_json::Error),
    /// There was no answer in time.
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
}

impl From<WebSocketError> for Error {
    fn from(error: WebSocketError) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

/// A client that trusts one CA and connects to one address.
pub(super) struct TrialClient {
    address: SocketAddr,
    roots: Arc<RootCertStore>,
    shutdown: Shutdown,
}

impl TrialClient {
    /// Creates a client whose connections run as tasks of `shutdown`.
    pub(super) fn new(
        address: SocketAddr,
        ca: Option<&CertificateDer<'static>>,
        shutdown: Shutdown,
    ) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.ok_or(Error::Authority(None))?.clone()).map_err(|error| Error::Authority(Some(error)))?;
        Ok(Self { address, roots: Arc::new(roots), shutdown })
    }

    /// Returns the address of the sidecar, in the form of a `Host` field.
    pub(super) fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Sends a request from the address `from`, with `extra` header fields. A `Host` in `extra`
    /// replaces the sidecar's address. Over a WebSocket, also checks that messages are echoed
    /// unchanged.
    ///
    /// Returns the request as the gateway received it.
    pub(super) async fn send(
        &self,
        from: Ipv4Addr,
        protocol: RequestProtocol,
        extra: &[(&str, &str)],
    ) -> Result<Received, Error> {
        let exchange = async {
            let tls = self.connect(from, protocol).await?;
            match protocol {
                RequestProtocol::H1 => self.get_h1(tls, extra).await,
                RequestProtocol::H2 => self.get_h2(tls, extra).await,
                RequestProtocol::WebSocketOnH1 => {
                    let fields = extra.iter().filter(|(name, _)| *name != "Host");
                    let request = fields
                        .fold(ClientRequestBuilder::new(self.uri("wss", "/echo", extra)?), |request, (name, value)| {
                            request.with_header(*name, *value)
                        });
                    check_echo(client_async(request, tls).await?.0).await
                }
                RequestProtocol::WebSocketOnH2 => self.websocket_h2(tls, extra).await,
            }
        };
        tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| Error::Timeout)?
    }

    /// Opens a TLS connection to the sidecar from the source address `from`, with the ALPN protocol
    /// of `protocol`.
    async fn connect(
        &self,
        from: Ipv4Addr,
        protocol: RequestProtocol,
    ) -> Result<TlsStream<tokio::net::TcpStream>, Error> {
        let failed = |source| Error::Connect { from, source };
        let socket = TcpSocket::new_v4().map_err(failed)?;
        socket.bind((from, 0).into()).map_err(failed)?;
        let stream = socket.connect(self.address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Authority(Some(error)))?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.alpn().to_vec()];
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)?;
        if stream.get_ref().1.alpn_protocol() == Some(protocol.alpn()) {
            Ok(stream)
        } else {
            Err(Error::Protocol(if protocol.alpn() == b"h2" { "HTTP/2" } else { "HTTP/1.1" }))
        }
    }

    /// Sends a GET request over HTTP/1.1; returns what the gateway received.
    async fn get_h1(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        extra: &[(&str, &str)],
    ) -> Result<Received, Error> {
        // Over HTTP/1.1, the target is the path alone, and the host is in the `Host` field.
        let uri = self.uri("https", "/json", extra)?;
        let host = uri.authority().map_or(String::new(), ToString::to_string);
        let request = add_headers(Request::get("/json").header(HOST, host), extra).body(Empty::<Bytes>::new())?;
        read_received(send_request(io, request).await?).await
    }

    /// Starts HTTP/2 on `io`. The connection runs as a task of its own.
    async fn open_h2(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<http2::SendRequest<Empty<Bytes>>, hyper::Error> {
        let (sender, connection) = http2::handshake(self.shutdown.clone(), TokioIo::new(io)).await?;
        self.shutdown.spawn(async { drop(connection.await) });
        Ok(sender)
    }

    /// Sends a GET request over HTTP/2; returns what the gateway received.
    async fn get_h2(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        extra: &[(&str, &str)],
    ) -> Result<Received, Error> {
        let mut sender = self.open_h2(io).await?;
        let request = add_headers(Request::get(self.uri("https", "/json", extra)?).version(Version::HTTP_2), extra);
        read_received(sender.send_request(request.body(Empty::<Bytes>::new())?).await?).await
    }

    /// Opens a WebSocket by an extended CONNECT over HTTP/2 (RFC 8441); returns what the gateway
    /// received.
    async fn websocket_h2(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        extra: &[(&str, &str)],
    ) -> Result<Received, Error> {
        let mut sender = self.open_h2(io).await?;
        // Only the server's SETTINGS allow an extended CONNECT (RFC 8441 section 3), and they
        // precede its first answer.
        let first =
            Request::get(self.uri("https", "/json", extra)?).version(Version::HTTP_2).body(Empty::<Bytes>::new())?;
        read_received(sender.send_request(first).await?).await?;
        let request =
            Request::builder().method(Method::CONNECT).uri(self.uri("https", "/echo", extra)?).version(Version::HTTP_2);
        let request = add_headers(
            request.extension(Protocol::from_static("websocket")).header(SEC_WEBSOCKET_VERSION, "13"),
            extra,
        );
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        if response.status() != StatusCode::OK {
            return Err(Error::Status(response.status()));
        }
        let stream = TokioIo::new(hyper::upgrade::on(response).await?);
        check_echo(WebSocketStream::from_raw_socket(stream, Role::Client, None).await).await
    }

    /// Returns the URI of `path` at the `Host` in `extra`, or else at the sidecar's address.
    fn uri(&self, scheme: &str, path: &str, extra: &[(&str, &str)]) -> Result<Uri, http::Error> {
        let host = extra.iter().find(|(name, _)| *name == "Host").map(|(_, host)| (*host).to_owned());
        Uri::builder().scheme(scheme).authority(host.unwrap_or_else(|| self.authority())).path_and_query(path).build()
    }
}

/// Adds the `extra` fields to the request, except `Host`, which differs by protocol.
fn add_headers(request: request::Builder, extra: &[(&str, &str)]) -> request::Builder {
    extra
        .iter()
        .filter(|(name, _)| *name != "Host")
        .fold(request, |request, (name, value)| request.header(*name, *value))
}

/// Reads the request as the gateway received it from the body of its response.
async fn read_received(response: Response<impl Body<Data = Bytes, Error = hyper::Error>>) -> Result<Received, Error> {
    if response.status() != StatusCode::OK {
        return Err(Error::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(Error::Body)?;
    Ok(serde_json::from_slice(&body.to_bytes())?)
}

/// Reads the request as the gateway received it, and sends two messages that must be echoed, the
/// second larger than any buffer on the way.
async fn check_echo<S: AsyncRead + AsyncWrite + Unpin>(mut websocket: WebSocketStream<S>) -> Result<Received, Error> {
    let Some(Message::Text(received)) = websocket.next().await.transpose()? else {
        return Err(Error::Echo("send the request as it was received"));
    };
    let received = serde_json::from_str(&received)?;
    let long: Vec<u8> = (0..200_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    for message in [Message::text("ping"), Message::binary(long)] {
        websocket.send(message.clone()).await?;
        if websocket.next().await.transpose()? != Some(message) {
            return Err(Error::Echo("echo a message"));
        }
    }
    websocket.close(None).await?;
    while let Some(message) = websocket.next().await {
        if !message?.is_close() {
            return Err(Error::Echo("close"));
        }
    }
    Ok(received)
}

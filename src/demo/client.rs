//! The self-check's client: asks the gateway, through the sidecar, what it is told; over HTTP/1.1, HTTP/2 and WebSocket on either.

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

use super::told::Told;
use crate::http_client::send_request;
use crate::shutdown::Shutdown;
use crate::tls;

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may be, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Http1,
    Http2,
    /// WebSocket by an upgrade (RFC 6455).
    WebSocketOnHttp1,
    /// WebSocket by an extended CONNECT (RFC 8441).
    WebSocketOnHttp2,
}

impl Way {
    pub(super) const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::WebSocketOnHttp1, Self::WebSocketOnHttp2];

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 | Self::WebSocketOnHttp1 => b"http/1.1",
            Self::Http2 | Self::WebSocketOnHttp2 => b"h2",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::WebSocketOnHttp1 => "WebSocket, h1",
            Self::WebSocketOnHttp2 => "WebSocket, h2",
        })
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sidecar listens nowhere that a client on loopback can reach.
    #[error("the sidecar listens nowhere within reach")]
    NoDoor,
    /// The CA is missing, or can't be used.
    #[error("the CA can't be used")]
    Authority(#[source] Option<rustls::Error>),
    /// No TCP connection or no TLS session came about.
    #[error("connecting from {from}")]
    Connect {
        /// The client's address.
        from: Ipv4Addr,
        /// What happened.
        source: io::Error,
    },
    /// The sidecar chose another protocol than the one that was asked for.
    #[error("the sidecar did not choose {0}")]
    Protocol(&'static str),
    /// HTTP broke off, or was none.
    #[error("the exchange failed")]
    Http(#[from] hyper::Error),
    /// The request can't be written down.
    #[error("the request is malformed")]
    Request(#[from] http::Error),
    /// The body of the answer did not come, or was too long.
    #[error("the answer's body can't be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another status than the one that means yes.
    #[error("the answer is {0}")]
    Status(StatusCode),
    /// The WebSocket failed.
    #[error("the WebSocket failed")]
    WebSocket(#[source] Box<WebSocketError>),
    /// The WebSocket ended, or said something else than what was due.
    #[error("the WebSocket did not {0}")]
    Echo(&'static str),
    /// The answer is not what the gateway of the demonstration says.
    #[error("the answer can't be read")]
    Answer(#[from] serde_json::Error),
    /// Nothing came in time.
    #[error("no answer within {PATIENCE:?}")]
    Slow,
}

impl From<WebSocketError> for Error {
    fn from(error: WebSocketError) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

/// A client that trusts one CA and knows one door.
pub(super) struct Client {
    door: SocketAddr,
    roots: Arc<RootCertStore>,
    shutdown: Shutdown,
}

impl Client {
    /// Its connections run as tasks of `shutdown`.
    pub(super) fn new(door: SocketAddr, ca: Option<&CertificateDer<'static>>, shutdown: Shutdown) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.ok_or(Error::Authority(None))?.clone()).map_err(|error| Error::Authority(Some(error)))?;
        Ok(Self { door, roots: Arc::new(roots), shutdown })
    }

    /// The door, as `Host` names it.
    pub(super) fn authority(&self) -> String {
        self.door.to_string()
    }

    /// Asks from the address `from`, with `extra` fields; a `Host` among them is asked for instead of the door.
    ///
    /// Over WebSocket, messages must come back as they were sent, too.
    pub(super) async fn ask(&self, from: Ipv4Addr, way: Way, extra: &[(&str, &str)]) -> Result<Told, Error> {
        let exchange = async {
            let tls = self.connect(from, way).await?;
            match way {
                Way::Http1 => self.get_http1(tls, extra).await,
                Way::Http2 => self.get_http2(tls, extra).await,
                Way::WebSocketOnHttp1 => {
                    let fields = extra.iter().filter(|(name, _)| *name != "Host");
                    let request = fields.fold(ClientRequestBuilder::new(self.uri("wss", "/echo", extra)?), |request, (name, value)| {
                        request.with_header(*name, *value)
                    });
                    converse(client_async(request, tls).await?.0).await
                }
                Way::WebSocketOnHttp2 => self.websocket_http2(tls, extra).await,
            }
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| Error::Slow)?
    }

    async fn connect(&self, from: Ipv4Addr, way: Way) -> Result<TlsStream<tokio::net::TcpStream>, Error> {
        let failed = |source| Error::Connect { from, source };
        let socket = TcpSocket::new_v4().map_err(failed)?;
        socket.bind((from, 0).into()).map_err(failed)?;
        let stream = socket.connect(self.door).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Authority(Some(error)))?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![way.alpn().to_vec()];
        let name = ServerName::IpAddress(self.door.ip().into());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)?;
        if stream.get_ref().1.alpn_protocol() == Some(way.alpn()) {
            Ok(stream)
        } else {
            Err(Error::Protocol(if way.alpn() == b"h2" { "HTTP/2" } else { "HTTP/1.1" }))
        }
    }

    async fn get_http1(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, extra: &[(&str, &str)]) -> Result<Told, Error> {
        // A client of HTTP/1.1 names the path alone, and the host in a field of its own.
        let uri = self.uri("https", "/json", extra)?;
        let host = uri.authority().map_or(String::new(), ToString::to_string);
        let request = with(Request::get("/json").header(HOST, host), extra).body(Empty::<Bytes>::new())?;
        read(send_request(io, request).await?).await
    }

    async fn get_http2(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, extra: &[(&str, &str)]) -> Result<Told, Error> {
        let (mut sender, connection) = http2::handshake(self.shutdown.clone(), TokioIo::new(io)).await?;
        self.shutdown.spawn(async { drop(connection.await) });
        let request = with(Request::get(self.uri("https", "/json", extra)?).version(Version::HTTP_2), extra);
        read(sender.send_request(request.body(Empty::<Bytes>::new())?).await?).await
    }

    async fn websocket_http2(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        extra: &[(&str, &str)],
    ) -> Result<Told, Error> {
        let (mut sender, connection) = http2::handshake(self.shutdown.clone(), TokioIo::new(io)).await?;
        self.shutdown.spawn(async { drop(connection.await) });
        // Only the server's SETTINGS allow an extended CONNECT (RFC 8441 section 3), and they precede its first answer.
        let first = Request::get(self.uri("https", "/json", extra)?).version(Version::HTTP_2).body(Empty::<Bytes>::new())?;
        read(sender.send_request(first).await?).await?;
        let request = Request::builder().method(Method::CONNECT).uri(self.uri("https", "/echo", extra)?).version(Version::HTTP_2);
        let request = with(request.extension(Protocol::from_static("websocket")).header(SEC_WEBSOCKET_VERSION, "13"), extra);
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        if response.status() != StatusCode::OK {
            return Err(Error::Status(response.status()));
        }
        let stream = TokioIo::new(hyper::upgrade::on(response).await?);
        converse(WebSocketStream::from_raw_socket(stream, Role::Client, None).await).await
    }

    fn uri(&self, scheme: &str, path: &str, extra: &[(&str, &str)]) -> Result<Uri, http::Error> {
        let host = extra.iter().find(|(name, _)| *name == "Host").map(|(_, host)| (*host).to_owned());
        Uri::builder().scheme(scheme).authority(host.unwrap_or_else(|| self.authority())).path_and_query(path).build()
    }
}

/// Adds `extra` fields, save `Host`, which has its own place in every protocol.
fn with(request: request::Builder, extra: &[(&str, &str)]) -> request::Builder {
    extra.iter().filter(|(name, _)| *name != "Host").fold(request, |request, (name, value)| request.header(*name, *value))
}

async fn read(response: Response<impl Body<Data = Bytes, Error = hyper::Error>>) -> Result<Told, Error> {
    if response.status() != StatusCode::OK {
        return Err(Error::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(Error::Body)?;
    Ok(serde_json::from_slice(&body.to_bytes())?)
}

/// Hears what the gateway was told, and sends two messages that must come back, the second longer than any one buffer on the way.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut websocket: WebSocketStream<S>) -> Result<Told, Error> {
    let Some(Message::Text(told)) = websocket.next().await.transpose()? else { return Err(Error::Echo("say what it was told")) };
    let told = serde_json::from_str(&told)?;
    let long: Vec<u8> = (0..200_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    for message in [Message::text("is anybody there?"), Message::binary(long)] {
        websocket.send(message.clone()).await?;
        if websocket.next().await.transpose()? != Some(message) {
            return Err(Error::Echo("give back what it was sent"));
        }
    }
    websocket.close(None).await?;
    while let Some(message) = websocket.next().await {
        if !message?.is_close() {
            return Err(Error::Echo("end when it was closed"));
        }
    }
    Ok(told)
}

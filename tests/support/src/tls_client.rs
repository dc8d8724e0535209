//! A TLS client of the sidecar, for raw HTTP/1.1, HTTP/2 and whole requests.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream as BlockingTcpStream};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustls::client::{ResolvesClientCert, Resumption, WantsClientCert};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, StreamOwned};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::raw_http::RawHttp;
use crate::tasks::Tasks;

/// A client's connection after its handshake.
pub type Tls = TlsStream<TcpStream>;

/// A client that connects to one address and trusts one CA.
#[derive(Clone)]
pub struct TlsClient {
    /// The sidecar's address.
    pub address: SocketAddr,
    /// Background tasks of the client's connections.
    pub tasks: Tasks,
    /// The source address of [`TlsClient::connect`].
    source: IpAddr,
    server_name: ServerName<'static>,
    ca: CertificateDer<'static>,
    config: Arc<ClientConfig>,
}

/// The HTTP version that a client uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    H1,
    H2,
}

/// All versions of HTTP.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::H1, Protocol::H2];

impl TlsClient {
    /// Creates a client of the sidecar at `address`, whose CA is `ca`. It expects a certificate for
    /// `localhost`.
    pub fn new(address: SocketAddr, ca: CertificateDer<'static>) -> Self {
        Self {
            address,
            tasks: Tasks::default(),
            source: Ipv4Addr::LOCALHOST.into(),
            server_name: ServerName::try_from("localhost").unwrap(),
            config: Arc::new(trusting(&ca).with_no_client_auth()),
            ca,
        }
    }

    /// Creates a client like [`TlsClient::new`], with the CA's certificate in a PEM file.
    pub fn with_ca_file(address: SocketAddr, ca: &Path) -> Self {
        Self::new(
            address,
            CertificateDer::from_pem_file(ca).unwrap_or_else(|error| panic!("{}: {error}", ca.display())),
        )
    }

    /// Returns this client with the source address `source`.
    pub fn from(&self, source: &str) -> Self {
        Self { source: source.parse().unwrap(), ..self.clone() }
    }

    /// Returns this client, which then expects a certificate for the IP address that it connects
    /// to.
    pub fn expecting_address(self) -> Self {
        Self { server_name: self.address.ip().into(), ..self }
    }

    /// Returns this client with a client certificate.
    pub fn with_certificate(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { config: Arc::new(trusting(&self.ca).with_client_auth_cert(chain, key).unwrap()), ..self.clone() }
    }

    /// Returns this client without session tickets, so that each handshake is a full one.
    pub fn without_tickets(&self) -> Self {
        let mut config = (*self.config).clone();
        config.resumption = Resumption::disabled();
        Self { config: Arc::new(config), ..self.clone() }
    }

    /// Returns this client with this client certificate and key.
    pub fn with_certified_key(&self, key: Arc<CertifiedKey>) -> Self {
        let resolver = Arc::new(SingleCertAndKey::from(key));
        Self { config: Arc::new(trusting(&self.ca).with_client_cert_resolver(resolver)), ..self.clone() }
    }

    /// Returns this client with the certificates that `resolver` chooses.
    pub fn with_certificate_resolver(&self, resolver: Arc<dyn ResolvesClientCert>) -> Self {
        Self { config: Arc::new(trusting(&self.ca).with_client_cert_resolver(resolver)), ..self.clone() }
    }

    /// Opens a TCP connection from `source`.
    pub async fn connect_tcp(&self, source: &str) -> TcpStream {
        tcp(source.parse().unwrap(), self.address).await.unwrap()
    }

    /// Starts a forwarder for programs that can't choose their source address. A connection to the
    /// returned address reaches the sidecar from `source`. The forwarder lasts as long as
    /// [`TlsClient::tasks`].
    pub async fn start_forwarder(&self, source: &str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sidecar, source, tasks) = (self.address, source.parse().unwrap(), Tasks::default());
        self.tasks.spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                tasks.spawn(async move {
                    let mut far = tcp(source, sidecar).await.unwrap();
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        address
    }

    /// Does a handshake on `stream`, offering one ALPN protocol.
    pub async fn handshake(&self, stream: TcpStream, alpn: &str) -> io::Result<Tls> {
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        TlsConnector::from(Arc::new(config)).connect(self.server_name.clone(), stream).await
    }

    /// Opens a TLS connection from this client's own address, offering one ALPN protocol.
    pub async fn connect(&self, alpn: &str) -> io::Result<Tls> {
        self.handshake(tcp(self.source, self.address).await?, alpn).await
    }

    /// Opens a TLS connection from this client's own address, without ALPN, for code that blocks.
    pub fn connect_blocking(&self) -> StreamOwned<ClientConnection, BlockingTcpStream> {
        let socket = blocking_tcp(self.source, self.address);
        let client = ClientConnection::new(Arc::clone(&self.config), self.server_name.clone()).unwrap();
        StreamOwned::new(client, socket)
    }

    /// Opens a TLS connection from `source`, on which the caller writes and reads HTTP/1.1 as
    /// bytes.
    pub async fn connect_h1(&self, source: &str) -> RawHttp<Tls> {
        RawHttp::new(self.handshake(self.connect_tcp(source).await, "http/1.1").await.unwrap())
    }

    /// Opens an HTTP/2 connection from `source`. It lasts as long as [`TlsClient::tasks`].
    pub async fn connect_h2(&self, source: &str) -> h2::client::SendRequest<Bytes> {
        let stream = self.handshake(self.connect_tcp(source).await, "h2").await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        self.tasks.spawn(async move {
            let _ = connection.await;
        });
        sender.ready().await.unwrap()
    }

    /// Sends a request without a body on a new connection, and returns the status and the body of
    /// the response.
    pub async fn send_request(
        &self,
        protocol: Protocol,
        source: &str,
        line: &str,
        fields: &[(&str, &str)],
    ) -> (u16, String) {
        match protocol {
            Protocol::H1 => {
                let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let response = self.connect_h1(source).await.send_request(request_text(line, &fields)).await;
                (response.status(), response.text())
            }
            Protocol::H2 => {
                let mut client = self.connect_h2(source).await;
                let (response, _) = client.send_request(h2_request(line, fields), true).unwrap();
                let (head, mut body) = response.await.unwrap().into_parts();
                (head.status.as_u16(), String::from_utf8(read_whole_body(&mut body).await.unwrap()).unwrap())
            }
        }
    }
}

/// Returns a configuration that trusts only `ca`.
fn trusting(ca: &CertificateDer<'static>) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
}

async fn tcp(source: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source, 0))?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn blocking_tcp(source: IpAddr, to: SocketAddr) -> BlockingTcpStream {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// Returns the request that most tests send. `line` is `METHOD path`, and `fields` are further
/// header lines.
pub fn request_text(line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: gateway.example:18789\r\n{fields}\r\n")
}

/// Returns the same request as [`request_text`] for HTTP/2.
pub fn h2_request(line: &str, fields: &[(&str, &str)]) -> http::Request<()> {
    let (method, path) = line.split_once(' ').unwrap();
    let uri = format!("https://gateway.example:18789{path}");
    let request = http::Request::builder().version(http::Version::HTTP_2).method(method).uri(uri);
    fields.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
}

/// Reads a whole body, without the trailers.
pub async fn read_whole_body(body: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

//! The house of every story: a sidecar that runs in this process, the gateway behind it, and ways to come to its door.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use loopgate::app::Sidecar;
use loopgate::config::{Config, Engine, ListenAddresses, ListenOn};
use loopgate::shutdown::Shutdown;
use rustls::client::WantsClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::gateway::Gateway;
use crate::wire::Wire;

/// A client that nobody has heard of.
pub const STRANGER: &str = "127.0.0.3";
/// A client of the network that `agents.cidrs` names.
pub const AGENT: &str = "127.0.0.9";
/// A peer in `external.trusted_proxies`.
pub const PROXY: &str = "127.0.0.7";
/// What a client whose address says nothing is stated as.
pub const UNKNOWN: &str = "192.0.2.1";
/// What the gateway sees the external lane come from.
pub const EXTERNAL: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A client's connection after its handshake.
pub type Tls = TlsStream<TcpStream>;

/// A sidecar's door, as those who come to it know it.
pub struct Door {
    pub address: SocketAddr,
    /// For what a story runs beside itself.
    pub tasks: Shutdown,
    client: Arc<ClientConfig>,
}

pub struct House {
    pub gateway: Gateway,
    pub sidecar: Sidecar,
    /// The sidecar's state directory.
    pub state: TempDir,
    door: Door,
    ca: CertificateDer<'static>,
}

impl std::ops::Deref for House {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.door
    }
}

impl House {
    /// A house as most stories want it.
    pub async fn open() -> Self {
        Self::with(|_| {}).await
    }

    /// A house whose configuration `change` has had a look at.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let gateway = Gateway::start().await;
        let state = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.gateway.address = gateway.address;
        config.listen.on = vec![ListenOn { addresses: ListenAddresses::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: 0 }];
        config.state_dir = state.path().to_owned();
        config.docker.engine = Engine::Off;
        config.agents.cidrs = vec![format!("{AGENT}/32").parse().unwrap()];
        config.external.trusted_proxies = vec![format!("{PROXY}/32").parse().unwrap()];
        config.tls.names = vec!["gateway.example".into()];
        config.admin = None;
        change(&mut config);
        let sidecar = Sidecar::start(config).await.unwrap();
        let ca = sidecar.identity().ca.clone().unwrap();
        let door = Door::new(sidecar.listening()[0], ca.clone());
        Self { gateway, sidecar, state, door, ca }
    }

    /// The door to those who show this certificate.
    pub fn shown(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Door {
        Door::of(self.address, self.ca.clone(), |client| client.with_client_auth_cert(chain, key).unwrap())
    }

    /// The door to those who show the certificate of this key.
    pub fn shown_by(&self, key: Arc<CertifiedKey>) -> Door {
        Door::of(self.address, self.ca.clone(), |client| client.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))))
    }
}

impl Door {
    /// The door at `address`, of a sidecar whose CA is `ca`.
    pub fn new(address: SocketAddr, ca: CertificateDer<'static>) -> Self {
        Self::of(address, ca, |client| client.with_no_client_auth())
    }

    fn of(
        address: SocketAddr,
        ca: CertificateDer<'static>,
        shows: impl FnOnce(ConfigBuilder<ClientConfig, WantsClientCert>) -> ClientConfig,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(ca).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Self { address, tasks: Shutdown::new(), client: Arc::new(shows(client)) }
    }

    /// A TCP connection from `source`.
    pub async fn tcp(&self, source: &str) -> TcpStream {
        connect(source, self.address).await
    }

    /// An address from which a program that can't choose its own comes to this door from `source`, for as long as the house stands.
    pub async fn road(&self, source: &str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (door, source, tasks) = (self.address, source.to_owned(), self.tasks.clone());
        self.tasks.spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let source = source.clone();
                tasks.spawn(async move {
                    let mut far = connect(&source, door).await;
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        address
    }

    /// A handshake on `stream`, offering one ALPN protocol.
    pub async fn handshake(&self, stream: TcpStream, alpn: &str) -> std::io::Result<Tls> {
        let mut config = (*self.client).clone();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
    }

    /// A connection from `source` on which bytes are HTTP/1.1.
    pub async fn h1(&self, source: &str) -> Wire<Tls> {
        Wire::new(self.handshake(self.tcp(source).await, "http/1.1").await.unwrap())
    }

    /// An HTTP/2 connection from `source`, which lives for as long as the house does.
    pub async fn h2(&self, source: &str) -> h2::client::SendRequest<Bytes> {
        let stream = self.handshake(self.tcp(source).await, "h2").await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        self.tasks.spawn(async move {
            let _ = connection.await;
        });
        sender.ready().await.unwrap()
    }
}

async fn connect(source: &str, door: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    let stream = socket.connect(door).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The request that most stories send: `method path`, a host, and what else it says.
pub fn request(line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: gateway.example:18789\r\n{fields}\r\n")
}

/// How a story asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    H1,
    H2,
}

pub const BOTH: [Protocol; 2] = [Protocol::H1, Protocol::H2];

impl Door {
    /// Sends one request without a body on a connection of its own, and returns its status and body.
    pub async fn ask(&self, protocol: Protocol, source: &str, line: &str, fields: &[(&str, &str)]) -> (u16, String) {
        match protocol {
            Protocol::H1 => {
                let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let response = self.h1(source).await.ask(request(line, &fields)).await;
                (response.status(), response.text())
            }
            Protocol::H2 => {
                let mut client = self.h2(source).await;
                let (response, _) = client.send_request(h2_request(line, fields), true).unwrap();
                let (head, mut body) = response.await.unwrap().into_parts();
                (head.status.as_u16(), String::from_utf8(whole(&mut body).await.unwrap()).unwrap())
            }
        }
    }
}

/// The same request as [`request`] makes, for HTTP/2.
pub fn h2_request(line: &str, fields: &[(&str, &str)]) -> http::Request<()> {
    let (method, path) = line.split_once(' ').unwrap();
    let uri = format!("https://gateway.example:18789{path}");
    let request = http::Request::builder().version(http::Version::HTTP_2).method(method).uri(uri);
    fields.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
}

/// Everything that a body holds, trailers aside.
pub async fn whole(body: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

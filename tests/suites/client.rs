//! TLS and HTTP as clients of the sidecar's door do them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A client at one address that trusts one CA.
#[derive(Clone)]
pub struct Client {
    tls: Arc<ClientConfig>,
    from: IpAddr,
    to: SocketAddr,
}

impl Client {
    /// A client at `from` that comes to the door `to`, which has a certificate of the CA in `ca`.
    pub fn new(ca: &Path, from: &str, to: SocketAddr) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let tls = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
        Self { tls: Arc::new(tls), from: from.parse().unwrap(), to }
    }

    /// A TCP connection to the door.
    pub async fn tcp(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.from, 0))?;
        let stream = socket.connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection on which `alpn` is spoken.
    pub async fn connect(&self, alpn: &str) -> io::Result<TlsStream<TcpStream>> {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = vec![alpn.into()];
        TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost").unwrap(), self.tcp().await?).await
    }
}

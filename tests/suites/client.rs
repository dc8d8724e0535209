//! TLS and HTTP as clients of the sidecar's door do them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
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

fn trusting(ca: &Path) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots)
}

impl Client {
    /// A client at `from` that comes to the door `to`, which has a certificate of the CA in `ca`.
    pub fn new(ca: &Path, from: &str, to: SocketAddr) -> Self {
        Self { tls: Arc::new(trusting(ca).with_no_client_auth()), from: from.parse().unwrap(), to }
    }

    /// The same client with a certificate to show.
    pub fn showing(self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>, ca: &Path) -> Self {
        Self { tls: Arc::new(trusting(ca).with_client_auth_cert(chain, key).unwrap()), ..self }
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

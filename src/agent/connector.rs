//! Opens connections to the sidecar: resolves its name, connects, and verifies its certificate.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::sign::SingleCertAndKey;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::credentials::Credentials;
use super::trust::{self, ServerTrust};
use crate::enrolment_protocol;

/// The timeout of connecting to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The timeout of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The idle time before TCP keep-alive probes, which are sent three times as often after that.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
/// The time for which sent bytes may stay unacknowledged (`TCP_USER_TIMEOUT`).
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// An address of the form `host:port`. The host is a name, an IPv4 address, or an IPv6 address in
/// brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// The error for text that is not `host:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected host:port")]
pub struct EndpointError;

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or(EndpointError)?;
        let port = port.parse().map_err(|_| EndpointError)?;
        if host.is_empty() || host.contains([':', '/', '[', ']', '@']) {
            return Err(EndpointError);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why there is no connection to the sidecar.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lookup of the sidecar's host failed, or found no address.
    #[error("can't resolve the sidecar's name in {endpoint}")]
    Lookup {
        /// The endpoint whose host was looked up.
        endpoint: Endpoint,
        /// The resolver's error.
        source: io::Error,
    },
    /// None of the sidecar's addresses accepts a connection.
    #[error("can't connect to {address}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// The error of that attempt.
        source: io::Error,
    },
    /// The handshake failed, for example because the certificate is not trusted, or did not end in
    /// time.
    #[error("TLS handshake with {address} failed")]
    Handshake {
        /// The sidecar's address.
        address: SocketAddr,
        /// The error of TLS or of the connection.
        source: io::Error,
    },
    /// The server did not choose the enrolment protocol by ALPN.
    #[error("{0} does not offer enrolment, so it is not a loopgate sidecar; check --sidecar")]
    NoEnrolment(SocketAddr),
    /// The sidecar's certificate can't be verified.
    #[error(transparent)]
    Trust(#[from] trust::Error),
}

/// Opens connections to one sidecar.
#[derive(Debug)]
pub struct Connector {
    endpoint: Endpoint,
    server_name: ServerName<'static>,
    trust: ServerTrust,
    /// The last TLS configuration for local clients. It is reused to resume sessions, but only with
    /// the same credentials and the same CA.
    cached_config: Mutex<Option<CachedConfig>>,
}

#[derive(Debug)]
struct CachedConfig {
    ca_pem: Vec<u8>,
    credentials: Arc<Credentials>,
    config: Arc<ClientConfig>,
}

impl Connector {
    /// Returns a connector to `endpoint`. The sidecar's certificate must satisfy `trust`, and have
    /// the name `server_name`, or by default the endpoint's host.
    ///
    /// # Errors
    /// The name is neither a DNS name nor an IP address.
    pub fn new(endpoint: Endpoint, server_name: Option<&str>, trust: ServerTrust) -> Result<Self, trust::Error> {
        let name = server_name.unwrap_or(&endpoint.host);
        let server_name = ServerName::try_from(name.to_owned()).map_err(|_| trust::Error::Name(name.to_owned()))?;
        Ok(Self { endpoint, server_name, trust, cached_config: Mutex::new(None) })
    }

    /// Returns the sidecar's host and port.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Opens a connection for an enrolment, without a client certificate.
    ///
    /// # Errors
    /// The sidecar can't be reached, isn't trusted, or doesn't offer enrolment.
    pub async fn connect_for_enrolment(&self) -> Result<TlsStream<TcpStream>, Error> {
        let ca_pem = self.trust.read_ca_pem().await?;
        let mut config = self.config_builder(&ca_pem)?.with_no_client_auth();
        config.alpn_protocols = vec![enrolment_protocol::ALPN.to_vec()];
        let (stream, address) = self.connect_tls(Arc::new(config)).await?;
        if stream.get_ref().1.alpn_protocol() != Some(enrolment_protocol::ALPN) {
            return Err(Error::NoEnrolment(address));
        }
        Ok(stream)
    }

    /// Opens a connection to relay a local client's bytes, with `credentials` as the client
    /// certificate.
    ///
    /// # Errors
    /// The sidecar can't be reached or isn't trusted.
    pub async fn connect_for_client(&self, credentials: &Arc<Credentials>) -> Result<TlsStream<TcpStream>, Error> {
        let ca_pem = self.trust.read_ca_pem().await?;
        Ok(self.connect_tls(self.config_for_client(ca_pem, credentials)?).await?.0)
    }

    /// Returns the TLS configuration for local clients: the cached one if credentials and CA are
    /// the same, else a new one.
    fn config_for_client(&self, ca_pem: Vec<u8>, credentials: &Arc<Credentials>) -> Result<Arc<ClientConfig>, Error> {
        let mut cached = self.cached_config.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some(known) if known.ca_pem == ca_pem && Arc::ptr_eq(&known.credentials, credentials) => {
                Ok(known.config.clone())
            }
            _ => {
                let resolver = SingleCertAndKey::from(credentials.certified_key.clone());
                let mut config = self.config_builder(&ca_pem)?.with_client_cert_resolver(Arc::new(resolver));
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                let config = Arc::new(config);
                *cached = Some(CachedConfig { ca_pem, credentials: credentials.clone(), config: config.clone() });
                Ok(config)
            }
        }
    }

    /// Returns a builder for a configuration that verifies the sidecar as `self.trust` says.
    fn config_builder(
        &self,
        ca_pem: &[u8],
    ) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, Error> {
        let verifier = self.trust.create_verifier(ca_pem)?;
        let builder = ClientConfig::builder_with_provider(trust::crypto_provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.3 and 1.2");
        Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
    }

    /// Connects to the sidecar and completes the TLS handshake. Returns the sidecar's address too.
    async fn connect_tls(&self, config: Arc<ClientConfig>) -> Result<(TlsStream<TcpStream>, SocketAddr), Error> {
        let (stream, address) = self.connect_tcp().await?;
        let handshake = TlsConnector::from(config).connect(self.server_name.clone(), stream);
        let outcome =
            timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        outcome.map(|stream| (stream, address)).map_err(|source| Error::Handshake { address, source })
    }

    /// Resolves the sidecar's name, and connects to the first address that accepts, which is
    /// returned too.
    async fn connect_tcp(&self) -> Result<(TcpStream, SocketAddr), Error> {
        let lookup = |source| Error::Lookup { endpoint: self.endpoint.clone(), source };
        let addresses =
            tokio::net::lookup_host((self.endpoint.host.as_str(), self.endpoint.port)).await.map_err(lookup)?;
        let mut failure = lookup(io::ErrorKind::NotFound.into());
        for address in addresses {
            let outcome = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
            match outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).and_then(set_socket_options) {
                Ok(stream) => return Ok((stream, address)),
                Err(source) => failure = Error::Connect { address, source },
            }
        }
        Err(failure)
    }
}

/// Sets `TCP_NODELAY`, and keep-alive and `TCP_USER_TIMEOUT`, so that a lost peer is noticed.
fn set_socket_options(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(&stream);
    socket
        .set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_TIME / 3))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        let table = [
            ("gateway:18789", Some(("gateway", 18789, "gateway:18789"))),
            ("10.0.0.5:1", Some(("10.0.0.5", 1, "10.0.0.5:1"))),
            ("[fd00::1]:443", Some(("fd00::1", 443, "[fd00::1]:443"))),
            ("gateway", None),
            (":1", None),
            ("gateway:", None),
            ("gateway:70000", None),
            ("fd00::1:443", None),
            ("https://gateway:443", None),
        ];
        for (text, expected) in table {
            let endpoint = text.parse::<Endpoint>().ok();
            let parsed = endpoint.as_ref().map(|e| (e.host.as_str(), e.port, e.to_string()));
            assert_eq!(parsed.as_ref().map(|(h, p, t)| (*h, *p, t.as_str())), expected, "{text}");
        }
    }
}

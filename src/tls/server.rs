//! The TLS server configuration, and the handshake.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::client_ca::{self, ClientAuthorities};
use super::client_verifier::ClientVerifier;
use super::plain;
use super::provider::provider;
use super::read_ahead::ReadAhead;
use crate::lane::Certificate;
use crate::pki::{ServedCa, ServerIdentity, SubjectName};

/// The ALPN protocol with which agents enrol.
pub const ENROLMENT_ALPN: &[u8] = crate::enrolment_protocol::ALPN;

/// A downstream connection after its handshake. It is boxed, since it is larger than a kilobyte and
/// is moved often.
pub type Stream<S> = Box<TlsStream<ReadAhead<S>>>;

/// Why a TLS configuration can't be built, or why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// rustls rejects the identity or the client CAs.
    #[error("can't build a TLS configuration from the certificate and the client CAs")]
    Config(#[from] rustls::Error),
    /// The client CA bundle can't be used.
    #[error(transparent)]
    Authorities(#[from] client_ca::Error),
    /// The client did not finish the handshake within this time.
    #[error("the TLS handshake took longer than {0:?}")]
    Slow(Duration),
    /// The client sent HTTP without TLS. It got an HTTP response with status 400.
    #[error("the client speaks HTTP without TLS")]
    PlainHttp,
    /// The client sent invalid TLS, or closed the connection.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
}

impl Error {
    /// Returns the reason in one word, as the metric's label names it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Slow(_) => "timeout",
            Self::PlainHttp => "plain_http",
            Self::Handshake(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                    "client_certificate"
                }
                Some(rustls::Error::AlertReceived(_)) => "client_alert",
                Some(rustls::Error::PeerIncompatible(_)) => "incompatible",
                Some(_) => "protocol",
                None => "connection_lost",
            },
            Self::Config(_) | Self::Authorities(_) => "configuration",
        }
    }
}

/// The TLS configuration of new connections.
#[derive(Clone)]
pub struct TlsServerConfig {
    /// The configuration for clients that are not asked for a certificate.
    without_client_auth: Arc<ServerConfig>,
    /// The configuration for clients that are asked for a certificate; `None` if no CA is trusted.
    with_client_auth: Option<Arc<ServerConfig>>,
    authorities: Arc<ClientAuthorities>,
    names: BTreeSet<SubjectName>,
    served_ca: Option<Arc<ServedCa>>,
}

impl TlsServerConfig {
    /// Returns the names by which clients may address loopgate: those in the certificate and those
    /// of the configuration.
    pub fn names(&self) -> &BTreeSet<SubjectName> {
        &self.names
    }

    /// Returns whether both trust the same CAs of `tls.client_ca`.
    pub fn trusts_same_client_cas(&self, other: &Self) -> bool {
        self.authorities.has_same_operator_cas(&other.authorities)
    }

    /// Returns whether both accept the same client certificates.
    pub fn accepts_same_certificates(&self, other: &Self) -> bool {
        self.trusts_same_client_cas(other) && self.authorities.has_same_revocations(&other.authorities)
    }

    /// Returns whether `certificate` was issued by loopgate's CA and is revoked.
    pub fn revokes(&self, certificate: &Certificate) -> bool {
        self.authorities.revokes(certificate)
    }

    /// Returns a configuration with TLS 1.3 and 1.2, ALPN, optional client certificates, stateless
    /// tickets and no early data. `further_names` are names of loopgate that are not in the
    /// certificate.
    ///
    /// Each configuration has new ticket keys, so that a session can't be resumed after the client
    /// CAs have changed.
    ///
    /// # Errors
    /// The crypto provider can't use the identity.
    pub fn new(
        identity: &ServerIdentity,
        authorities: Arc<ClientAuthorities>,
        further_names: impl IntoIterator<Item = SubjectName>,
    ) -> Result<Self, Error> {
        let without_client_auth = server_config(identity, None)?;
        let with_client_auth =
            authorities.verifier().map(|verifier| server_config(identity, Some(verifier))).transpose()?;
        let names = identity.names.iter().cloned().chain(further_names).collect();
        Ok(Self { without_client_auth, with_client_auth, authorities, names, served_ca: None })
    }

    /// Sets the CA certificate that clients may download and install (`external.serve_ca`).
    #[must_use]
    pub fn with_served_ca(self, served_ca: Option<ServedCa>) -> Self {
        Self { served_ca: served_ca.map(Arc::new), ..self }
    }

    /// Returns the CA certificate that clients may download; `None` if it is not served.
    pub fn served_ca(&self) -> Option<&Arc<ServedCa>> {
        self.served_ca.as_ref()
    }

    /// Returns the configuration for a client, which is asked for a certificate if
    /// `may_have_certificate` is true or `tls.client_ca` is set.
    fn for_client(&self, may_have_certificate: bool) -> &Arc<ServerConfig> {
        let asks_for_certificate = may_have_certificate || self.authorities.has_operator_cas();
        self.with_client_auth.as_ref().filter(|_| asks_for_certificate).unwrap_or(&self.without_client_auth)
    }
}

/// Returns the configuration of TLS handshakes that serve `identity` and verify client certificates
/// by `verifier`.
fn server_config(
    identity: &ServerIdentity,
    verifier: Option<Arc<ClientVerifier>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&identity.certified_key));
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), ENROLMENT_ALPN.to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 2;
    // The server's order of cipher suites decides, AES-256 first: scanners rate a server without an
    // order as weak.
    config.ignore_client_order = true;
    debug_assert!(config.ticketer.enabled() && config.max_early_data_size == 0);
    Ok(Arc::new(config))
}

/// The result of a handshake.
pub struct Handshake<S> {
    /// The encrypted connection.
    pub stream: Stream<S>,
    /// The client's verified certificate, if it sent one.
    pub certificate: Option<Certificate>,
}

/// Performs the TLS handshake on `io`, for at most `time_limit`. Answers plain HTTP with status 400
/// and closes the connection.
///
/// If `may_have_certificate` is false, the client can't have a certificate that counts. It is then
/// not asked for one, so that it can't cause the work of verifying it.
///
/// # Errors
/// The client is too slow, closes the connection, or sends plain HTTP or invalid TLS.
pub async fn accept(
    io: TcpStream,
    config: &TlsServerConfig,
    may_have_certificate: bool,
    time_limit: Duration,
) -> Result<Handshake<TcpStream>, Error> {
    // Boxed, so that the memory for the handshake is freed at its end.
    let handshake = Box::pin(async {
        if plain::is_plain_http(&io).await {
            plain::respond_and_close(io).await;
            return Err(Error::PlainHttp);
        }
        TlsAcceptor::from(Arc::clone(config.for_client(may_have_certificate)))
            .accept(ReadAhead::new(io))
            .await
            .map_err(Error::Handshake)
    });
    let stream = Box::new(tokio::time::timeout(time_limit, handshake).await.map_err(|_| Error::Slow(time_limit))??);
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = config.authorities.leaf_certificate(chain);
    Ok(Handshake { stream, certificate })
}

//! The server's side of the handshake.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::{self, ClientAuthorities};
use super::plain;
use super::wide::Wide;
use crate::lane::Certificate;
use crate::pki::{Identity, SubjectName};

/// The ALPN protocol of an agent that asks for its certificate.
pub const ENROL: &[u8] = crate::attest::ALPN;

/// A downstream connection after its handshake; boxed, since it is more than a kilobyte and passes through many hands.
pub type Stream<S> = Box<TlsStream<Wide<S>>>;

/// Why there is nothing to shake hands with, or no hand was shaken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The identity or the client authorities don't make a usable configuration.
    #[error("the certificate can't be served")]
    Config(#[from] rustls::Error),
    /// The operator's CA bundle can't be used.
    #[error(transparent)]
    Authorities(#[from] certificate::Error),
    /// The client did not finish in time.
    #[error("the TLS handshake took longer than {0:?}")]
    Slow(Duration),
    /// The client spoke HTTP without TLS, and was told so.
    #[error("HTTP without TLS")]
    PlainHttp,
    /// The client sent something else than TLS, or gave up.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
}

impl Error {
    /// The reason in one word, as the metric names it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Slow(_) => "timeout",
            Self::PlainHttp => "plain_http",
            Self::Handshake(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => "client_certificate",
                Some(rustls::Error::AlertReceived(_)) => "client_alert",
                Some(rustls::Error::PeerIncompatible(_)) => "incompatible",
                Some(_) => "protocol",
                None => "connection_lost",
            },
            Self::Config(_) | Self::Authorities(_) => "configuration",
        }
    }
}

/// What connections are accepted on at one moment.
#[derive(Clone)]
pub struct Terms {
    config: Arc<ServerConfig>,
    authorities: Arc<ClientAuthorities>,
    names: BTreeSet<SubjectName>,
}

impl Terms {
    /// The names in the certificate that is shown, and what else clients call us by.
    pub fn names(&self) -> &BTreeSet<SubjectName> {
        &self.names
    }

    /// Whether both believe the same authorities of the operator's.
    pub fn believes_the_same(&self, other: &Self) -> bool {
        self.authorities.same_operator(&other.authorities)
    }

    /// TLS 1.3 and 1.2, ALPN, a certificate asked for but not demanded, stateless tickets and no early data. Clients that go by something
    /// else than names in the certificate may call us by one of `further`.
    ///
    /// Each call makes tickets of its own: a session that was opened when other client certificates were trusted must not be resumed.
    ///
    /// # Errors
    /// The identity does not suit the crypto provider.
    pub fn new(
        identity: &Identity,
        authorities: Arc<ClientAuthorities>,
        further: impl IntoIterator<Item = SubjectName>,
    ) -> Result<Self, Error> {
        let builder =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let builder = match authorities.verifier()? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&identity.certified_key));
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), ENROL.to_vec()];
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 2;
        // The choice is the server's, AES-256 first: scanners rate a server without an order as weak.
        config.ignore_client_order = true;
        debug_assert!(config.ticketer.enabled() && config.max_early_data_size == 0);
        let names = identity.names.iter().cloned().chain(further).collect();
        Ok(Self { config: Arc::new(config), authorities, names })
    }
}

/// aws-lc-rs with the hybrid post-quantum key exchange X25519MLKEM768 first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A finished handshake.
pub struct Handshake<S> {
    /// What to talk over.
    pub stream: Stream<S>,
    /// The client's certificate; its chain was verified.
    pub certificate: Option<Certificate>,
}

/// Shakes hands on `io`, within `deadline`.
///
/// # Errors
/// The client was too slow, gave up, or spoke something else.
pub async fn accept(io: TcpStream, terms: &Terms, deadline: Duration) -> Result<Handshake<TcpStream>, Error> {
    // Boxed, so that what only a handshake needs is given back when it is over.
    let handshake = Box::pin(async {
        if plain::is_http(&io).await {
            plain::refuse(io).await;
            return Err(Error::PlainHttp);
        }
        TlsAcceptor::from(Arc::clone(&terms.config)).accept(Wide::new(io)).await.map_err(Error::Handshake)
    });
    let stream = Box::new(tokio::time::timeout(deadline, handshake).await.map_err(|_| Error::Slow(deadline))??);
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = terms.authorities.identify(chain);
    Ok(Handshake { stream, certificate })
}

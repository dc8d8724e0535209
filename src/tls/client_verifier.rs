//! Verifies client certificates with a bound on the work that a hostile chain can cause.
//!
//! webpki searches for a path through all certificates of a chain, and the client chooses their
//! number and names: ten intermediates with the same name cost 82 ms. So this module first limits
//! the number and the size of the certificates. A certificate of loopgate's CA is then verified
//! against this CA alone, which takes one signature check. For the CAs of `tls.client_ca` webpki
//! gets at most one certificate for each name, in the order of the path, so there is nothing to
//! search.
//!
//! Workaround: delete the order, and the limit of intermediates, when webpki's search for a path is
//! cheap for every chain.

use std::fmt;
use std::sync::{Arc, LazyLock};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rustls::client::VerifierBuilderError;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, UnixTime,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::provider::provider;
use crate::pki::Revoked;

#[cfg(test)]
mod tests;

/// The maximum number of intermediates in a chain.
const MAX_INTERMEDIATES: usize = 3;
/// The maximum size of a chain, in bytes of DER.
const MAX_CHAIN_BYTES: usize = 16 * 1024;

/// The number of signatures that were checked in client certificates since the start of the
/// process.
static SIGNATURE_CHECKS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Registers the metrics of client certificates.
pub fn register(registry: &mut Registry) {
    registry.register(
        "client_certificate_signature_checks",
        "Signatures checked in the chains of client certificates",
        SIGNATURE_CHECKS.clone(),
    );
}

/// Returns the number of signatures that were checked in client certificates since the start of the
/// process.
pub fn signature_check_count() -> u64 {
    SIGNATURE_CHECKS.get()
}

/// Why a chain is refused before any signature is checked.
#[derive(thiserror::Error)]
enum ChainRefused {
    #[error("the client's certificate chain has {0} intermediates, more than {MAX_INTERMEDIATES}")]
    Intermediates(usize),
    #[error("the client's certificate chain has {0} bytes, more than {MAX_CHAIN_BYTES}")]
    Size(usize),
}

// rustls prints the `Debug` form in its error message.
impl fmt::Debug for ChainRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<ChainRefused> for rustls::Error {
    fn from(refused: ChainRefused) -> Self {
        CertificateError::Other(OtherError(Arc::new(refused))).into()
    }
}

/// Verifies client certificates of loopgate's own CA and of `tls.client_ca`.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    loopgate_ca: Option<Verifier>,
    operator_cas: Option<Verifier>,
    hints: Vec<DistinguishedName>,
    revoked: Arc<Revoked>,
}

/// A webpki verifier, and the subjects of the CAs that it trusts in DER.
#[derive(Debug)]
struct Verifier {
    subjects: Vec<DistinguishedName>,
    webpki: Arc<dyn ClientCertVerifier>,
}

impl Verifier {
    /// Returns a verifier that trusts `anchors`, except those that are malformed; `None` if
    /// `anchors` is empty.
    ///
    /// # Errors
    /// All of them are malformed.
    fn trusting(anchors: &[CertificateDer<'static>]) -> Result<Option<Self>, VerifierBuilderError> {
        if anchors.is_empty() {
            return Ok(None);
        }
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(anchors.iter().cloned());
        let subjects = store.subjects();
        Ok(Some(Self {
            subjects,
            webpki: WebPkiClientVerifier::builder_with_provider(Arc::new(store), counting_provider()).build()?,
        }))
    }

    fn has_subject(&self, name: &[u8]) -> bool {
        self.subjects.iter().any(|subject| subject.as_ref() == name)
    }
}

impl ClientVerifier {
    /// Returns a verifier that trusts loopgate's CA and the CAs of `tls.client_ca`, `operator_cas`;
    /// `None` if there is no CA at all.
    pub(super) fn trusting(
        loopgate_ca: Option<&CertificateDer<'static>>,
        operator_cas: &[CertificateDer<'static>],
        revoked: Arc<Revoked>,
    ) -> Result<Option<Self>, VerifierBuilderError> {
        let loopgate_ca = loopgate_ca.map(|ca| Verifier::trusting(std::slice::from_ref(ca))).transpose()?.flatten();
        let operator_cas = Verifier::trusting(operator_cas)?;
        let mut hints: Vec<_> =
            loopgate_ca.iter().chain(&operator_cas).flat_map(|verifier| verifier.subjects.iter().cloned()).collect();
        // `tls.client_ca` may contain loopgate's CA too.
        hints.dedup_by(|a, b| a.as_ref() == b.as_ref());
        Ok((!hints.is_empty()).then_some(Self { loopgate_ca, operator_cas, hints, revoked }))
    }

    /// Returns whether `issuer`, a name in DER, is that of loopgate's CA. If so, a verified
    /// certificate with this issuer was signed by loopgate's CA.
    pub(super) fn is_loopgate_ca(&self, issuer: &[u8]) -> bool {
        self.loopgate_ca.as_ref().is_some_and(|ca| ca.has_subject(issuer))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if intermediates.len() > MAX_INTERMEDIATES {
            return Err(ChainRefused::Intermediates(intermediates.len()).into());
        }
        let size = leaf.len() + intermediates.iter().map(|certificate| certificate.len()).sum::<usize>();
        if size > MAX_CHAIN_BYTES {
            return Err(ChainRefused::Size(size).into());
        }
        let CertificateNames { issuer, serial, .. } = parse_names(leaf)?;
        if let Some(ca) = self.loopgate_ca.as_ref().filter(|ca| ca.has_subject(&issuer)) {
            if self.revoked.contains(&serial) {
                return Err(CertificateError::Revoked.into());
            }
            return ca.webpki.verify_client_cert(leaf, &[], now);
        }
        let Some(operator_cas) = &self.operator_cas else { return Err(CertificateError::UnknownIssuer.into()) };
        operator_cas.webpki.verify_client_cert(leaf, &issuer_path(issuer, intermediates, operator_cas)?, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The names of a certificate in DER, and its serial number.
struct CertificateNames {
    subject: Vec<u8>,
    issuer: Vec<u8>,
    serial: Vec<u8>,
}

/// Parses the names and the serial number of `certificate`.
///
/// # Errors
/// It is malformed.
fn parse_names(certificate: &CertificateDer<'_>) -> Result<CertificateNames, rustls::Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    Ok(CertificateNames {
        subject: parsed.subject().as_raw().to_vec(),
        issuer: parsed.issuer().as_raw().to_vec(),
        serial: parsed.raw_serial().to_vec(),
    })
}

/// Returns the intermediates on the path from the name `issuer` towards a CA of `anchors`. No
/// subject occurs twice, and self-issued certificates are left out.
///
/// # Errors
/// An intermediate is malformed, even one that is not on the path.
fn issuer_path<'a>(
    mut issuer: Vec<u8>,
    intermediates: &[CertificateDer<'a>],
    anchors: &Verifier,
) -> Result<Vec<CertificateDer<'a>>, rustls::Error> {
    let mut remaining = intermediates
        .iter()
        .map(|certificate| Ok((parse_names(certificate)?, certificate)))
        .collect::<Result<Vec<_>, rustls::Error>>()?;
    remaining.retain(|(names, _)| names.subject != names.issuer);
    let mut path = Vec::new();
    loop {
        let candidates = || remaining.iter().enumerate().filter(|(_, (names, _))| names.subject == issuer);
        // Among certificates with the same subject (cross-signed ones) the one that a trusted CA
        // signed is preferred.
        let signed_by_anchor = candidates().find(|(_, (names, _))| anchors.has_subject(&names.issuer));
        let Some((index, _)) = signed_by_anchor.or_else(|| candidates().next()) else { return Ok(path) };
        let (names, certificate) = remaining.swap_remove(index);
        remaining.retain(|(names, _)| names.subject != issuer);
        path.push(certificate.clone());
        issuer = names.issuer;
    }
}

/// Returns a crypto provider that counts signature checks in [`SIGNATURE_CHECKS`].
fn counting_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let counting =
            |algorithm| Box::leak(Box::new(CountingAlgorithm(algorithm))) as &dyn SignatureVerificationAlgorithm;
        let provider = provider();
        // Leaked once for each process, since rustls needs static references.
        let algorithms = provider
            .signature_verification_algorithms
            .all
            .iter()
            .map(|algorithm| counting(*algorithm))
            .collect::<Vec<_>>();
        let mapping = provider.signature_verification_algorithms.mapping;
        let algorithms = WebPkiSupportedAlgorithms { all: Vec::leak(algorithms), mapping };
        Arc::new(CryptoProvider { signature_verification_algorithms: algorithms, ..(*provider).clone() })
    });
    Arc::clone(&PROVIDER)
}

/// A signature algorithm that counts its checks in [`SIGNATURE_CHECKS`].
struct CountingAlgorithm(&'static dyn SignatureVerificationAlgorithm);

impl fmt::Debug for CountingAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl SignatureVerificationAlgorithm for CountingAlgorithm {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        SIGNATURE_CHECKS.inc();
        self.0.verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

//! Verifies the sidecar's certificate by a CA file or by a pinned fingerprint. There is no trust on
//! first use.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::fingerprint::Fingerprint;

/// How the sidecar's certificate is verified.
#[derive(Clone, Debug)]
pub enum ServerTrust {
    /// A CA in this PEM file issued the certificate, for the sidecar's name. The file is read again
    /// for each connection.
    Ca(PathBuf),
    /// The certificate has this fingerprint. Its names and dates are not checked.
    Fingerprint(Fingerprint),
}

/// Why the sidecar's certificate can't be verified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the CA file failed. It is read for each connection.
    #[error("can't read the CA file {path}")]
    Read {
        /// The path in [`ServerTrust::Ca`].
        path: PathBuf,
        /// The error of reading the file.
        source: io::Error,
    },
    /// The CA file has no certificate, or one that is malformed or unusable as a CA.
    #[error("the CA file {0} holds no usable certificate")]
    NoCa(PathBuf),
    /// The name to look for in the certificate is malformed.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
}

/// Returns the crypto provider of the agent's handshakes.
pub(super) fn crypto_provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

impl ServerTrust {
    /// Reads the CA file; empty for a fingerprint. If the content changes, a new verifier is
    /// needed.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub(super) async fn read_ca_pem(&self) -> Result<Vec<u8>, Error> {
        match self {
            Self::Ca(path) => tokio::fs::read(path).await.map_err(|source| Error::Read { path: path.clone(), source }),
            Self::Fingerprint(_) => Ok(Vec::new()),
        }
    }

    /// Returns a verifier for `ca_pem`, the result of [`ServerTrust::read_ca_pem`].
    ///
    /// # Errors
    /// [`Error::NoCa`], if one of the certificates in `ca_pem` is unusable, or there is none.
    pub(super) fn create_verifier(&self, ca_pem: &[u8]) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        match self {
            Self::Fingerprint(fingerprint) => {
                Ok(Arc::new(Pinned { fingerprint: *fingerprint, provider: crypto_provider() }))
            }
            Self::Ca(path) => {
                let no_ca = || Error::NoCa(path.clone());
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(ca_pem) {
                    roots.add(certificate.map_err(|_| no_ca())?).map_err(|_| no_ca())?;
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto_provider()).build();
                Ok(verifier.map_err(|_| no_ca())?)
            }
        }
    }
}

/// Accepts only the certificate with one fingerprint, whatever its issuer, names and dates.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Fingerprint::of(end_entity) == self.fingerprint {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

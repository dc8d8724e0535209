//! Reads the certificate that a TLS server shows, without completing the handshake.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;

use super::connect::{connect, within_timeout};

/// Returns the certificate that the server at `to` shows; `None` if there is no TLS server, or it
/// does not answer in time. No application data is sent.
pub(super) async fn fetch_server_certificate(to: SocketAddr) -> Option<CertificateDer<'static>> {
    let recorder = Arc::new(CertificateRecorder::default());
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .ok()?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::clone(&recorder) as _).with_no_client_auth();
    let stream = connect(to, None).await.ok()?;
    // The handshake always fails, since the verifier rejects every certificate.
    let _ = within_timeout(TlsConnector::from(Arc::new(config)).connect(ServerName::from(to.ip()), stream)).await;
    recorder.0.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A verifier that records the server's certificate and rejects it.
#[derive(Debug, Default)]
struct CertificateRecorder(Mutex<Option<CertificateDer<'static>>>);

impl ServerCertVerifier for CertificateRecorder {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(leaf.clone().into_owned());
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

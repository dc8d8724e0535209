//! A fake sidecar: it accepts TLS, requests a client certificate, answers probes and echoes the
//! rest.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use loopgate::fingerprint::Fingerprint;
use loopgate::shutdown::Shutdown;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A CA for one test, and a directory with its certificate and the client's certificate and key.
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    directory: tempfile::TempDir,
}

impl TestCa {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key), directory }
    }

    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn issue(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        until: Option<OffsetDateTime>,
    ) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        params.not_after = until.unwrap_or(params.not_after);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes a client certificate for `name` and its key; returns the paths of both.
    pub fn write_client_certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        self.write_client_certificate_until(name, None)
    }

    /// Does the same with a certificate that expires at `until`.
    pub fn write_client_certificate_until(&self, name: &str, until: Option<OffsetDateTime>) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.issue(name, ExtendedKeyUsagePurpose::ClientAuth, until);
        let path = |name: &str| self.directory.path().join(name);
        let write = |name: &str, text: String| {
            let temporary = path("temporary");
            std::fs::write(&temporary, text).unwrap();
            std::fs::rename(temporary, path(name)).unwrap();
        };
        write("client.pem", certificate.pem());
        write("client.key", key.serialize_pem());
        (path("client.pem"), path("client.key"))
    }
}

/// A TLS handshake that a sidecar completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// SHA-256 of the client's certificate.
    pub client: Option<Fingerprint>,
    /// Whether the TLS session was resumed.
    pub resumed: bool,
}

/// A sidecar that listens until `shutdown` ends it.
pub struct Sidecar {
    pub address: SocketAddr,
    pub fingerprint: Fingerprint,
    /// The handshakes so far.
    pub handshakes: Arc<Mutex<Vec<Handshake>>>,
}

impl Sidecar {
    /// Starts a sidecar on `listen`. It answers GET requests as the gateway answers `/startupz`,
    /// and echoes all other bytes.
    pub async fn start(authority: &TestCa, listen: SocketAddr, shutdown: &Shutdown) -> Self {
        let (certificate, key) = authority.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth, None);
        let fingerprint = Fingerprint::of(certificate.der());
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let handshakes = Arc::new(Mutex::new(Vec::new()));
        let (record, spawn) = (handshakes.clone(), shutdown.clone());
        let accept = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, record) = (acceptor.clone(), record.clone());
                spawn.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let session = stream.get_ref().1;
                    record.lock().unwrap().push(Handshake {
                        client: session.peer_certificates().map(|chain| Fingerprint::of(&chain[0])),
                        resumed: session.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
                    });
                    let mut bytes = vec![0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                        let received = &bytes[..length];
                        let answer: &[u8] = if received.starts_with(b"GET ") {
                            b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"ok\":true}"
                        } else {
                            received
                        };
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                    let _ = stream.shutdown().await;
                });
            }
        };
        let stop = shutdown.clone();
        shutdown.spawn(async move {
            tokio::select! { () = stop.wait_until_begun() => {}, () = accept => {} }
        });
        Self { address, fingerprint, handshakes }
    }
}

/// The SHA-256 of the certificate in the PEM file at `path`.
pub fn fingerprint_of(path: &Path) -> Fingerprint {
    use rustls_pki_types::pem::PemObject;
    Fingerprint::of(&CertificateDer::from_pem_file(path).unwrap())
}

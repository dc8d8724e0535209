//! The certificate of all sides, and the TLS configuration of all clients.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

/// The name of the CA.
pub const CA_NAME: &str = "loopgate benchmark";

/// A P-256 certificate for `localhost` and 127.0.0.1 in files, and the CA that signed it.
pub struct Certificate {
    /// The file with the certificate chain, PEM.
    pub chain: PathBuf,
    /// The file with the key, PEM.
    pub key: PathBuf,
    /// The file with both chain and key, for HAProxy.
    pub both: PathBuf,
    /// The file with the CA certificate, PEM.
    pub ca_file: PathBuf,
    /// The CA certificate.
    pub ca: CertificateDer<'static>,
}

impl Certificate {
    /// Makes a CA and a certificate, with the files in `directory`.
    ///
    /// # Errors
    /// The files can't be written.
    pub fn make(directory: &Path) -> io::Result<Self> {
        let (ca, ca_pem, chain, key) = generate().map_err(io::Error::other)?;
        let [chain_file, key_file, both, ca_file] =
            ["chain.pem", "key.pem", "both.pem", "ca.pem"].map(|name| directory.join(name));
        let certificate = Self { chain: chain_file, key: key_file, both, ca_file, ca };
        std::fs::write(&certificate.ca_file, &ca_pem)?;
        std::fs::write(&certificate.chain, &chain)?;
        std::fs::write(&certificate.key, &key)?;
        std::fs::write(&certificate.both, chain + &key)?;
        Ok(certificate)
    }

    /// The configuration of a client that trusts the CA. It offers only TLS 1.3 with X25519 and
    /// TLS_AES_128_GCM_SHA256, so that every side uses the same algorithms, and keeps no tickets.
    pub fn client(&self) -> Arc<ClientConfig> {
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).expect("our own CA");
        let builder =
            ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&rustls::version::TLS13]);
        let mut config = builder.expect("TLS 1.3 has this suite").with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }
}

fn generate() -> Result<(CertificateDer<'static>, String, String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_key = KeyPair::generate()?;
    let ca = params.self_signed(&ca_key)?;
    let issuer = Issuer::new(params, ca_key);
    let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])?;
    params.distinguished_name.push(DnType::CommonName, "localhost");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let leaf = params.signed_by(&key, &issuer)?;
    Ok((ca.der().clone(), ca.pem(), leaf.pem(), key.serialize_pem()))
}

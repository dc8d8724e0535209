//! An operator's own CA, and a certificate and key that are renewed while the sidecar uses them.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

/// A CA, and the directory with the files.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    /// Makes a CA and a first certificate with its key.
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let mut authority = Self { issuer: Issuer::new(params, key), directory };
        authority.renew();
        authority
    }

    /// The path of the CA certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The paths of the certificate chain and of the key.
    pub fn files(&self) -> [String; 2] {
        ["server.pem", "server.key"].map(|name| self.directory.path().join(name).to_str().unwrap().to_owned())
    }

    /// Replaces the certificate and the key; returns the new certificate.
    pub fn renew(&mut self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        // The two files are replaced one after the other. In between they don't match, and the
        // sidecar must keep the old pair.
        for (file, content) in self.files().iter().zip([leaf.pem(), key.serialize_pem()]) {
            let temporary = format!("{file}.new");
            fs::write(&temporary, content).unwrap();
            fs::rename(temporary, file).unwrap();
        }
        leaf.der().clone()
    }
}

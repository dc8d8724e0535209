//! An operator's own CA, and the pair of files that is renewed while the sidecar serves it.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    /// Makes a CA and a first pair.
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

    /// The CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Where the chain and the key are.
    pub fn files(&self) -> [String; 2] {
        ["server.pem", "server.key"].map(|name| self.directory.path().join(name).to_str().unwrap().to_owned())
    }

    /// Makes a new pair, and moves it over the old one; returns its leaf.
    pub fn renew(&mut self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        // The two moves are not one: in between, the pair does not match, and must not be served.
        for (file, content) in self.files().iter().zip([leaf.pem(), key.serialize_pem()]) {
            let aside = format!("{file}.new");
            fs::write(&aside, content).unwrap();
            fs::rename(aside, file).unwrap();
        }
        leaf.der().clone()
    }
}

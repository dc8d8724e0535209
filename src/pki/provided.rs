//! A certificate and key that the operator provides; reloaded when the files change.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::config::CertificateFiles;

use super::certificate::Facts;
use super::chain::{self, OrderedChain};
use super::error::{Error, InvalidFile};
use super::loaded::{FilesDigest, LoadedIdentity, files_digest, identity};
use super::pem;
use super::revocation::REVOKED;
use super::state_dir::{StateDir, read_file};

/// The options that name the two files.
const CHAIN: &str = "tls.cert (--tls-cert)";
const KEY: &str = "tls.key (--tls-key)";

/// The provided pair, and loopgate's own CA, which signs agents' certificates.
#[derive(Debug)]
pub(super) struct Provided {
    /// The files of the pair.
    pub(super) files: CertificateFiles,
    /// Where the list of revoked certificates is.
    pub(super) state_dir: StateDir,
    /// loopgate's own CA, if there is one.
    pub(super) ca: Option<CertificateDer<'static>>,
}

impl Provided {
    /// Returns the digest of the two files and of the list of revoked certificates.
    pub(super) fn files_digest(&self) -> FilesDigest {
        files_digest([&self.files.chain, &self.files.key, &self.state_dir.file(REVOKED)])
    }

    /// Reads the pair and checks that key and certificate belong together. The mode of the key file
    /// is not checked, since Kubernetes and Docker mount secrets readable for everyone.
    pub(super) fn load(&self, now: OffsetDateTime) -> Result<LoadedIdentity, Error> {
        let (chain, key) = self.read()?;
        warn_about(&chain, &self.files.chain);
        let of_chain = |reason| Error::given(CHAIN)(Error::unusable(&self.files.chain)(reason));
        let identity = identity(chain.certificates, key, self.ca.clone()).map_err(of_chain)?;
        let expired = identity.not_after < now;
        let problem = expired.then(|| of_chain(InvalidFile::Expired(identity.not_after)));
        Ok(LoadedIdentity { identity, problem })
    }

    /// Returns why the pair can't be served, if it can't.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<(OrderedChain, Arc<dyn SigningKey>), Error> {
        let CertificateFiles { chain: chain_file, key: key_file } = &self.files;
        let of_chain = |reason| Error::given(CHAIN)(Error::unusable(chain_file)(reason));
        let of_key = |reason| Error::given(KEY)(Error::unusable(key_file)(reason));
        let chain = pem::certificates(&read_file(chain_file).map_err(Error::given(CHAIN))?.0).map_err(of_chain)?;
        let key = pem::private_key(&read_file(key_file).map_err(Error::given(KEY))?.0).map_err(of_key)?;
        let refused_key = || Facts::of(&chain[0]).ok().and_then(|facts| facts.key_problem).map(InvalidFile::KeyRefused);
        let key =
            any_supported_type(&key).map_err(|error| of_key(refused_key().unwrap_or(InvalidFile::TlsKey(error))))?;
        let ordered = chain::order(&chain, key.public_key().as_ref().map(AsRef::as_ref)).map_err(of_chain)?;
        let ordered = ordered.ok_or_else(|| of_key(InvalidFile::NotKeyOf(chain_file.clone())))?;
        Ok((ordered, key))
    }
}

/// Warns about a chain that is served although some clients may not verify it.
fn warn_about(chain: &OrderedChain, path: &Path) {
    let path = path.display();
    if chain.was_unordered {
        tracing::warn!(%path, "the certificates in this file are not in order (leaf first, then its issuer); serving \
                               them sorted");
    }
    if let Some(issuer) = &chain.missing_issuer {
        tracing::warn!(
            %path,
            issuer,
            "the certificate of the issuer is not in this file; clients that don't trust the issuer itself will refuse \
             the certificate. Append the issuer's certificate to the file"
        );
    }
}

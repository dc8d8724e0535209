//! A certificate and key that the operator provides; reloaded when the files change.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::config::CertificateFiles;

use super::error::{Error, InvalidFile};
use super::loaded::{FilesDigest, LoadedIdentity, files_digest, identity};
use super::pem;
use super::state_dir::read_file;

/// The options that name the two files.
const CHAIN: &str = "tls.cert (--tls-cert)";
const KEY: &str = "tls.key (--tls-key)";

/// The provided pair, and loopgate's own CA, which signs agents' certificates.
#[derive(Debug)]
pub(super) struct Provided {
    /// The files of the pair.
    pub(super) files: CertificateFiles,
    /// loopgate's own CA, if there is one.
    pub(super) ca: Option<CertificateDer<'static>>,
}

impl Provided {
    /// Returns the digest of the two files.
    pub(super) fn files_digest(&self) -> FilesDigest {
        files_digest([&self.files.chain, &self.files.key])
    }

    /// Reads the pair and checks that key and certificate belong together. The mode of the key file is not checked, since Kubernetes and
    /// Docker mount secrets readable for everyone.
    pub(super) fn load(&self, now: OffsetDateTime) -> Result<LoadedIdentity, Error> {
        let CertificateFiles { chain: chain_file, key: key_file } = &self.files;
        let of_chain = |reason| Error::given(CHAIN)(Error::unusable(chain_file)(reason));
        let of_key = |reason| Error::given(KEY)(Error::unusable(key_file)(reason));
        let chain = pem::certificates(&read_file(chain_file).map_err(Error::given(CHAIN))?.0).map_err(of_chain)?;
        let key = pem::private_key(&read_file(key_file).map_err(Error::given(KEY))?.0).map_err(of_key)?;
        let identity = identity(chain, key, self.ca.clone()).map_err(|reason| match reason {
            // The certificate is valid; the key is not, or belongs to another certificate.
            InvalidFile::Pair(_) => of_key(reason),
            _ => of_chain(reason),
        })?;
        let expired = identity.not_after < now;
        let problem = expired.then(|| of_chain(InvalidFile::Expired(identity.not_after)));
        Ok(LoadedIdentity { identity, problem })
    }
}

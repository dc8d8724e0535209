//! The operator's own certificate and key, read whenever they change.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::config::CertificateFiles;

use super::error::{Error, Flaw};
use super::pem;
use super::source::{Loaded, Stamp, identity, stamp};
use super::state_dir::read_file;

/// What names the two files.
const CHAIN: &str = "tls.cert (--tls-cert)";
const KEY: &str = "tls.key (--tls-key)";

/// Where the pair is, and the CA of our own that signs agents' certificates beside it.
#[derive(Debug)]
pub(super) struct OwnPair {
    /// The operator's files.
    pub(super) files: CertificateFiles,
    /// loopgate's own CA, if there could be one.
    pub(super) ca: Option<CertificateDer<'static>>,
}

impl OwnPair {
    /// Tells one content of the two files from another.
    pub(super) fn stamp(&self) -> Stamp {
        stamp([&self.files.chain, &self.files.key])
    }

    /// Reads the pair and checks that key and certificate belong together. The key's permissions are the operator's affair: Kubernetes
    /// and Docker mount secrets readable for all.
    pub(super) fn load(&self, now: OffsetDateTime) -> Result<Loaded, Error> {
        let CertificateFiles { chain: chain_file, key: key_file } = &self.files;
        let of_chain = |flaw| Error::given(CHAIN)(Error::unusable(chain_file)(flaw));
        let of_key = |flaw| Error::given(KEY)(Error::unusable(key_file)(flaw));
        let chain = pem::certificates(&read_file(chain_file).map_err(Error::given(CHAIN))?.0).map_err(of_chain)?;
        let key = pem::private_key(&read_file(key_file).map_err(Error::given(KEY))?.0).map_err(of_key)?;
        let identity = identity(chain, key, self.ca.clone()).map_err(|flaw| match flaw {
            // The TLS library found the certificate readable and the key not, or not that certificate's.
            Flaw::Pair(_) => of_key(flaw),
            _ => of_chain(flaw),
        })?;
        let expired = identity.not_after < now;
        let trouble = expired.then(|| of_chain(Flaw::Expired(identity.not_after)));
        Ok(Loaded { identity, trouble })
    }
}

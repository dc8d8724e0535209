//! The certificate and key that the operator provides. They are reloaded when the files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::config::CertificateFiles;

use super::certificate::CertificateFields;
use super::chain::{self, OrderedChain};
use super::error::{Error, InvalidFile};
use super::loaded::{LoadedIdentity, server_identity};
use super::pem;
use super::revocation::REVOKED_FILE;
use super::state_dir::{StateDir, read_file};

/// The options that name the two files.
const CHAIN_OPTION: &str = "tls.cert (--tls-cert)";
const KEY_OPTION: &str = "tls.key (--tls-key)";

/// The operator's pair, and loopgate's CA, which signs agents' certificates.
#[derive(Debug)]
pub(super) struct Provided {
    /// The files of the pair.
    pub(super) files: CertificateFiles,
    /// The state directory, which has the list of revoked certificates.
    pub(super) state_dir: StateDir,
    /// loopgate's CA, if there is one.
    pub(super) ca: Option<CertificateDer<'static>>,
}

impl Provided {
    /// Returns the paths of the two files and of the list of revoked certificates.
    pub(super) fn file_paths(&self) -> [PathBuf; 3] {
        [self.files.chain.clone(), self.files.key.clone(), self.state_dir.path_of(REVOKED_FILE)]
    }

    /// Loads the pair, and checks that key and certificate belong together. Returns an expired
    /// certificate too, with the problem. Warns if the chain is not in order, or incomplete.
    ///
    /// The mode of the key file is not checked, since Kubernetes and Docker mount secrets that
    /// every user can read.
    pub(super) fn load(&self, now: OffsetDateTime) -> Result<LoadedIdentity, Error> {
        let (chain, key) = self.read_pair()?;
        warn_of_chain_problems(&chain, &self.files.chain);
        let chain_error = |reason| Error::provided(CHAIN_OPTION)(Error::unusable(&self.files.chain)(reason));
        let identity = server_identity(chain.certificates, key, self.ca.clone()).map_err(chain_error)?;
        let expired = identity.not_after < now;
        let problem = expired.then(|| chain_error(InvalidFile::Expired(identity.not_after)));
        Ok(LoadedIdentity { identity, problem })
    }

    /// Checks that the pair can be read and belongs together. An expired one passes.
    pub(super) fn check_files(&self) -> Result<(), Error> {
        self.read_pair().map(drop)
    }

    /// Reads the operator's pair, and orders its chain from the leaf of the key to the issuers.
    fn read_pair(&self) -> Result<(OrderedChain, Arc<dyn SigningKey>), Error> {
        let CertificateFiles { chain: chain_file, key: key_file } = &self.files;
        let chain_error = |reason| Error::provided(CHAIN_OPTION)(Error::unusable(chain_file)(reason));
        let key_error = |reason| Error::provided(KEY_OPTION)(Error::unusable(key_file)(reason));
        let chain =
            pem::certificates(&read_file(chain_file).map_err(Error::provided(CHAIN_OPTION))?.0).map_err(chain_error)?;
        let key = pem::private_key(&read_file(key_file).map_err(Error::provided(KEY_OPTION))?.0).map_err(key_error)?;
        let refused_key = || {
            CertificateFields::parse(&chain[0]).ok().and_then(|facts| facts.key_problem).map(InvalidFile::KeyRefused)
        };
        let key =
            any_supported_type(&key).map_err(|error| key_error(refused_key().unwrap_or(InvalidFile::TlsKey(error))))?;
        let ordered = chain::order_chain(&chain, key.public_key().as_ref().map(AsRef::as_ref)).map_err(chain_error)?;
        let ordered = ordered.ok_or_else(|| key_error(InvalidFile::NotKeyOf(chain_file.clone())))?;
        Ok((ordered, key))
    }
}

/// Warns if the file has the chain in another order, or lacks an issuer that some clients need. The
/// chain is served in both cases.
fn warn_of_chain_problems(chain: &OrderedChain, path: &Path) {
    let path = path.display();
    if chain.was_unordered {
        tracing::warn!(%path, "the certificates in this file are not ordered from the leaf to its issuers; serving \
                               them in that order");
    }
    if let Some(issuer) = &chain.missing_issuer {
        tracing::warn!(
            %path,
            issuer,
            "this file lacks the certificate of the leaf's issuer, so clients that don't have it refuse the server; \
             append that certificate to the file"
        );
    }
}

//! A certificate that was read from files, and the digest that shows changes of the files.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::CertificateDer;

use super::certificate::CertificateFields;
use super::error::{Error, InvalidFile};
use super::identity::ServerIdentity;
use super::state_dir::read_file;

/// The result of loading or issuing a certificate.
#[derive(Debug)]
pub(super) struct LoadedIdentity {
    /// The certificate and key to serve.
    pub(super) identity: ServerIdentity,
    /// Why a newer certificate could not be loaded or issued; `None` if `identity` is the wanted one.
    pub(super) problem: Option<Error>,
}

/// A digest of the contents of files.
///
/// Contents are compared every few seconds, instead of modification times or inotify events. This detects an edit in
/// place, a rename, and Kubernetes' swap of a symbolic link two directories above, and works on file systems without
/// events (gVisor, Docker Desktop).
pub(super) type FilesDigest = [u8; 32];

/// Returns the identity of a chain, the key of its leaf, and loopgate's CA.
pub(super) fn server_identity(
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
    ca: Option<CertificateDer<'static>>,
) -> Result<ServerIdentity, InvalidFile> {
    let CertificateFields { names, validity, .. } = CertificateFields::parse(&chain[0])?;
    Ok(ServerIdentity {
        certified_key: Arc::new(CertifiedKey::new(chain, key)),
        ca,
        revoked: Arc::default(),
        names,
        not_before: validity.not_before,
        not_after: validity.not_after,
    })
}

/// Returns the digest of `files`. A file that can't be read has another digest than an empty one.
pub(super) fn files_digest<const N: usize>(files: [&Path; N]) -> FilesDigest {
    let mut context = Context::new(&SHA256);
    for file in files {
        match read_file(file) {
            Ok((content, _)) => {
                context.update(&(content.len() as u64).to_be_bytes());
                context.update(&content);
            }
            Err(_) => context.update(&u64::MAX.to_be_bytes()),
        }
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

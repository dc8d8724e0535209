//! Where the server's certificate comes from: the state directory or the operator.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use ::aws_lc_rs::digest::{Context, SHA256};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

use super::certificate::Facts;
use super::error::{Error, Flaw};
use super::made::Made;
use super::own_pair::OwnPair;
use super::state_dir::read_file;
use super::template::Validity;
use super::{Identity, SubjectName, plan};

/// Where the certificate comes from. Its methods block on files.
#[derive(Debug)]
pub(super) enum Source {
    /// loopgate makes it.
    Made(Made),
    /// The operator brings it.
    Own(OwnPair),
}

/// A certificate to serve.
#[derive(Debug)]
pub(super) struct Loaded {
    /// What to serve.
    pub(super) identity: Identity,
    /// Why it is not a better one.
    pub(super) trouble: Option<Error>,
}

/// A digest of files' contents.
///
/// Contents rather than times of change, and looked at every few seconds rather than watched by inotify: so an edit in place, a rename
/// and Kubernetes' swap of a symlink two directories up are all the same, as are file systems without events (gVisor, Docker Desktop).
pub(super) type Stamp = [u8; 32];

impl Source {
    /// Tells one state of the files from another.
    pub(super) fn stamp(&self) -> Stamp {
        match self {
            Self::Made(made) => made.stamp(),
            Self::Own(pair) => pair.stamp(),
        }
    }

    /// Whether `served` should be replaced though no file has changed.
    pub(super) fn is_due(&self, served: &Identity, wanted: &BTreeSet<SubjectName>, now: OffsetDateTime) -> bool {
        let validity = Validity { not_before: served.not_before, not_after: served.not_after };
        match self {
            Self::Made(_) => plan::due(Some((&served.names, validity)), wanted, now).is_some(),
            Self::Own(_) => false,
        }
    }

    /// Reads the files; makes a new certificate if one is due and ours to make.
    pub(super) fn load(&self, wanted: &BTreeSet<SubjectName>, now: OffsetDateTime) -> Result<Loaded, Error> {
        match self {
            Self::Made(made) => made.load(wanted, now),
            Self::Own(pair) => pair.load(now),
        }
    }
}

/// Chain and key as one value, if they belong together.
pub(super) fn identity(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ca: Option<CertificateDer<'static>>,
) -> Result<Identity, Flaw> {
    let Facts { names, validity, .. } = Facts::of(&chain[0])?;
    let certified_key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(Flaw::Pair)?;
    Ok(Identity { certified_key: Arc::new(certified_key), ca, names, not_before: validity.not_before, not_after: validity.not_after })
}

/// The digest of `files`. A file that can't be read is another thing than an empty one.
pub(super) fn stamp<const N: usize>(files: [&Path; N]) -> Stamp {
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

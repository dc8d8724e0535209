//! The source of the server's certificate: the state directory, or the operator's files.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use time::OffsetDateTime;

use super::error::Error;
use super::identity::ServerIdentity;
use super::loaded::LoadedIdentity;
use super::managed::Managed;
use super::name::SubjectName;
use super::plan;
use super::provided::Provided;
use super::revocation;
use super::template::Validity;

/// The source of the server's certificate. The methods block on files.
#[derive(Debug)]
pub(super) enum CertificateSource {
    /// loopgate issues the certificate.
    Managed(Managed),
    /// The operator provides the certificate.
    Provided(Provided),
}

impl CertificateSource {
    /// Returns the paths of the source's files.
    pub(super) fn file_paths(&self) -> [PathBuf; 3] {
        match self {
            Self::Managed(managed) => managed.file_paths(),
            Self::Provided(pair) => pair.file_paths(),
        }
    }

    /// Returns whether loopgate must issue a new certificate because of the age or the names of
    /// `served`. Returns false if the operator provides it.
    pub(super) fn is_due(&self, served: &ServerIdentity, wanted: &BTreeSet<SubjectName>, now: OffsetDateTime) -> bool {
        let validity = Validity { not_before: served.not_before, not_after: served.not_after };
        match self {
            Self::Managed(managed) => {
                let wanted = managed.leaf_names(Some(&served.names), wanted);
                plan::due_names(Some((&served.names, validity)), &wanted, now).is_some()
            }
            Self::Provided(_) => false,
        }
    }

    /// Loads the certificate, and the list of revoked ones, from the files. If loopgate issues the
    /// certificate, issues a new one if that is due.
    pub(super) fn load(&self, wanted: &BTreeSet<SubjectName>, now: OffsetDateTime) -> Result<LoadedIdentity, Error> {
        let (mut loaded, dir) = match self {
            Self::Managed(managed) => (managed.load(wanted, now)?, managed.dir()),
            Self::Provided(pair) => (pair.load(now)?, &pair.state_dir),
        };
        loaded.identity.revoked = Arc::new(revocation::read(dir)?);
        Ok(loaded)
    }
}

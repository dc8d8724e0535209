//! The certificate of a running sidecar.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use super::authority::{self, CertificateAuthority};
use super::error::Error;
use super::identity::ServerIdentity;
use super::loaded::DigestCache;
use super::managed::Managed;
use super::name::SubjectName;
use super::provided::Provided;
use super::rotation::{self, Rotation, RotationState};
use super::source::CertificateSource;
use super::state_dir::StateDir;
use crate::config::Tls;
use crate::error_chain::error_chain;
use crate::shutdown::Shutdown;

/// The server certificate of a running sidecar. It is replaced when it is due, or when files or
/// names change.
#[derive(Clone, Debug)]
pub struct Pki {
    identity: watch::Receiver<Arc<ServerIdentity>>,
    problem: watch::Receiver<Option<Arc<Error>>>,
    authority: Option<Arc<CertificateAuthority>>,
    reload: Arc<Notify>,
}

impl Pki {
    /// Returns a receiver of the certificate to serve.
    pub fn identity(&self) -> watch::Receiver<Arc<ServerIdentity>> {
        self.identity.clone()
    }

    /// Returns a receiver of the reason why the certificate could not be loaded or renewed; `None`
    /// if there is no problem.
    pub fn problem(&self) -> watch::Receiver<Option<Arc<Error>>> {
        self.problem.clone()
    }

    /// Returns loopgate's CA, for enrolment; `None` with the operator's pair and no usable state
    /// directory.
    pub fn authority(&self) -> Option<Arc<CertificateAuthority>> {
        self.authority.clone()
    }

    /// Has the files read now, for example after SIGHUP, even if they seem unchanged. Does not
    /// wait.
    pub fn check_files_now(&self) {
        self.reload.notify_one();
    }
}

/// Loads or issues the certificate, and keeps it up to date until `shutdown` begins.
///
/// `names` are the names that discovery finds; `localhost` and `tls.names` are added. Blocks on
/// files, and must be called within a Tokio runtime.
///
/// # Errors
/// There is no usable certificate.
pub fn open(
    tls: &Tls,
    state_dir: &Path,
    names: watch::Receiver<BTreeSet<SubjectName>>,
    shutdown: &Shutdown,
) -> Result<Pki, Error> {
    let now = OffsetDateTime::now_utc();
    let fixed_names = parse_fixed_names(&tls.names)?;
    let wanted_names = rotation::wanted_names(&fixed_names, &names.borrow());
    let permitted_names = Some(&wanted_names).filter(|_| tls.constrain_names);
    let (source, authority) = match &tls.provided {
        None => {
            let managed = Managed::open_with_options(state_dir, permitted_names, tls.follow_names, now)?;
            let authority = Arc::clone(managed.authority());
            (CertificateSource::Managed(managed), Some(authority))
        }
        Some(files) => {
            // The pair is checked before a CA is created, so that a start that fails leaves no CA.
            let mut provided = Provided { files: files.clone(), state_dir: StateDir::at(state_dir), ca: None };
            provided.check_files()?;
            let authority = authority_beside_provided_pair(state_dir, permitted_names);
            // If only the CA's key can't be used, the certificates that the CA signed before are
            // still accepted.
            let certificate =
                || authority::load_certificate(&StateDir::at(state_dir)).ok().map(|(certificate, _)| certificate);
            provided.ca = authority.as_ref().map(|authority| authority.certificate().clone()).or_else(certificate);
            (CertificateSource::Provided(provided), authority)
        }
    };
    StateDir::at(state_dir).warn_if_writable_by_others();
    // The digest is taken before the files are read, so that a change in between is noticed later.
    let mut cache = DigestCache::default();
    let digest = cache.digest(&source.file_paths(), true, SystemTime::now());
    let loaded = source.load(&wanted_names, now)?;
    rotation::log_identity(&loaded.identity);
    let retry_at = loaded.problem.is_some().then(|| tokio::time::Instant::now() + rotation::RETRY_DELAY);
    if let Some(problem) = &loaded.problem {
        tracing::warn!(
            error = error_chain(problem), retry_in = ?rotation::RETRY_DELAY,
            "serving a certificate that has expired or could not be renewed"
        );
    }

    let (identity_sender, identity) = watch::channel(Arc::new(loaded.identity));
    let (problem_sender, problem) = watch::channel(loaded.problem.map(Arc::new));
    let reload = Arc::new(Notify::new());
    let state = RotationState { cache, digest, invalid_once: None, retry_at };
    let rotation = Rotation {
        source: Arc::new(source),
        fixed_names,
        names,
        identity_sender,
        problem_sender,
        reload: Arc::clone(&reload),
        state,
    };
    shutdown.spawn(rotation.run(shutdown.clone()));
    Ok(Pki { identity, problem, authority, reload })
}

/// Loads or creates loopgate's CA beside the operator's pair; `None`, which is logged, if that
/// fails. Agents then can't enrol, but the pair is served.
fn authority_beside_provided_pair(
    state_dir: &Path,
    constrain: Option<&BTreeSet<SubjectName>>,
) -> Option<Arc<CertificateAuthority>> {
    CertificateAuthority::load_or_create_constrained(state_dir, constrain)
        .inspect_err(|error| {
            tracing::warn!(error = error_chain(error), "can't use loopgate's own CA; agents can't enrol")
        })
        .ok()
        .map(Arc::new)
}

/// Returns the names that a leaf always has: `given`, and `localhost`.
fn parse_fixed_names(given: &[String]) -> Result<BTreeSet<SubjectName>, Error> {
    let mut names: BTreeSet<_> = given.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    names.insert(SubjectName::Dns("localhost".into()));
    Ok(names)
}

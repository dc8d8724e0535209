//! The certificate of a running sidecar.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use super::authority::{self, CertificateAuthority};
use super::error::Error;
use super::identity::ServerIdentity;
use super::managed::Managed;
use super::name::SubjectName;
use super::provided::Provided;
use super::rotation::{self, Rotation, RotationState};
use super::source::Source;
use super::state_dir::StateDir;
use crate::config::Tls;
use crate::shutdown::Shutdown;

/// The running certificate, which changes as files, names and time require.
#[derive(Clone, Debug)]
pub struct Pki {
    identity: watch::Receiver<Arc<ServerIdentity>>,
    problem: watch::Receiver<Option<Arc<Error>>>,
    authority: Option<Arc<CertificateAuthority>>,
    reload: Arc<Notify>,
}

impl Pki {
    /// Returns the certificate to serve.
    pub fn identity(&self) -> watch::Receiver<Arc<ServerIdentity>> {
        self.identity.clone()
    }

    /// Returns why the served certificate is not a newer one; `None` if nothing is wrong.
    pub fn problem(&self) -> watch::Receiver<Option<Arc<Error>>> {
        self.problem.clone()
    }

    /// Returns the CA, for enrolment; `None` with a provided pair and no usable state directory.
    pub fn authority(&self) -> Option<Arc<CertificateAuthority>> {
        self.authority.clone()
    }

    /// Checks the files now (SIGHUP) instead of within the next two seconds.
    pub fn reload(&self) {
        self.reload.notify_one();
    }
}

/// Loads or issues the certificate, and keeps it up to date until `shutdown`. `names` are the names
/// found by discovery; `localhost` and `tls.names` are added to them. Blocks on files, and must be
/// called within a Tokio runtime.
///
/// # Errors
/// There is no certificate that can be served.
pub fn open(
    tls: &Tls,
    state_dir: &Path,
    names: watch::Receiver<BTreeSet<SubjectName>>,
    shutdown: &Shutdown,
) -> Result<Pki, Error> {
    let now = OffsetDateTime::now_utc();
    let fixed_names = fixed_names(&tls.names)?;
    let wanted = rotation::wanted_names(&fixed_names, &names.borrow());
    let constrain = Some(&wanted).filter(|_| tls.constrain_names);
    let (source, authority) = match &tls.provided {
        None => {
            let managed = Managed::open_with(state_dir, constrain, tls.follow_names, now)?;
            let authority = Arc::clone(managed.authority());
            (Source::Managed(managed), Some(authority))
        }
        Some(files) => {
            // An unusable pair refuses the start before a CA is created.
            let mut pair = Provided { files: files.clone(), state_dir: StateDir::at(state_dir), ca: None };
            pair.check()?;
            let authority = authority_beside_provided_pair(state_dir, constrain);
            // Without its key it signs nothing, but what it signed before stays its own.
            let certificate =
                || authority::load_certificate(&StateDir::at(state_dir)).ok().map(|(certificate, _)| certificate);
            pair.ca = authority.as_ref().map(|authority| authority.certificate().clone()).or_else(certificate);
            (Source::Provided(pair), authority)
        }
    };
    StateDir::at(state_dir).warn_if_writable_by_others();
    // The digest is taken before the files are read, so that a change in between is noticed later.
    let digest = source.files_digest();
    let loaded = source.load(&wanted, now)?;
    rotation::log_identity(&loaded.identity);
    let retry_at = loaded.problem.is_some().then(|| tokio::time::Instant::now() + rotation::RETRY_DELAY);
    if let Some(problem) = &loaded.problem {
        tracing::warn!(
            error = problem as &dyn std::error::Error, retry_in = ?rotation::RETRY_DELAY,
            "serving a certificate that has expired or could not be renewed"
        );
    }

    let (identity, served_identity) = watch::channel(Arc::new(loaded.identity));
    let (problem, current_problem) = watch::channel(loaded.problem.map(Arc::new));
    let reload = Arc::new(Notify::new());
    let state = RotationState { digest, invalid_once: None, retry_at };
    let rotation = Rotation {
        source: Arc::new(source),
        fixed_names,
        names,
        identity,
        problem,
        reload: Arc::clone(&reload),
        state,
    };
    shutdown.spawn(rotation.run(shutdown.clone()));
    Ok(Pki { identity: served_identity, problem: current_problem, authority, reload })
}

/// Returns loopgate's CA, if there can be one. Agents can't enrol without it, but the provided pair
/// is served nevertheless.
fn authority_beside_provided_pair(
    state_dir: &Path,
    constrain: Option<&BTreeSet<SubjectName>>,
) -> Option<Arc<CertificateAuthority>> {
    CertificateAuthority::load_or_create_for(state_dir, constrain)
        .inspect_err(|error| {
            tracing::warn!(error = error as &dyn std::error::Error, "no certificate authority: agents can't enrol")
        })
        .ok()
        .map(Arc::new)
}

fn fixed_names(given: &[String]) -> Result<BTreeSet<SubjectName>, Error> {
    let mut names: BTreeSet<_> = given.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    names.insert(SubjectName::Dns("localhost".into()));
    Ok(names)
}

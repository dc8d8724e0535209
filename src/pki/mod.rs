//! Certificates: a CA and a server leaf of loopgate's own making, or the operator's pair; published as one [`Identity`].
//!
//! Only this room and the commands around it see the CA's key. It knows nothing of connections. What touches files blocks, and is
//! called before the runtime has work or on its blocking threads.

mod authority;
mod certificate;
mod error;
mod fingerprint;
mod made;
mod name;
pub mod offline;
mod own_pair;
mod pem;
mod plan;
mod rotation;
mod source;
mod state_dir;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use crate::config::Tls;
use crate::shutdown::Shutdown;

pub use authority::CertificateAuthority;
pub use error::{Error, Flaw};
pub use fingerprint::{fingerprint, public_key_pin};
pub use made::RotateKey;
pub use name::SubjectName;

use made::Made;
use own_pair::OwnPair;
use rotation::{Memory, Rotation};
use source::Source;
use state_dir::StateDir;

/// What the TLS listener shows at one moment: key, chain and roots change together or not at all.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The chain (leaf first) and its signing key.
    pub certified_key: Arc<CertifiedKey>,
    /// loopgate's own CA, which signs agents' certificates; `None` with the operator's own pair and no state directory.
    pub ca: Option<CertificateDer<'static>>,
    /// The names in the leaf.
    pub names: BTreeSet<SubjectName>,
    /// From when the leaf is valid.
    pub not_before: OffsetDateTime,
    /// Until when the leaf is valid.
    pub not_after: OffsetDateTime,
}

/// The running certificate: what to serve, now and from now on.
#[derive(Clone, Debug)]
pub struct Pki {
    identity: watch::Receiver<Arc<Identity>>,
    problem: watch::Receiver<Option<Arc<Error>>>,
    authority: Option<Arc<CertificateAuthority>>,
    reload: Arc<Notify>,
}

impl Pki {
    /// What to serve; there always is one.
    pub fn identity(&self) -> watch::Receiver<Arc<Identity>> {
        self.identity.clone()
    }

    /// Why the certificate that is served is not a newer one; `None` while all is well.
    pub fn problem(&self) -> watch::Receiver<Option<Arc<Error>>> {
        self.problem.clone()
    }

    /// The CA, for enrolment; `None` with the operator's own pair and no usable state directory.
    pub fn authority(&self) -> Option<Arc<CertificateAuthority>> {
        self.authority.clone()
    }

    /// Looks at the files now (SIGHUP) rather than within the next two seconds.
    pub fn reload(&self) {
        self.reload.notify_one();
    }
}

/// Loads or makes the certificate, and keeps it right until `shutdown`. `names` are those that discovery found; `localhost` and
/// `tls.names` are added to them. Blocks on files, and must be called within a runtime.
pub fn open(tls: &Tls, state_dir: &Path, names: watch::Receiver<BTreeSet<SubjectName>>, shutdown: &Shutdown) -> Result<Pki, Error> {
    let now = OffsetDateTime::now_utc();
    let (source, authority) = match &tls.own_pair {
        None => {
            let made = Made::open(state_dir, now)?;
            let authority = Arc::clone(made.authority());
            (Source::Made(made), Some(authority))
        }
        Some(files) => {
            let authority = authority_beside_own_pair(state_dir);
            let ca = authority.as_ref().map(|authority| authority.certificate().clone());
            (Source::Own(OwnPair { files: files.clone(), ca }), authority)
        }
    };
    StateDir::at(state_dir).warn_of_others();
    let fixed_names = fixed_names(&tls.names)?;
    // Stamped before it is read: what changes in between is read again.
    let seen = source.stamp();
    let loaded = source.load(&rotation::wanted(&fixed_names, &names.borrow()), now)?;
    rotation::announce(&loaded.identity);
    let retry_at = loaded.trouble.is_some().then(|| tokio::time::Instant::now() + rotation::RETRY);
    if let Some(trouble) = &loaded.trouble {
        tracing::warn!(error = trouble as &dyn std::error::Error, "the certificate is not what it should be");
    }

    let (identity, served) = watch::channel(Arc::new(loaded.identity));
    let (problem, known) = watch::channel(loaded.trouble.map(Arc::new));
    let reload = Arc::new(Notify::new());
    let memory = Memory { seen, doubted: None, retry_at };
    let rotation = Rotation { source: Arc::new(source), fixed_names, names, identity, problem, reload: Arc::clone(&reload), memory };
    shutdown.spawn(rotation.run(shutdown.clone()));
    Ok(Pki { identity: served, problem: known, authority, reload })
}

/// Without a CA nobody can enrol, but the operator's pair serves all the same.
fn authority_beside_own_pair(state_dir: &Path) -> Option<Arc<CertificateAuthority>> {
    CertificateAuthority::load_or_create(state_dir)
        .inspect_err(|error| tracing::warn!(error = error as &dyn std::error::Error, "no certificate authority: agents can't enrol"))
        .ok()
        .map(Arc::new)
}

fn fixed_names(given: &[String]) -> Result<BTreeSet<SubjectName>, Error> {
    let mut names: BTreeSet<_> = given.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    names.insert(SubjectName::Dns("localhost".into()));
    Ok(names)
}

//! The server certificate that loopgate makes for itself, in the state directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::authority::{CertificateAuthority, load_key, load_or_create_key};
use super::certificate::{Facts, try_on};
use super::error::{Error, Flaw};
use super::source::{Loaded, Stamp, identity, stamp};
use super::state_dir::{Access, Lock, StateDir};
use super::{SubjectName, pem, plan};

pub(super) const SERVER_CERTIFICATE: &str = "server.pem";
pub(super) const SERVER_KEY: &str = "server.key";

/// The chain for a key that is about to replace the present one. Two files can't be renamed at once: whoever finds it beside the key
/// it belongs to completes what a killed process began.
const NEXT_CERTIFICATE: &str = "server.pem.next";

/// A state directory with a CA and a server key.
#[derive(Debug)]
pub(super) struct Made {
    dir: StateDir,
    authority: Arc<CertificateAuthority>,
}

/// Which key a new leaf is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotateKey {
    /// The one there is, so that pins on the public key hold.
    Keep,
    /// A new one, for when the old may have leaked.
    Replace,
}

impl Made {
    /// Opens `state_dir`, and makes the CA and the server's key if they are missing.
    pub(super) fn open(state_dir: &Path, now: OffsetDateTime) -> Result<Self, Error> {
        let dir = StateDir::create(state_dir)?;
        let lock = dir.lock()?;
        let authority = Arc::new(CertificateAuthority::load_or_create_in(&dir, &lock, now)?);
        if dir.read(SERVER_KEY, Access::Secret)?.is_none() && dir.read(SERVER_CERTIFICATE, Access::Public)?.is_some() {
            return Err(Error::Missing { path: dir.file(SERVER_KEY), partner: dir.file(SERVER_CERTIFICATE) });
        }
        load_or_create_key(&dir, SERVER_KEY)?;
        Ok(Self { dir, authority })
    }

    /// The CA.
    pub(super) fn authority(&self) -> &Arc<CertificateAuthority> {
        &self.authority
    }

    /// Tells one state of the server's files from another.
    pub(super) fn stamp(&self) -> Stamp {
        stamp([&self.dir.file(SERVER_CERTIFICATE), &self.dir.file(SERVER_KEY)])
    }

    /// The server's certificate, renewed if it is due. A CA or a key that vanished while running is an error, not a reason for new ones.
    pub(super) fn load(&self, wanted: &BTreeSet<SubjectName>, now: OffsetDateTime) -> Result<Loaded, Error> {
        let lock = self.dir.lock()?;
        let key = self.key()?;
        let current = self.current(&key, &lock)?;
        let Some(names) = plan::due(current.as_ref().map(|(_, facts)| (&facts.names, facts.validity)), wanted, now) else {
            let (chain, _) = current.expect("without a leaf one is due");
            return self.loaded(chain, &key, None);
        };
        match (self.issue(&key, &names, now), current) {
            (Ok(chain), _) => self.loaded(chain, &key, None),
            // The old one serves on while it can; whether the clock is right is for the client to say.
            (Err(error), Some((chain, facts))) if now <= facts.validity.not_after => self.loaded(chain, &key, Some(error)),
            (Err(error), _) => Err(error),
        }
    }

    /// Replaces the leaf, due or not.
    pub(super) fn rotate(&self, rotate_key: RotateKey, now: OffsetDateTime) -> Result<Loaded, Error> {
        let lock = self.dir.lock()?;
        let key = self.key()?;
        let names = self.current(&key, &lock)?.map(|(_, facts)| facts.names);
        // Without a leaf only a running sidecar knows the names, and it adds them when it sees the new one.
        let names = names.unwrap_or_else(|| [SubjectName::Dns("localhost".into())].into());
        match rotate_key {
            RotateKey::Keep => {
                let chain = self.issue(&key, &names, now)?;
                self.loaded(chain, &key, None)
            }
            RotateKey::Replace => {
                let key = KeyPair::generate().map_err(Error::Issue)?;
                let chain = self.signed(&key, &names, now)?;
                self.dir.replace(NEXT_CERTIFICATE, pem::from_certificates(&chain).as_bytes(), Access::Public)?;
                self.dir.replace(SERVER_KEY, Zeroizing::new(key.serialize_pem()).as_bytes(), Access::Secret)?;
                self.dir.rename(NEXT_CERTIFICATE, SERVER_CERTIFICATE)?;
                self.loaded(chain, &key, None)
            }
        }
    }

    fn key(&self) -> Result<KeyPair, Error> {
        let missing = || Error::Missing { path: self.dir.file(SERVER_KEY), partner: self.dir.file(SERVER_CERTIFICATE) };
        load_key(&self.dir, SERVER_KEY)?.ok_or_else(missing)
    }

    /// The chain in the directory, which must be for `key` and by our CA, though it may be out of date.
    fn current(&self, key: &KeyPair, _lock: &Lock) -> Result<Option<(Vec<CertificateDer<'static>>, Facts)>, Error> {
        match (self.read(SERVER_CERTIFICATE, key), self.read(NEXT_CERTIFICATE, key)) {
            (Err(Error::Unusable { flaw: Flaw::KeyMismatch, .. }) | Ok(None), Ok(Some(next))) => {
                self.dir.rename(NEXT_CERTIFICATE, SERVER_CERTIFICATE)?;
                Ok(Some(next))
            }
            (current, _) => current,
        }
    }

    fn read(&self, name: &str, key: &KeyPair) -> Result<Option<(Vec<CertificateDer<'static>>, Facts)>, Error> {
        let Some(content) = self.dir.read(name, Access::Public)? else { return Ok(None) };
        let check = || {
            let chain = pem::certificates(&content)?;
            let facts = Facts::of(&chain[0])?;
            if facts.public_key != key.subject_public_key_info() {
                return Err(Flaw::KeyMismatch);
            }
            // Whether it is due is another question, so it is tried on at a time when it was valid.
            try_on(&chain, self.authority.certificate(), facts.validity.middle(), &facts.names).map_err(Flaw::NotByCa)?;
            Ok((chain, facts))
        };
        check().map(Some).map_err(Error::unusable(self.dir.file(name)))
    }

    /// A new leaf, written to the directory.
    fn issue(&self, key: &KeyPair, names: &BTreeSet<SubjectName>, now: OffsetDateTime) -> Result<Vec<CertificateDer<'static>>, Error> {
        let chain = self.signed(key, names, now)?;
        self.dir.replace(SERVER_CERTIFICATE, pem::from_certificates(&chain).as_bytes(), Access::Public)?;
        Ok(chain)
    }

    /// A new leaf that our own verifier accepts.
    fn signed(&self, key: &KeyPair, names: &BTreeSet<SubjectName>, now: OffsetDateTime) -> Result<Vec<CertificateDer<'static>>, Error> {
        let chain = self.authority.issue_server(key, names, now)?;
        try_on(&chain, self.authority.certificate(), now, names).map_err(Error::Verify)?;
        Ok(chain)
    }

    fn loaded(&self, chain: Vec<CertificateDer<'static>>, key: &KeyPair, trouble: Option<Error>) -> Result<Loaded, Error> {
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let identity = identity(chain, key, Some(self.authority.certificate().clone()));
        Ok(Loaded { identity: identity.map_err(Error::unusable(self.dir.file(SERVER_CERTIFICATE)))?, trouble })
    }
}

//! The server certificate that loopgate issues, in the state directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::authority::{CA_CERTIFICATE, CertificateAuthority, load_key, load_or_create_key};
use super::certificate::{CertificateFields, verify_server_chain};
use super::constraints::PermittedNames;
use super::error::{Error, InvalidFile};
use super::loaded::{LoadedIdentity, server_identity};
use super::name::SubjectName;
use super::revocation::REVOKED_FILE;
use super::state_dir::{Access, DirLock, StateDir};
use super::{pem, plan};

pub(super) const SERVER_CERTIFICATE: &str = "server.pem";
pub(super) const SERVER_KEY: &str = "server.key";

/// The chain for a new key, during a rotation of the key. Chain and key can't be renamed at once.
/// If the process is killed after the key was replaced, the next start finds that this chain
/// belongs to the key, and completes the rotation.
const NEXT_CERTIFICATE: &str = "server.pem.next";

/// A state directory with a CA and a server key.
#[derive(Debug)]
pub(super) struct Managed {
    dir: StateDir,
    authority: Arc<CertificateAuthority>,
    permitted_names: PermittedNames,
    follow_names: bool,
}

/// Whether a rotation keeps the server's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotateKey {
    /// Keeps the key, so that pins on the public key stay valid.
    Keep,
    /// Replaces the key, for example because it may have leaked.
    Replace,
}

impl Managed {
    /// Opens `state_dir`, and creates the CA and the server's key if they are missing.
    pub(super) fn open(state_dir: &Path, now: OffsetDateTime) -> Result<Self, Error> {
        Self::open_with_options(state_dir, None, true, now)
    }

    /// Opens `state_dir` like [`Self::open`]. A new CA gets name constraints that permit only
    /// `constrain`. If `follow_names` is false, the names of an existing leaf are kept.
    pub(super) fn open_with_options(
        state_dir: &Path,
        constrain: Option<&BTreeSet<SubjectName>>,
        follow_names: bool,
        now: OffsetDateTime,
    ) -> Result<Self, Error> {
        let dir = StateDir::create(state_dir)?;
        let lock = dir.lock()?;
        let authority = Arc::new(CertificateAuthority::load_or_create_in(&dir, &lock, constrain, now)?);
        if dir.read(SERVER_KEY, Access::Secret)?.is_none() && dir.read(SERVER_CERTIFICATE, Access::Public)?.is_some() {
            return Err(Error::Missing { path: dir.path_of(SERVER_KEY), partner: dir.path_of(SERVER_CERTIFICATE) });
        }
        load_or_create_key(&dir, SERVER_KEY)?;
        let permitted_names =
            PermittedNames::parse(authority.certificate()).map_err(Error::unusable(dir.path_of(CA_CERTIFICATE)))?;
        Ok(Self { dir, authority, permitted_names, follow_names })
    }

    /// Returns the CA.
    pub(super) fn authority(&self) -> &Arc<CertificateAuthority> {
        &self.authority
    }

    /// Returns the names for the next leaf: those of `wanted` for which the CA may sign, or the
    /// names `current` of the present leaf if names are not followed.
    pub(super) fn leaf_names(
        &self,
        current: Option<&BTreeSet<SubjectName>>,
        wanted: &BTreeSet<SubjectName>,
    ) -> BTreeSet<SubjectName> {
        match current.filter(|_| !self.follow_names) {
            Some(current) => current.clone(),
            None => wanted.iter().filter(|name| self.permitted_names.permits(name)).cloned().collect(),
        }
    }

    /// Returns the state directory.
    pub(super) fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// Returns the paths of the server's files.
    pub(super) fn file_paths(&self) -> [PathBuf; 3] {
        [SERVER_CERTIFICATE, SERVER_KEY, REVOKED_FILE].map(|name| self.dir.path_of(name))
    }

    /// Loads the server's certificate, and issues a new one if it is due. If that fails, returns
    /// the old one with the problem, unless it has expired.
    ///
    /// # Errors
    /// There is no valid certificate, or a file can't be read. If the key has vanished meanwhile,
    /// no new one is created.
    pub(super) fn load(
        &self,
        wanted_names: &BTreeSet<SubjectName>,
        now: OffsetDateTime,
    ) -> Result<LoadedIdentity, Error> {
        let lock = self.dir.lock()?;
        let key = self.read_key()?;
        let current = self.read_current(&key, &lock)?;
        let wanted_names = &self.leaf_names(current.as_ref().map(|(_, facts)| &facts.names), wanted_names);
        let Some(names) =
            plan::due_names(current.as_ref().map(|(_, facts)| (&facts.names, facts.validity)), wanted_names, now)
        else {
            let (chain, _) = current.expect("without a leaf one is due");
            return self.to_loaded_identity(chain, &key, None);
        };
        match (self.issue_leaf(&key, &names, now), current) {
            (Ok(chain), _) => self.to_loaded_identity(chain, &key, None),
            // The old certificate is served until it expires.
            (Err(error), Some((chain, facts))) if now <= facts.validity.not_after => {
                self.to_loaded_identity(chain, &key, Some(error))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Replaces the leaf, whether or not it is due. The new one has the names of the old one, or
    /// `localhost` if there was none.
    pub(super) fn rotate(&self, rotate_key: RotateKey, now: OffsetDateTime) -> Result<LoadedIdentity, Error> {
        let lock = self.dir.lock()?;
        let key = self.read_key()?;
        let names = self.read_current(&key, &lock)?.map(|(_, facts)| facts.names);
        // Without a leaf only a running sidecar knows the names. It adds them when it notices the
        // new leaf.
        let names = names.unwrap_or_else(|| [SubjectName::Dns("localhost".into())].into());
        match rotate_key {
            RotateKey::Keep => {
                let chain = self.issue_leaf(&key, &names, now)?;
                self.to_loaded_identity(chain, &key, None)
            }
            RotateKey::Replace => {
                let key = KeyPair::generate().map_err(Error::Issue)?;
                let chain = self.sign_verified(&key, &names, now)?;
                self.dir.replace(NEXT_CERTIFICATE, pem::encode_certificates(&chain).as_bytes(), Access::Public)?;
                self.dir.replace(SERVER_KEY, Zeroizing::new(key.serialize_pem()).as_bytes(), Access::Secret)?;
                self.dir.rename(NEXT_CERTIFICATE, SERVER_CERTIFICATE)?;
                self.to_loaded_identity(chain, &key, None)
            }
        }
    }

    /// Reads the server's key. Fails if there is no file.
    fn read_key(&self) -> Result<KeyPair, Error> {
        let missing =
            || Error::Missing { path: self.dir.path_of(SERVER_KEY), partner: self.dir.path_of(SERVER_CERTIFICATE) };
        load_key(&self.dir, SERVER_KEY)?.ok_or_else(missing)
    }

    /// Returns the chain in the directory, or `None` if there is none, and completes an interrupted
    /// rotation. The chain must be for `key` and signed by loopgate's CA, but may be expired or
    /// lack names.
    fn read_current(
        &self,
        key: &KeyPair,
        _lock: &DirLock,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, CertificateFields)>, Error> {
        match (self.read_chain(SERVER_CERTIFICATE, key), self.read_chain(NEXT_CERTIFICATE, key)) {
            (Err(Error::Unusable { reason: InvalidFile::KeyMismatch, .. }) | Ok(None), Ok(Some(next))) => {
                self.dir.rename(NEXT_CERTIFICATE, SERVER_CERTIFICATE)?;
                Ok(Some(next))
            }
            (current, _) => current,
        }
    }

    /// Reads and verifies the chain in the file `name`; `None` if there is no such file.
    fn read_chain(
        &self,
        name: &str,
        key: &KeyPair,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, CertificateFields)>, Error> {
        let Some(content) = self.dir.read(name, Access::Public)? else { return Ok(None) };
        let check = || {
            let chain = pem::certificates(&content)?;
            let facts = CertificateFields::parse(&chain[0])?;
            if facts.public_key != key.subject_public_key_info() {
                return Err(InvalidFile::KeyMismatch);
            }
            // Expiry is checked elsewhere, so the chain is verified at a time within its validity.
            verify_server_chain(&chain, self.authority.certificate(), facts.validity.middle(), &facts.names)
                .map_err(InvalidFile::NotByCa)?;
            Ok((chain, facts))
        };
        check().map(Some).map_err(Error::unusable(self.dir.path_of(name)))
    }

    /// Issues a new leaf and writes it to the directory.
    fn issue_leaf(
        &self,
        key: &KeyPair,
        names: &BTreeSet<SubjectName>,
        now: OffsetDateTime,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let chain = self.sign_verified(key, names, now)?;
        self.dir.replace(SERVER_CERTIFICATE, pem::encode_certificates(&chain).as_bytes(), Access::Public)?;
        Ok(chain)
    }

    /// Signs a new leaf, and verifies the chain like a client.
    fn sign_verified(
        &self,
        key: &KeyPair,
        names: &BTreeSet<SubjectName>,
        now: OffsetDateTime,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let chain = self.authority.issue_server(key, names, now)?;
        verify_server_chain(&chain, self.authority.certificate(), now, names).map_err(Error::Verify)?;
        Ok(chain)
    }

    /// Returns the identity of `chain` and `key`. `problem` is why there is no newer one.
    fn to_loaded_identity(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: &KeyPair,
        problem: Option<Error>,
    ) -> Result<LoadedIdentity, Error> {
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let key = any_supported_type(&key)
            .map_err(|error| Error::unusable(self.dir.path_of(SERVER_KEY))(InvalidFile::TlsKey(error)))?;
        let identity = server_identity(chain, key, Some(self.authority.certificate().clone()));
        Ok(LoadedIdentity {
            identity: identity.map_err(Error::unusable(self.dir.path_of(SERVER_CERTIFICATE)))?,
            problem,
        })
    }
}

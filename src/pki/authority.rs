//! loopgate's CA: creates and loads it, and signs certificates with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::{OffsetDateTime, macros::datetime};
use zeroize::Zeroizing;

use super::certificate::CertificateFields;
use super::error::{Error, InvalidFile};
use super::name::SubjectName;
use super::pem;
use super::state_dir::{Access, DirLock, StateDir};
use super::template::{self, Validity};

pub(super) const CA_CERTIFICATE: &str = "ca.pem";
pub(super) const CA_KEY: &str = "ca.key";

/// The earliest date of a plausible clock, before the first release of loopgate. An earlier clock
/// was never set, and a CA with the date of such a clock could be invalid when the clock is set.
const EARLIEST_CLOCK: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

/// The CA with its key.
#[derive(Debug)]
pub struct CertificateAuthority {
    certificate: CertificateDer<'static>,
    validity: Validity,
    path: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl CertificateAuthority {
    /// Loads the CA in `state_dir`, or creates one if there is none. Two processes that do this at
    /// once get the same CA.
    ///
    /// # Errors
    /// The files can't be read or written, or are invalid. The error names the file.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, Error> {
        Self::load_or_create_constrained(state_dir, None)
    }

    /// Loads or creates the CA like [`Self::load_or_create`]. A new CA gets name constraints that
    /// permit only `constrain`.
    pub(super) fn load_or_create_constrained(
        state_dir: &Path,
        constrain: Option<&BTreeSet<SubjectName>>,
    ) -> Result<Self, Error> {
        let dir = StateDir::create(state_dir)?;
        let lock = dir.lock()?;
        Self::load_or_create_in(&dir, &lock, constrain, OffsetDateTime::now_utc())
    }

    /// Loads or creates the CA in `dir`, under `lock`, and removes temporary files of killed
    /// processes. The key is written before the certificate. If the process is killed in between,
    /// the next start creates the certificate.
    ///
    /// # Errors
    /// As [`Self::load_or_create`]. There is a certificate without its key, or no CA and a clock
    /// that was never set.
    pub(super) fn load_or_create_in(
        dir: &StateDir,
        lock: &DirLock,
        constrain: Option<&BTreeSet<SubjectName>>,
        now: OffsetDateTime,
    ) -> Result<Self, Error> {
        dir.remove_temporary_files(lock);
        if dir.read(CA_KEY, Access::Secret)?.is_none() && dir.read(CA_CERTIFICATE, Access::Public)?.is_some() {
            return Err(Error::Missing { path: dir.path_of(CA_KEY), partner: dir.path_of(CA_CERTIFICATE) });
        }
        if dir.read(CA_CERTIFICATE, Access::Public)?.is_none() {
            if now < EARLIEST_CLOCK {
                return Err(Error::Clock { now });
            }
            let key = load_or_create_key(dir, CA_KEY)?;
            let params = template::ca_params(&key, constrain, Validity::starting(now, template::CA_LIFE))?;
            let certificate = params.self_signed(&key).map_err(Error::Issue)?;
            let pem = pem::encode_certificates(&[certificate.der().clone()]);
            if dir.write_if_missing(CA_CERTIFICATE, pem.as_bytes(), Access::Public)? {
                tracing::info!(path = %dir.path_of(CA_CERTIFICATE).display(), "created a certificate authority");
            }
        }
        Self::load_in(dir)
    }

    /// Loads the CA in `dir`. Both files must exist and belong together.
    fn load_in(dir: &StateDir) -> Result<Self, Error> {
        let path = dir.path_of(CA_CERTIFICATE);
        let (certificate, facts) = load_certificate(dir)?;
        let missing = || Error::Missing { path: dir.path_of(CA_KEY), partner: path.clone() };
        let key = load_key(dir, CA_KEY)?.ok_or_else(missing)?;
        if key.subject_public_key_info() != facts.public_key {
            return Err(Error::unusable(path)(InvalidFile::KeyMismatch));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| Error::unusable(&path)(InvalidFile::Issuer(error)))?;
        Ok(Self { certificate, validity: facts.validity, path, issuer })
    }

    /// Returns the CA certificate, which clients trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the CA certificate as PEM.
    pub fn pem(&self) -> String {
        pem::encode_certificates(std::slice::from_ref(&self.certificate))
    }

    /// Signs a client certificate with the SPIFFE ID `uri` for the key of `request`, valid for
    /// `life`.
    ///
    /// The key must be a P-256 key and have signed the request. Nothing else of the request is
    /// used.
    ///
    /// # Errors
    /// The request or `life` is invalid, or the CA is not valid now.
    pub fn issue_client(
        &self,
        request: &CertificateSigningRequestDer<'_>,
        uri: &str,
        life: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let unacceptable = |reason| Error::Request { reason };
        let request = CertificateSigningRequestParams::from_der(request)
            .map_err(|error| unacceptable(InvalidFile::Request(error)))?;
        let key = request.public_key;
        // rcgen reports the algorithm of the signature, not of the key. The length of the point
        // identifies the curve.
        if PublicKeyData::algorithm(&key) != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != 65 {
            return Err(unacceptable(InvalidFile::KeyKind));
        }
        self.sign_client(&key, uri, life, OffsetDateTime::now_utc())
    }

    /// Signs a client certificate for an agent that can't enrol, with the URI
    /// `spiffe://<trust-domain>/agent/<name>`.
    ///
    /// # Errors
    /// A name or `life` is invalid, or the CA is not valid now.
    pub fn issue_agent(
        &self,
        key: &KeyPair,
        trust_domain: &str,
        name: &str,
        life: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        self.sign_client(key, &agent_uri(trust_domain, name)?, life, OffsetDateTime::now_utc())
    }

    /// Signs a client certificate for a person with the e-mail address `user`. It has no URI, so it
    /// makes no agent.
    ///
    /// # Errors
    /// `user` or `life` is invalid, or the CA is not valid now.
    pub(super) fn issue_user(
        &self,
        key: &KeyPair,
        user: &str,
        life: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let validity = self.client_validity(OffsetDateTime::now_utc(), life)?;
        self.sign_leaf(template::user_params(&parse_user_email(user)?, validity)?, key)
    }

    /// Signs a client leaf with the URI `uri`. The returned chain ends with the CA.
    fn sign_client(
        &self,
        key: &impl PublicKeyData,
        uri: &str,
        life: Duration,
        now: OffsetDateTime,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        self.sign_leaf(template::client_params(uri, self.client_validity(now, life)?)?, key)
    }

    /// Returns the validity of a client leaf signed `now`. Fails if `life` is less than a minute or
    /// more than [`template::MAX_LIFE`], or if the CA is not valid now.
    fn client_validity(&self, now: OffsetDateTime, life: Duration) -> Result<Validity, Error> {
        let life = time::Duration::try_from(life).map_err(|_| Error::Lifetime)?;
        if !(time::Duration::MINUTE..=template::MAX_LIFE).contains(&life) {
            return Err(Error::Lifetime);
        }
        self.leaf_validity(now, life)
    }

    /// Signs a leaf. The returned chain ends with the CA.
    fn sign_leaf(
        &self,
        params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let leaf = params.signed_by(key, &self.issuer).map_err(Error::Issue)?;
        Ok(vec![leaf.into(), self.certificate.clone()])
    }

    /// Signs a server leaf. The returned chain ends with the CA.
    pub(super) fn issue_server(
        &self,
        key: &KeyPair,
        names: &BTreeSet<SubjectName>,
        now: OffsetDateTime,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        self.sign_leaf(template::server_params(names, self.leaf_validity(now, template::SERVER_LIFE)?)?, key)
    }

    /// Returns the validity of a certificate signed `now`, which ends with that of the CA at the
    /// latest. Fails if the CA is not valid now.
    fn leaf_validity(&self, now: OffsetDateTime, life: time::Duration) -> Result<Validity, Error> {
        let Validity { not_before, not_after } = self.validity;
        if now < not_before || not_after <= now {
            return Err(Error::CaNotValid { path: self.path.clone(), not_before, not_after, now });
        }
        Ok(Validity::starting(now, life).clamped_to(self.validity))
    }
}

/// Returns the SPIFFE ID of an agent with a certificate of `loopgate cert issue`.
///
/// # Errors
/// The trust domain or the name is not a single path segment of a SPIFFE ID.
pub(super) fn agent_uri(trust_domain: &str, name: &str) -> Result<String, Error> {
    let is_segment = |text: &str| {
        (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    match [trust_domain, name].into_iter().find(|part| !is_segment(part)) {
        Some(part) => Err(Error::SpiffeId { part: part.to_owned() }),
        None => Ok(format!("spiffe://{trust_domain}/agent/{name}")),
    }
}

/// Returns whether `file` is the path of the CA certificate in `state_dir`. The file need not
/// exist.
pub fn is_ca_certificate_file(file: &Path, state_dir: &Path) -> bool {
    file == state_dir.join(CA_CERTIFICATE)
}

/// Returns `text` if it is an e-mail address with characters that are safe in a certificate, a
/// header and a file name.
///
/// # Errors
/// `text` is not an e-mail address of this form.
pub(super) fn parse_user_email(text: &str) -> Result<String, Error> {
    let is_valid = |part: &str, further: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && !part.ends_with('.')
            && !part.contains("..")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || further.contains(c))
    };
    match text.split_once('@') {
        Some((name, domain))
            if text.len() <= 254 && name.len() <= 64 && is_valid(name, "._+-") && is_valid(domain, ".-") =>
        {
            Ok(text.to_owned())
        }
        _ => Err(Error::User { text: text.to_owned() }),
    }
}

/// Loads `ca.pem`, which must contain a CA certificate.
pub(super) fn load_certificate(dir: &StateDir) -> Result<(CertificateDer<'static>, CertificateFields), Error> {
    let path = dir.path_of(CA_CERTIFICATE);
    let Some(content) = dir.read(CA_CERTIFICATE, Access::Public)? else {
        return Err(Error::NoAuthority { dir: dir.path().to_owned() });
    };
    let read = || {
        let certificate = pem::certificates(&content)?.swap_remove(0);
        let facts = CertificateFields::parse(&certificate)?;
        if facts.is_ca { Ok((certificate, facts)) } else { Err(InvalidFile::NotACa) }
    };
    read().map_err(Error::unusable(path))
}

/// Loads the private key in the file `name`; `None` if there is no file.
pub(super) fn load_key(dir: &StateDir, name: &str) -> Result<Option<KeyPair>, Error> {
    let Some(content) = dir.read(name, Access::Secret)? else { return Ok(None) };
    let read = || {
        let der = pem::private_key(&content)?;
        KeyPair::try_from(&der).map_err(InvalidFile::Key)
    };
    read().map(Some).map_err(Error::unusable(dir.path_of(name)))
}

/// Loads the private key in the file `name`, or creates one if there is none. Two processes that do
/// this at once get the same key.
pub(super) fn load_or_create_key(dir: &StateDir, name: &str) -> Result<KeyPair, Error> {
    if let Some(key) = load_key(dir, name)? {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(Error::Issue)?;
    if dir.write_if_missing(name, Zeroizing::new(key.serialize_pem()).as_bytes(), Access::Secret)? {
        return Ok(key);
    }
    load_key(dir, name)?.ok_or_else(|| Error::io("read", dir.path_of(name))(std::io::ErrorKind::NotFound.into()))
}

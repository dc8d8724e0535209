//! The operations of `loopgate cert` on files. A running sidecar notices changes within two
//! seconds.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::authority::{self, CertificateAuthority, load_or_create_key};
use super::certificate::CertificateFields;
use super::error::{Error, InvalidFile};
use super::managed::{Managed, RotateKey, SERVER_CERTIFICATE};
use super::pin::public_key_pin;
pub use super::pkcs12::{Encryption, generate_password, read_password};
pub use super::revocation::parse_serial;
use super::state_dir::{Access, StateDir, read_file};
use super::{chain, pem, pkcs12, revocation};
use crate::fingerprint::Fingerprint;

/// The description of a certificate that `loopgate cert show` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// The certificate's file.
    pub file: PathBuf,
    /// The subject.
    pub subject: String,
    /// The names in the SAN.
    pub names: Vec<String>,
    /// The start of the validity (RFC 3339).
    pub not_before: String,
    /// The end of the validity (RFC 3339).
    pub not_after: String,
    /// The whole days until the end of the validity; negative afterwards.
    pub days_left: i64,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate in the form `AA:BB:..`, which OpenClaw pins.
    pub fingerprint: String,
    /// SHA-256 of the public key in base64, which stays the same after renewals. `curl
    /// --pinnedpubkey` expects it with the prefix `sha256//`.
    pub public_key: String,
}

/// The certificates of a sidecar.
#[derive(Clone, Debug, Serialize)]
pub struct CertificateReport {
    /// The server certificate.
    pub server: Description,
    /// loopgate's CA; `None` with the operator's pair and no usable state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<Description>,
    /// The issuer of a provided certificate, if its own certificate is not in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_issuer: Option<String>,
}

/// Describes the server certificate in `state_dir`, or the operator's `own_chain`, and the CA.
/// Changes nothing, and reads no key.
///
/// # Errors
/// The certificate can't be read, or without `own_chain` the CA's.
pub fn show(state_dir: &Path, own_chain: Option<&Path>) -> Result<CertificateReport, Error> {
    let dir = StateDir::at(state_dir);
    let (server, ca) = match own_chain {
        Some(chain) => (chain.to_owned(), authority::load_certificate(&dir).ok()),
        None => (dir.path_of(SERVER_CERTIFICATE), Some(authority::load_certificate(&dir)?)),
    };
    let chain = pem::certificates(&read_file(&server)?.0).map_err(Error::unusable(&server))?;
    let ca = ca.map(|(certificate, _)| describe(dir.path_of(authority::CA_CERTIFICATE), &certificate)).transpose()?;
    let Some(chain) = chain::order_chain(&chain, None).map_err(Error::unusable(&server))? else {
        return Err(Error::unusable(&server)(InvalidFile::NoCertificate));
    };
    Ok(CertificateReport {
        server: describe(server, &chain.certificates[0])?,
        ca,
        missing_issuer: chain.missing_issuer,
    })
}

/// Reads all certificates in a PEM file. Blocks.
///
/// # Errors
/// The file can't be read, is not PEM, or has no certificate.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    pem::certificates(&read_file(path)?.0).map_err(Error::unusable(path))
}

/// Returns the CA's certificate as PEM. Changes nothing, and reads no key.
pub fn export(state_dir: &Path) -> Result<String, Error> {
    let (certificate, _) = authority::load_certificate(&StateDir::at(state_dir))?;
    Ok(pem::encode_certificates(&[certificate]))
}

/// Writes the CA's certificate to a file that every user may read. Images without a shell can't
/// redirect output.
pub fn export_to(state_dir: &Path, file: &Path) -> Result<(), Error> {
    write_atomically(file, export(state_dir)?.as_bytes(), Access::Public)
}

/// Writes `file` atomically. Its directory must exist.
fn write_atomically(file: &Path, content: &[u8], access: Access) -> Result<(), Error> {
    let Some(name) = file.file_name().and_then(|name| name.to_str()) else {
        return Err(Error::io("write", file)(std::io::ErrorKind::InvalidFilename.into()));
    };
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    StateDir::at(directory).replace(name, content, access)
}

/// Replaces the server's leaf, whether or not it is due, and describes the new one.
///
/// # Errors
/// There is no CA in `state_dir`, or a file can't be read or written.
pub fn rotate(state_dir: &Path, rotate_key: RotateKey) -> Result<CertificateReport, Error> {
    // Fails if there is no CA, so that a mistyped directory does not get one.
    authority::load_certificate(&StateDir::at(state_dir))?;
    let now = OffsetDateTime::now_utc();
    Managed::open(state_dir, now)?.rotate(rotate_key, now)?;
    show(state_dir, None)
}

/// An agent with a certificate of `loopgate cert issue`.
#[derive(Clone, Debug)]
pub struct Agent<'a> {
    /// The SPIFFE trust domain.
    pub trust_domain: &'a str,
    /// The agent's name, the last part of its SPIFFE ID.
    pub name: &'a str,
    /// The lifetime of the certificate; at most 397 days.
    pub life: Duration,
}

/// Parses the name of an agent.
///
/// # Errors
/// `text` can't be part of a SPIFFE ID.
pub fn parse_agent_name(text: &str) -> Result<String, Error> {
    authority::agent_uri("loopgate.local", text).map(|_| text.to_owned())
}

/// Issues a certificate for an agent, and writes `agent.pem`, `agent.key` and `ca.pem` to the
/// directory `out`. Creates the CA if there is none. An existing `agent.key` is kept, so that a
/// running agent reloads only one file.
///
/// # Errors
/// A name or the lifetime is invalid, the CA can't be used, or a file can't be written.
pub fn issue(state_dir: &Path, agent: &Agent<'_>, out: &Path) -> Result<Description, Error> {
    // Checked before any file is created, since `out` may be named after the agent.
    authority::agent_uri(agent.trust_domain, agent.name)?;
    let authority = CertificateAuthority::load_or_create(state_dir)?;
    let out = StateDir::create(out)?;
    let _lock = out.lock()?;
    let key = load_or_create_key(&out, "agent.key")?;
    let chain = authority.issue_agent(&key, agent.trust_domain, agent.name, agent.life)?;
    let ca = authority.pem();
    if out.read("ca.pem", Access::Public)?.is_none_or(|present| present.as_slice() != ca.as_bytes()) {
        out.replace("ca.pem", ca.as_bytes(), Access::Public)?;
    }
    out.replace("agent.pem", pem::encode_certificates(&chain).as_bytes(), Access::Public)?;
    describe(out.path_of("agent.pem"), &chain[0])
}

/// A person with a certificate of `loopgate cert issue --user`.
#[derive(Clone, Debug)]
pub struct User<'a> {
    /// The e-mail address, the only name in the certificate.
    pub mail: &'a str,
    /// The lifetime of the certificate; at most 397 days.
    pub life: Duration,
    /// How the PKCS#12 file is encrypted.
    pub encryption: Encryption,
}

/// Parses a user's e-mail address.
///
/// # Errors
/// `text` is not an e-mail address, or has characters that are not accepted here.
pub fn parse_user_email(text: &str) -> Result<String, Error> {
    authority::parse_user_email(text)
}

/// Issues a certificate for a person. Creates the CA if there is none. Returns the content of a
/// PKCS#12 file with the certificate and its key, which is stored nowhere else, and the description
/// of the certificate. Does not write `file`, which the description names.
///
/// # Errors
/// The user or the lifetime is invalid, or the CA can't be used.
pub fn issue_user(
    state_dir: &Path,
    user: &User<'_>,
    password: &str,
    file: &Path,
) -> Result<(Zeroizing<Vec<u8>>, Description), Error> {
    authority::parse_user_email(user.mail)?;
    let authority = CertificateAuthority::load_or_create(state_dir)?;
    let key = KeyPair::generate().map_err(Error::Issue)?;
    let chain = authority.issue_user(&key, user.mail, user.life)?;
    let encoded = pkcs12::encode(&chain, &key, user.mail, password, user.encryption)?;
    Ok((Zeroizing::new(encoded), describe(file.to_owned(), &chain[0])?))
}

/// Writes a file atomically that only its owner may read.
///
/// # Errors
/// The file can't be written.
pub fn write_secret(file: &Path, content: &[u8]) -> Result<(), Error> {
    write_atomically(file, content, Access::Secret)
}

/// Revokes the certificate with this serial number. Returns false if it was revoked already.
///
/// # Errors
/// There is no CA in `state_dir`, or the list can't be read or written.
pub fn revoke(state_dir: &Path, serial: &[u8]) -> Result<bool, Error> {
    let dir = StateDir::at(state_dir);
    authority::load_certificate(&dir)?;
    let now = OffsetDateTime::now_utc();
    revocation::add(&dir, serial, &format!("revoked {}", now.format(&Rfc3339).unwrap_or_else(|_| now.to_string())))
}

/// Returns the serial number of the first certificate in a PEM file.
///
/// # Errors
/// The file can't be read or contains no certificate.
pub fn read_serial(file: &Path) -> Result<Vec<u8>, Error> {
    let certificate = read_certificates(file)?.swap_remove(0);
    parse_serial(&CertificateFields::parse(&certificate).map_err(Error::unusable(file))?.serial)
}

/// Formats a serial number like [`Description::serial`].
pub fn format_serial(serial: &[u8]) -> String {
    let digits = hex::encode(serial);
    digits.as_bytes().chunks(2).map(String::from_utf8_lossy).collect::<Vec<_>>().join(":")
}

/// Describes `certificate`, which is in `file`, for the output of the commands.
fn describe(file: PathBuf, certificate: &CertificateDer<'_>) -> Result<Description, Error> {
    let facts = CertificateFields::parse(certificate).map_err(Error::unusable(&file))?;
    let date = |date: OffsetDateTime| date.format(&Rfc3339).unwrap_or_else(|_| date.to_string());
    Ok(Description {
        file,
        subject: facts.subject,
        names: facts.names.iter().map(ToString::to_string).chain(facts.uris).chain(facts.emails).collect(),
        not_before: date(facts.validity.not_before),
        not_after: date(facts.validity.not_after),
        days_left: (facts.validity.not_after - OffsetDateTime::now_utc()).whole_days(),
        serial: facts.serial,
        fingerprint: Fingerprint::of(certificate).to_string(),
        public_key: public_key_pin(certificate).unwrap_or_default(),
    })
}

impl fmt::Display for CertificateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server certificate\n{}", self.server)?;
        if let Some(ca) = &self.ca {
            write!(f, "\ncertificate authority\n{ca}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  file         {}", self.file.display())?;
        writeln!(f, "  subject      {}", self.subject)?;
        for (i, name) in self.names.iter().enumerate() {
            writeln!(f, "  {:<12} {name}", if i == 0 { "names" } else { "" })?;
        }
        writeln!(f, "  valid        {} until {} ({} days left)", self.not_before, self.not_after, self.days_left)?;
        writeln!(f, "  serial       {}", self.serial)?;
        writeln!(f, "  fingerprint  {}", self.fingerprint)?;
        writeln!(f, "  public key   sha256//{}", self.public_key)
    }
}

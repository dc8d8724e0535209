//! The CAs whose client certificates are trusted, and the contents of a client certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::client_verifier::ClientVerifier;
use crate::lane::{Certificate, Issuer};
use crate::pki::{self, Revoked};

/// Why the client CA bundle (`tls.client_ca`) can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read, is not PEM, or has no certificate.
    #[error("can't read the client CA (tls.client_ca)")]
    Read(#[source] pki::Error),
    /// A certificate in the file can't be used as a trust anchor.
    #[error("no valid CA certificate in client CA {path} (tls.client_ca)")]
    Anchor {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: rustls::Error,
    },
    /// The certificate verifier can't be built.
    #[error("client certificates can't be verified")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// The CAs whose client certificates are trusted: loopgate's own, and those of `tls.client_ca`.
#[derive(Debug)]
pub struct ClientAuthorities {
    operator: Vec<CertificateDer<'static>>,
    verifier: Option<Arc<ClientVerifier>>,
    revoked: Arc<Revoked>,
}

impl ClientAuthorities {
    /// Trusts client certificates of loopgate's CA, except the `revoked` ones, and those of the CAs
    /// in the PEM bundle `operator` (`tls.client_ca`).
    ///
    /// # Errors
    /// The bundle can't be read or used. The error names the file.
    pub fn new(
        loopgate_ca: Option<CertificateDer<'static>>,
        operator: Option<&Path>,
        revoked: Arc<Revoked>,
    ) -> Result<Self, Error> {
        let operator = operator.map(read_bundle).transpose()?.unwrap_or_default();
        let verifier = ClientVerifier::trusting(loopgate_ca.as_ref(), &operator, Arc::clone(&revoked))?.map(Arc::new);
        Ok(Self { operator, verifier, revoked })
    }

    /// Returns whether both trust the same CAs of `tls.client_ca`.
    pub(super) fn has_same_operator_cas(&self, other: &Self) -> bool {
        self.operator == other.operator
    }

    /// Returns whether `certificate` was issued by loopgate's CA and is revoked.
    pub(super) fn revokes(&self, certificate: &Certificate) -> bool {
        certificate.issuer == Issuer::Loopgate && self.revoked.contains(&certificate.serial)
    }

    /// Returns whether both revoke the same certificates.
    pub(super) fn has_same_revocations(&self, other: &Self) -> bool {
        self.revoked == other.revoked
    }

    /// Returns whether `tls.client_ca` is set, so that every client is asked for a certificate.
    pub(super) fn has_operator_cas(&self) -> bool {
        !self.operator.is_empty()
    }

    /// Returns the verifier of client certificates; `None` if no CA is trusted. Then no client is
    /// asked for a certificate.
    pub(super) fn verifier(&self) -> Option<Arc<ClientVerifier>> {
        self.verifier.clone()
    }

    /// Returns the issuer and the contents of the leaf of `chain`, which rustls has verified;
    /// `None` if the chain is empty, or the leaf is malformed or has no subject alternative name.
    pub(super) fn leaf_certificate(&self, chain: &[CertificateDer<'static>]) -> Option<Certificate> {
        let leaf = chain.first()?;
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let (mut uris, mut mail, mut dns) = (Vec::new(), None, None);
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::RFC822Name(name) if mail.is_none() => mail = Some((*name).to_owned()),
                GeneralName::DNSName(name) if dns.is_none() => dns = Some((*name).to_owned()),
                _ => {}
            }
        }
        let is_loopgates =
            self.verifier.as_ref().is_some_and(|verifier| verifier.is_loopgate_ca(parsed.issuer().as_raw()));
        Some(Certificate {
            issuer: if is_loopgates { Issuer::Loopgate } else { Issuer::Operator },
            // A certificate of loopgate's CA names a user if it has an e-mail address and no URI. A
            // URI names an agent.
            user: if is_loopgates {
                mail.filter(|_| uris.is_empty())
            } else {
                mail.or_else(|| uris.first().cloned()).or(dns)
            },
            uris,
            serial: parsed.raw_serial().to_vec(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }
}

/// Reads the CA certificates in the PEM file `path`.
///
/// # Errors
/// The file can't be read or has no certificate, or one of them can't be a trust anchor.
fn read_bundle(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = pki::offline::read_certificates(path).map_err(Error::Read)?;
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store.add(certificate.clone()).map_err(|source| Error::Anchor { path: path.to_owned(), source })?;
    }
    Ok(certificates)
}

//! Parses certificates, and verifies a server chain as a client would.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, SubjectPublicKeyInfo, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::error::InvalidFile;
use super::name::SubjectName;
use super::template::Validity;

/// The fields of a certificate that loopgate reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CertificateFields {
    /// The DNS names and IP addresses in the SAN.
    pub(super) names: BTreeSet<SubjectName>,
    /// The URIs in the SAN, such as an agent's SPIFFE ID.
    pub(super) uris: Vec<String>,
    /// The e-mail addresses in the SAN, such as a user's.
    pub(super) emails: Vec<String>,
    /// The validity.
    pub(super) validity: Validity,
    /// Whether this is a CA certificate that may sign certificates.
    pub(super) is_ca: bool,
    /// The SubjectPublicKeyInfo in DER.
    pub(super) public_key: Vec<u8>,
    /// The serial number in the form `0a:1b:..`.
    pub(super) serial: String,
    /// The subject in the form `CN=..`.
    pub(super) subject: String,
    /// The issuer in the form `CN=..`.
    pub(super) issuer: String,
    /// The subject in DER.
    pub(super) raw_subject: Vec<u8>,
    /// The issuer in DER.
    pub(super) raw_issuer: Vec<u8>,
    /// Why TLS can't use the key; `None` if it can.
    pub(super) key_problem: Option<String>,
}

impl CertificateFields {
    /// Parses `certificate`, without verifying it.
    pub(super) fn parse(certificate: &CertificateDer<'_>) -> Result<Self, InvalidFile> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| match error {
            x509_parser::nom::Err::Error(error) | x509_parser::nom::Err::Failure(error) => {
                InvalidFile::Certificate(error)
            }
            x509_parser::nom::Err::Incomplete(_) => {
                InvalidFile::Certificate(x509_parser::error::X509Error::InvalidCertificate)
            }
        })?;
        let date = |date: x509_parser::time::ASN1Time| {
            OffsetDateTime::from_unix_timestamp(date.timestamp()).map_err(|_| InvalidFile::Dates)
        };
        let alternative_names = parsed.subject_alternative_name().map_err(InvalidFile::Certificate)?;
        let may_sign = match parsed.key_usage().map_err(InvalidFile::Certificate)? {
            Some(usage) => usage.value.key_cert_sign(),
            None => true,
        };
        let alternative = || alternative_names.iter().flat_map(|names| &names.value.general_names);
        Ok(Self {
            names: alternative().filter_map(subject_name).collect(),
            uris: alternative().filter_map(uri).collect(),
            emails: alternative().filter_map(email).collect(),
            validity: Validity {
                not_before: date(parsed.validity().not_before)?,
                not_after: date(parsed.validity().not_after)?,
            },
            is_ca: parsed.is_ca() && may_sign,
            public_key: parsed.public_key().raw.to_vec(),
            serial: parsed.raw_serial_as_string(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            raw_subject: parsed.subject().as_raw().to_vec(),
            raw_issuer: parsed.issuer().as_raw().to_vec(),
            key_problem: key_problem(parsed.public_key()),
        })
    }

    /// Returns whether subject and issuer are the same, as in a root.
    pub(super) fn is_self_issued(&self) -> bool {
        self.raw_subject == self.raw_issuer
    }
}

/// Returns why TLS can't use a key: its length, its curve or its kind is not supported. `None` if
/// TLS can use it.
fn key_problem(key: &SubjectPublicKeyInfo<'_>) -> Option<String> {
    const ED25519: &str = "1.3.101.112";
    const CURVES: [&str; 3] = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            let modulus: Vec<_> = rsa.modulus.iter().skip_while(|byte| **byte == 0).collect();
            let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
            (!(2048..=8192).contains(&bits)).then(|| format!("RSA with {bits} bits, where 2048 to 8192 are accepted"))
        }
        Ok(PublicKey::EC(_)) => {
            let curve =
                key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok()).map(|oid| oid.to_id_string());
            let curve = curve.unwrap_or_else(|| "with explicit parameters".into());
            (!CURVES.contains(&curve.as_str()))
                .then(|| format!("elliptic curve {curve}, where P-256, P-384 and P-521 are accepted"))
        }
        _ => {
            let kind = key.algorithm.algorithm.to_id_string();
            (kind != ED25519).then(|| format!("algorithm {kind}, where RSA, ECDSA and Ed25519 are accepted"))
        }
    }
}

/// Returns a DNS name, in lower case, or an IP address of a SAN; `None` for other kinds.
fn subject_name(name: &GeneralName<'_>) -> Option<SubjectName> {
    match name {
        GeneralName::DNSName(name) => Some(SubjectName::Dns(name.to_ascii_lowercase())),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => Some(SubjectName::Ip(IpAddr::V4(Ipv4Addr::from(v4)))),
            (_, Ok(v6)) => Some(SubjectName::Ip(IpAddr::V6(Ipv6Addr::from(v6)))),
            _ => None,
        },
        _ => None,
    }
}

fn uri(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    }
}

fn email(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::RFC822Name(email) => Some((*email).to_owned()),
        _ => None,
    }
}

/// Verifies a server chain like a client: it must be signed by `ca`, for TLS servers, valid at the
/// time `at`, and for each of `names`.
pub(super) fn verify_server_chain<'a>(
    chain: &[CertificateDer<'_>],
    ca: &CertificateDer<'_>,
    at: OffsetDateTime,
    names: impl IntoIterator<Item = &'a SubjectName>,
) -> Result<(), rustls::Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    let leaf = ParsedCertificate::try_from(leaf)?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.unix_timestamp().max(0) as u64));
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&leaf, &roots, intermediates, at, algorithms)?;
    for name in names {
        verify_server_name(&leaf, &server_name(name)?)?;
    }
    Ok(())
}

/// Returns the name of a server that matches `name` in a certificate. `*` is replaced by a label.
fn server_name(name: &SubjectName) -> Result<ServerName<'static>, rustls::Error> {
    match name {
        SubjectName::Ip(address) => Ok(ServerName::from(*address)),
        SubjectName::Dns(name) => ServerName::try_from(name.replacen('*', "any", 1))
            .map_err(|_| rustls::Error::General(format!("{name:?} is no server name"))),
    }
}

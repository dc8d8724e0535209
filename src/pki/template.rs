//! The contents of each kind of certificate.
//!
//! Certificates follow the rules of browsers and platforms: names in the SAN only, an EKU, less
//! than 398 days, a start in the past, and a random serial number. rcgen would derive the serial
//! number from the key, and Firefox refuses two certificates of one issuer with the same serial
//! number.

use std::collections::BTreeSet;

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use super::constraints;
use super::error::Error;
use super::name::SubjectName;

/// The lifetime of a CA. It is long, since a new CA must be installed on every client, and clients
/// limit only the lifetime of leaves.
pub(super) const CA_LIFE: Duration = Duration::days(3650);

/// The lifetime of a server leaf.
pub(super) const SERVER_LIFE: Duration = Duration::days(90);

/// The maximum lifetime of a leaf. Browsers and Apple's platforms refuse 398 days or more.
pub(super) const MAX_LIFE: Duration = Duration::days(397);

/// The time by which the start of a certificate is backdated, for peers whose clock is slow.
pub(super) const BACKDATE: Duration = Duration::HOUR;

/// The validity of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

impl Validity {
    /// Returns the validity from [`BACKDATE`] before `now` until `life` after `now`.
    pub(super) fn starting(now: OffsetDateTime, life: Duration) -> Self {
        Self { not_before: now - BACKDATE, not_after: now + life }
    }

    /// Returns the time in the middle of the validity.
    pub(super) fn middle(self) -> OffsetDateTime {
        self.not_before + (self.not_after - self.not_before) / 2
    }

    /// Returns the part of this validity that is within that of `issuer`: some verifiers refuse
    /// other certificates.
    pub(super) fn clamped_to(self, issuer: Self) -> Self {
        Self { not_before: self.not_before.max(issuer.not_before), not_after: self.not_after.min(issuer.not_after) }
    }
}

/// Returns the parameters of a CA that signs only leaves. If `constrain` is given, it signs server
/// certificates only for these names. The CA's name contains a digest of the key, so that clients
/// can distinguish several CAs.
pub(super) fn ca_params(
    key: &KeyPair,
    constrain: Option<&BTreeSet<SubjectName>>,
    validity: Validity,
) -> Result<CertificateParams, Error> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.subject_public_key_info());
    let short = hex::encode(&digest.as_ref()[..4]);
    let mut params = base_params(&format!("loopgate CA {short}"), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.name_constraints = constrain.map(constraints::constraints_permitting);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Returns the parameters of a server leaf for `names`.
pub(super) fn server_params(names: &BTreeSet<SubjectName>, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = leaf_params("loopgate", ExtendedKeyUsagePurpose::ServerAuth, validity)?;
    for name in names {
        params.subject_alt_names.push(match name {
            SubjectName::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(Error::Issue)?),
            SubjectName::Ip(address) => SanType::IpAddress(*address),
        });
    }
    Ok(params)
}

/// Returns the parameters of a client leaf for a person, with the e-mail address `user` as its only
/// SAN. It is the common name too, by which browsers list certificates.
pub(super) fn user_params(user: &str, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = leaf_params(user, ExtendedKeyUsagePurpose::ClientAuth, validity)?;
    params.subject_alt_names.push(SanType::Rfc822Name(user.try_into().map_err(Error::Issue)?));
    Ok(params)
}

/// Returns the parameters of a client leaf with `uri`, a SPIFFE ID, as its only SAN.
pub(super) fn client_params(uri: &str, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = leaf_params("loopgate agent", ExtendedKeyUsagePurpose::ClientAuth, validity)?;
    params.subject_alt_names.push(SanType::URI(uri.try_into().map_err(Error::Issue)?));
    Ok(params)
}

/// Returns the parameters that all leaf certificates have, for one `usage` of the key.
fn leaf_params(
    common_name: &str,
    usage: ExtendedKeyUsagePurpose,
    validity: Validity,
) -> Result<CertificateParams, Error> {
    let mut params = base_params(common_name, validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Returns the parameters that all certificates have, with a new serial number.
fn base_params(common_name: &str, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(random_serial()?);
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    Ok(params)
}

/// Returns 126 random bits as a positive number of constant length (RFC 5280 section 4.1.2.2).
fn random_serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

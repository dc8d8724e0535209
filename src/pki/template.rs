//! What goes into each kind of certificate.
//!
//! Browsers' and platforms' rules are kept: a fresh random serial for each (rcgen would derive it from the key, and Firefox refuses a
//! serial it has seen from the same issuer), names in the SAN only, an EKU, fewer than 398 days, dates a little in the past.

use std::collections::BTreeSet;

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use time::{Duration, OffsetDateTime};

use super::{Error, SubjectName};

/// How long a CA lives. Clients' limits are for leaves; a new CA means a visit to every client.
pub(super) const CA_LIFE: Duration = Duration::days(3650);

/// How long a server leaf lives.
pub(super) const SERVER_LIFE: Duration = Duration::days(90);

/// The longest life of a leaf: browsers and Apple's platforms refuse 398 days and more.
pub(super) const MAX_LIFE: Duration = Duration::days(397);

/// How far a certificate's beginning lies in the past, for peers whose clock is slow.
pub(super) const BACKDATE: Duration = Duration::HOUR;

/// When a certificate begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

impl Validity {
    /// From an hour before `now` until `life` after it.
    pub(super) fn of(now: OffsetDateTime, life: Duration) -> Self {
        Self { not_before: now - BACKDATE, not_after: now + life }
    }

    /// Halfway from its beginning to its end.
    pub(super) fn middle(self) -> OffsetDateTime {
        self.not_before + (self.not_after - self.not_before) / 2
    }

    /// The part of it within `issuer`'s, since some verifiers demand that.
    pub(super) fn within(self, issuer: Self) -> Self {
        Self { not_before: self.not_before.max(issuer.not_before), not_after: self.not_after.min(issuer.not_after) }
    }
}

/// A CA that signs leaves only. Its name says which key it is, for clients that trust several.
pub(super) fn ca(key: &KeyPair, validity: Validity) -> Result<CertificateParams, Error> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.subject_public_key_info());
    let short: String = digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut params = base(&format!("loopgate CA {short}"), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A server leaf for `names`.
pub(super) fn server(names: &BTreeSet<SubjectName>, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = leaf("loopgate", ExtendedKeyUsagePurpose::ServerAuth, validity)?;
    for name in names {
        params.subject_alt_names.push(match name {
            SubjectName::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(Error::Issue)?),
            SubjectName::Ip(address) => SanType::IpAddress(*address),
        });
    }
    Ok(params)
}

/// A client leaf whose only name is `uri` (a SPIFFE ID).
pub(super) fn client(uri: &str, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = leaf("loopgate agent", ExtendedKeyUsagePurpose::ClientAuth, validity)?;
    params.subject_alt_names.push(SanType::URI(uri.try_into().map_err(Error::Issue)?));
    Ok(params)
}

fn leaf(common_name: &str, usage: ExtendedKeyUsagePurpose, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = base(common_name, validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn base(common_name: &str, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(serial()?);
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    Ok(params)
}

/// 126 random bits; positive and of constant length (RFC 5280 section 4.1.2.2).
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

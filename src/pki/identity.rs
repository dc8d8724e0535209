//! The certificate that is served.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::name::SubjectName;
use super::revocation::Revoked;

/// What the TLS listener serves. Key, chain and CA are replaced together.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    /// The chain (leaf first) and its signing key.
    pub certified_key: Arc<CertifiedKey>,
    /// loopgate's own CA, which signs agents' certificates; `None` with a provided pair and no usable state directory.
    pub ca: Option<CertificateDer<'static>>,
    /// The certificates of that CA which are no longer accepted.
    pub revoked: Arc<Revoked>,
    /// The names in the leaf.
    pub names: BTreeSet<SubjectName>,
    /// The start of the leaf's validity.
    pub not_before: OffsetDateTime,
    /// The end of the leaf's validity.
    pub not_after: OffsetDateTime,
}

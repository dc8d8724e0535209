//! The server certificate that is served.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::name::SubjectName;
use super::revocation::Revoked;

/// The certificate, key and CA that the TLS listeners use. They are replaced together.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    /// The chain (leaf first) and its signing key.
    pub certified_key: Arc<CertifiedKey>,
    /// loopgate's CA, which signs agents' certificates; `None` with the operator's pair and no
    /// usable state directory.
    pub ca: Option<CertificateDer<'static>>,
    /// The revoked certificates of this CA.
    pub revoked: Arc<Revoked>,
    /// The names in the leaf.
    pub names: BTreeSet<SubjectName>,
    /// The start of the leaf's validity.
    pub not_before: OffsetDateTime,
    /// The end of the leaf's validity.
    pub not_after: OffsetDateTime,
}

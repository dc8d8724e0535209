//! Certificates: a CA and a server leaf of loopgate's own making, or the operator's pair; published as one [`Identity`].
//!
//! Only this room and the commands around it see the CA's key. It knows nothing of connections.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

/// What the TLS listener shows at one moment: key, chain and roots change together or not at all.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The chain (leaf first) and its signing key.
    pub certified_key: Arc<CertifiedKey>,
    /// loopgate's own CA, which signs agents' certificates; `None` with the operator's own pair and no state directory.
    pub ca: Option<CertificateDer<'static>>,
    /// The names in the leaf.
    pub names: BTreeSet<SubjectName>,
    /// From when the leaf is valid.
    pub not_before: OffsetDateTime,
    /// Until when the leaf is valid.
    pub not_after: OffsetDateTime,
}

/// A subject alternative name of a server leaf (RFC 5280 section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectName {
    /// A DNS name, lower case.
    Dns(String),
    /// An IP address.
    Ip(IpAddr),
}

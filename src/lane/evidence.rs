//! What is known of a connection when its lane is decided.

use std::net::IpAddr;

/// What a connection can't forge, plus what a trusted proxy said about it.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The far end of the TCP connection.
    pub peer: IpAddr,
    /// What the peer said by the PROXY protocol.
    pub stated: Stated,
    /// The verified client certificate.
    pub certificate: Option<Certificate>,
}

/// What a connection's PROXY header says of whose it is. TLS begins after it, so whatever else comes over the connection is that client's word
/// and not the proxy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stated {
    /// The peer's own: there was no header, or a proxy speaks for itself (`LOCAL`).
    #[default]
    Own,
    /// This client's.
    Client(IpAddr),
    /// Somebody's whose address the proxy doesn't know (`UNKNOWN`, `UNSPEC`, unix sockets).
    Unknown,
}

/// A client certificate whose chain was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Who vouches for it.
    pub issuer: Issuer,
    /// Its URI subject alternative names.
    pub uris: Vec<String>,
    /// Whom it names: the SAN e-mail, else URI, else DNS name.
    pub user: Option<String>,
    /// Until when it is valid, in seconds since the Unix epoch. TLS resumption skips the verifier, so it counts here too.
    pub not_after: i64,
}

/// Who vouches for a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// loopgate's own CA, which signs agents' certificates.
    Own,
    /// A CA of `tls.client_ca`.
    Operator,
}

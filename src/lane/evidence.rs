//! What is known of a connection when its lane is decided.

use std::net::IpAddr;

/// What a connection over TLS can't forge, and the PROXY header before it.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The peer's address on the TCP connection.
    pub peer: IpAddr,
    /// The PROXY header; only a trusted proxy's counts.
    pub proxy_header: ProxyHeader,
    /// The verified client certificate.
    pub certificate: Option<Certificate>,
}

/// The client that a PROXY header names. TLS begins after the header, so that client writes everything that follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The peer itself: there was no header, or it was `LOCAL`.
    #[default]
    Local,
    /// A client with this address.
    Client(IpAddr),
    /// A client whose address the proxy doesn't know (`UNKNOWN`, `UNSPEC`, unix sockets).
    Unknown,
}

/// A client certificate whose chain was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The CA that signed it.
    pub issuer: Issuer,
    /// Its serial number, as it is encoded.
    pub serial: Vec<u8>,
    /// Its URI subject alternative names.
    pub uris: Vec<String>,
    /// The user that it names: the SAN e-mail, else URI, else DNS name. One of loopgate's own CA
    /// names a user by an e-mail address alone.
    pub user: Option<String>,
    /// The end of its validity, in seconds since the Unix epoch. TLS resumption skips the verifier,
    /// so the lane decision checks it.
    pub not_after: i64,
}

/// The CA that signed a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// loopgate's own CA, which signs the certificates of agents, and of the users of `cert issue --user`.
    Loopgate,
    /// A CA of `tls.client_ca`.
    Operator,
}

//! What is known of a connection when its lane is decided.

use std::net::IpAddr;

/// What a lane decision reads of a connection over TLS.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The peer's address on the TCP connection.
    pub peer: IpAddr,
    /// The client in the PROXY header; it counts only if the peer is a trusted proxy.
    pub proxy_header: ProxyHeader,
    /// The verified client certificate, if the client showed one.
    pub certificate: Option<Certificate>,
}

/// The client that a PROXY header names. TLS begins after the header, so this client, and not the
/// proxy, writes the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The peer itself: there was no header, or the header's command was `LOCAL`.
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
    /// The serial number: the content of the DER integer.
    pub serial: Vec<u8>,
    /// The URIs among the subject alternative names.
    pub uris: Vec<String>,
    /// The user that the certificate names: the SAN e-mail, else URI, else DNS name. In a
    /// certificate of loopgate's CA only an e-mail address names a user.
    pub user: Option<String>,
    /// The end of the validity, in seconds since the Unix epoch. The lane decision checks it, since
    /// TLS resumption skips the certificate verifier.
    pub not_after: i64,
}

/// The CA that signed a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// loopgate's own CA, which signs the certificates of agents, and those of `cert issue --user`.
    Loopgate,
    /// A CA of `tls.client_ca`.
    Operator,
}

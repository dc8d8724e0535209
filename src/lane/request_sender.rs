//! The party that writes the requests on a connection.

use std::net::IpAddr;

use super::evidence::ProxyHeader;
use super::policy::LanePolicy;
use crate::addr::canonical;

/// The party that writes the requests on a connection: its peer, or the client that a trusted proxy
/// names in a PROXY header.
pub(super) struct RequestSender {
    pub(super) ip: IpAddr,
    /// Whether the sender is a trusted proxy, so that each request may name its own client.
    pub(super) is_trusted_proxy: bool,
}

impl RequestSender {
    /// Returns the sender on a connection from `peer`.
    ///
    /// A PROXY header counts only from a trusted proxy. The client that the header names is then
    /// the sender, since TLS begins after the header and the proxy can't write requests.
    pub(super) fn new(peer: IpAddr, header: ProxyHeader, policy: &LanePolicy) -> Self {
        let is_trusted_proxy = policy.is_trusted_proxy(peer);
        match header {
            ProxyHeader::Client(client) if is_trusted_proxy => {
                let client = canonical(client);
                Self { ip: client, is_trusted_proxy: policy.is_trusted_proxy(client) }
            }
            ProxyHeader::Unknown if is_trusted_proxy => Self { ip: peer, is_trusted_proxy: false },
            _ => Self { ip: peer, is_trusted_proxy },
        }
    }
}

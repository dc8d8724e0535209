//! Access before the TLS handshake: by the peer's address, then by the client that a PROXY header
//! names.

use std::net::IpAddr;

use super::assignment::Denied;
use super::decide::basis_by_address;
use super::evidence::ProxyHeader;
use super::policy::LanePolicy;
use super::request_sender::RequestSender;
use crate::addr::canonical;
use crate::discovery::View;

/// Allows or denies the peer of a new connection, before a byte is read.
///
/// The allow and deny lists are about clients, so a trusted proxy passes, and so does a peer with
/// an agent's address.
///
/// # Errors
/// Why the connection must be closed.
pub fn check_peer_allowed(peer: IpAddr, view: &View, policy: &LanePolicy) -> Result<(), Denied> {
    let peer = canonical(peer);
    if policy.is_trusted_proxy(peer) || may_be_agent(peer, view, policy) {
        Ok(())
    } else {
        policy.check_access_lists(peer)
    }
}

/// Allows the peer of a new connection over plain HTTP, before a byte is read: only a trusted
/// proxy.
///
/// # Errors
/// The peer is not a trusted proxy.
pub fn check_plain_peer_allowed(peer: IpAddr, policy: &LanePolicy) -> Result<(), Denied> {
    if policy.is_trusted_proxy(canonical(peer)) { Ok(()) } else { Err(Denied::NotTrustedProxy) }
}

/// Returns whether a connection from `peer` could be an agent's, judged by its address alone.
pub fn may_be_agent(peer: IpAddr, view: &View, policy: &LanePolicy) -> bool {
    let peer = canonical(peer);
    !policy.is_trusted_proxy(peer)
        && (view.agents.contains_key(&peer) || basis_by_address(peer, view, policy).is_some())
}

/// Allows or denies the client that a trusted proxy's PROXY header names, before the TLS handshake.
///
/// # Errors
/// Why the connection must be closed.
pub fn check_proxied_client_allowed(peer: IpAddr, header: ProxyHeader, policy: &LanePolicy) -> Result<(), Denied> {
    let sender = RequestSender::new(canonical(peer), header, policy);
    if header == ProxyHeader::Local || sender.is_trusted_proxy { Ok(()) } else { policy.check_access_lists(sender.ip) }
}

/// Returns whether a certificate that loopgate's CA issued could make the connection an agent's or
/// name its user.
///
/// Only then is the client asked for a certificate, unless `tls.client_ca` is set: then every
/// client is asked.
pub fn issued_certificate_may_count(peer: IpAddr, header: ProxyHeader, view: &View, policy: &LanePolicy) -> bool {
    let sender = RequestSender::new(canonical(peer), header, policy);
    may_be_agent(peer, view, policy) || !sender.is_trusted_proxy && policy.accepts_issued_certificates_from(sender.ip)
}

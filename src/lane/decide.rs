//! The lane decision. Missing or doubtful evidence makes a connection external.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::HeaderValue;
use ipnet::IpNet;

use super::assignment::{AgentBasis, AgentLane, Denied, ExternalLane, Lane};
use super::evidence::{Certificate, Evidence, Issuer};
use super::forwarded_client::ForwardedClient;
use super::policy::{LanePolicy, intersect_optional_caps, scope_cap};
use super::request_sender::RequestSender;
use super::scheme::Scheme;
use super::source_address::source_address;
use crate::addr::canonical;
use crate::agent_id::{AgentId, WorkloadKind};
use crate::config::{AgentSourceKind, OwnAddresses};
use crate::discovery::{AgentKind, View};

/// Assigns a connection to a lane. `now` is in seconds since the Unix epoch.
///
/// # Errors
/// Why the connection gets no lane.
pub fn decide_lane(evidence: &Evidence, view: &View, policy: &LanePolicy, now: i64) -> Result<Lane, Denied> {
    let peer = canonical(evidence.peer);
    let sender = RequestSender::new(peer, evidence.proxy_header, policy);
    let certificate = evidence.certificate.as_ref().filter(|certificate| now < certificate.not_after);
    let external = ExternalLane {
        client: sender.ip,
        forwarded_client: ForwardedClient::address_or_placeholder(sender.ip, policy.unknown_client),
        is_trusted_proxy: sender.is_trusted_proxy,
        scheme: Scheme::Https,
        // A proxy's certificate identifies the proxy, not the client of a request.
        user: certificate
            .filter(|certificate| {
                certificate.issuer == Issuer::Operator || policy.accepts_issued_certificates_from(sender.ip)
            })
            .filter(|_| !sender.is_trusted_proxy)
            .and_then(|certificate| certificate.user.as_deref())
            .and_then(|user| HeaderValue::from_str(user).ok()),
        scopes: policy.external_scope_cap(scope_cap_of_container(peer, view, policy).as_ref()),
    };
    // A trusted proxy connects on behalf of its clients, so neither its address nor its certificate
    // makes an agent.
    if !policy.is_trusted_proxy(peer)
        && let Some(basis) = agent_basis(peer, sender.ip, certificate, view, policy)
    {
        return Ok(Lane::Agent(agent_lane(peer, basis, external, view, policy)));
    }
    if !sender.is_trusted_proxy {
        policy.check_access_lists(external.client)?;
    }
    Ok(Lane::External(external))
}

/// Assigns a connection over plain HTTP to the external lane. Only a trusted proxy may open such a
/// connection.
///
/// # Errors
/// The peer is not a trusted proxy.
pub fn decide_plain_lane(peer: IpAddr, view: &View, policy: &LanePolicy) -> Result<ExternalLane, Denied> {
    let peer = canonical(peer);
    if !policy.is_trusted_proxy(peer) {
        return Err(Denied::NotTrustedProxy);
    }
    Ok(ExternalLane {
        client: peer,
        forwarded_client: ForwardedClient::address_or_placeholder(peer, policy.unknown_client),
        is_trusted_proxy: true,
        scheme: Scheme::Http,
        user: None,
        scopes: policy.external_scope_cap(scope_cap_of_container(peer, view, policy).as_ref()),
    })
}

/// Returns what makes the peer an agent; `None` if it is not an agent.
///
/// `sender` is the address of the party that writes the requests (see [`RequestSender`]). For
/// certificates of `loopgate cert issue` it must be in `agents.certificate_from`, unless
/// `tls.client_ca` is set.
fn agent_basis(
    peer: IpAddr,
    sender: IpAddr,
    certificate: Option<&Certificate>,
    view: &View,
    policy: &LanePolicy,
) -> Option<AgentBasis> {
    if !policy.gateway_is_loopback {
        return None;
    }
    if let Some(basis) = basis_by_address(peer, view, policy) {
        return Some(basis);
    }
    let certificate = certificate?;
    match certificate.issuer {
        Issuer::Loopgate => {
            if let Some(agent) = view.agents.get(&peer)
                && agent.kind == AgentKind::Attested
                && certificate.uris.iter().any(|uri| names_agent(uri, &agent.id, &policy.trust_domain, view.source))
            {
                return Some(AgentBasis::Attested(Arc::clone(agent)));
            }
            // The list was checked before the handshake. It is checked again here, so that
            // connections are closed if a reload removes their address from
            // `agents.certificate_from`.
            if !policy.accepts_issued_certificates_from(sender) {
                return None;
            }
            let name = format!("spiffe://{}/agent/", policy.trust_domain);
            certificate.uris.iter().find(|uri| uri.starts_with(&name)).cloned().map(AgentBasis::Certificate)
        }
        Issuer::Operator => {
            certificate.uris.iter().find(|uri| policy.agent_uris.contains(uri)).cloned().map(AgentBasis::Certificate)
        }
    }
}

/// Returns what makes the peer an agent by its address alone; `None` if its address does not.
pub(super) fn basis_by_address(peer: IpAddr, view: &View, policy: &LanePolicy) -> Option<AgentBasis> {
    if is_own_address(peer, view) && policy.own_addresses == OwnAddresses::Agent {
        return Some(AgentBasis::OwnAddress);
    }
    // Connections through published ports and rootless engines come from these addresses too. So
    // they are agents only if `agents.cidrs` lists the very address, or a network inside
    // 127.0.0.0/8.
    let ambiguous_address = peer.is_loopback()
        || view.has_non_loopback_address(peer)
        || peer.is_unspecified()
        || view.bridge_gateways.contains(&peer);
    let is_specific = |net: &IpNet| {
        !ambiguous_address
            || net.prefix_len() == net.max_prefix_len()
            || (peer.is_loopback() && net.addr().is_loopback())
    };
    if policy.agent_cidrs.iter().any(|net| net.contains(&peer) && is_specific(net)) {
        return Some(AgentBasis::Cidr);
    }
    let agent = view.agents.get(&peer).filter(|agent| agent.kind == AgentKind::Address && !ambiguous_address)?;
    Some(AgentBasis::Address(Arc::clone(agent)))
}

/// Returns whether `peer` is an address of this network namespace from which only its own processes
/// connect.
///
/// In 127.0.0.0/8 only 127.0.0.1 is such an address: a service mesh connects for outside clients
/// from others, for example Istio's inbound passthrough from 127.0.0.6.
pub(super) fn is_own_address(peer: IpAddr, view: &View) -> bool {
    match peer {
        IpAddr::V4(ip) if ip.is_loopback() => ip == Ipv4Addr::LOCALHOST,
        ip => ip.is_loopback() || view.has_non_loopback_address(ip),
    }
}

/// Returns whether `uri` is the identity that loopgate's CA gives to the container, or pod, with
/// the id `id`.
pub(super) fn names_agent(uri: &str, id: &str, trust_domain: &str, source: AgentSourceKind) -> bool {
    let kind = match source {
        AgentSourceKind::Docker => WorkloadKind::Container,
        AgentSourceKind::Kubernetes => WorkloadKind::Pod,
    };
    uri.parse::<AgentId>()
        .is_ok_and(|named| named.trust_domain == trust_domain && named.kind == kind && named.workload == id)
}

/// Returns the scope cap of the container with the address `peer`; `None` means no cap.
///
/// The cap holds on both lanes, and while Docker is unreachable, so that an agent can't lose its
/// cap by becoming external. An agent without the label `loopgate.scopes` has the cap of
/// `agents.scopes`.
fn scope_cap_of_container(peer: IpAddr, view: &View, policy: &LanePolicy) -> Option<HeaderValue> {
    let agent = view.agents.get(&peer).or_else(|| view.last_known.get(&peer));
    let cap_of_agent =
        agent.and_then(|agent| agent.scopes.as_deref().map(scope_cap).or_else(|| policy.agent_scopes.clone()));
    let cap_of_address = view.caps.get(&peer);
    let cap = intersect_optional_caps(cap_of_address.map(|cap| scope_cap(&cap.scopes)), cap_of_agent.as_ref());
    // If the image may have set the label, the operator may have set none, and then `agents.scopes`
    // holds.
    let maybe_from_image = cap_of_address.is_some_and(|cap| cap.maybe_from_image);
    intersect_optional_caps(cap, policy.agent_scopes.as_ref().filter(|_| maybe_from_image))
}

/// Returns the lane of an agent: its source address, its scope cap, and the external lane for
/// requests of browser pages.
fn agent_lane(
    peer: IpAddr,
    basis: AgentBasis,
    as_external: ExternalLane,
    view: &View,
    policy: &LanePolicy,
) -> AgentLane {
    let source = match &basis {
        AgentBasis::OwnAddress => Ipv4Addr::LOCALHOST,
        AgentBasis::Cidr => source_address(peer.to_string().as_bytes(), policy.agent_sources),
        AgentBasis::Address(agent) | AgentBasis::Attested(agent) => {
            source_address(agent.id.as_bytes(), policy.agent_sources)
        }
        AgentBasis::Certificate(uri) => source_address(uri.as_bytes(), policy.agent_sources),
    };
    let scopes = match &basis {
        AgentBasis::OwnAddress => policy.agent_scopes.clone(),
        // A label `loopgate.scopes` on the container replaces `agents.scopes`.
        AgentBasis::Address(_) | AgentBasis::Attested(_) => scope_cap_of_container(peer, view, policy),
        AgentBasis::Cidr | AgentBasis::Certificate(_) => {
            intersect_optional_caps(scope_cap_of_container(peer, view, policy), policy.agent_scopes.as_ref())
        }
    };
    // An agent that discovery does not know, such as one by certificate, keeps its cap on the
    // external lane too.
    let as_external = ExternalLane { scopes: policy.external_scope_cap(scopes.as_ref()), ..as_external };
    AgentLane { source, basis, scopes, as_external }
}

#[cfg(test)]
mod tests;

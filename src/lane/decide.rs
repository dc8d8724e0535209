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
pub fn decide(evidence: &Evidence, view: &View, policy: &LanePolicy, now: i64) -> Result<Lane, Denied> {
    let peer = canonical(evidence.peer);
    let sender = RequestSender::new(peer, evidence.proxy_header, policy);
    let certificate = evidence.certificate.as_ref().filter(|certificate| now < certificate.not_after);
    let external = ExternalLane {
        client: sender.ip,
        forwarded_client: ForwardedClient::new(sender.ip, policy.unknown_client),
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
        scopes: policy.external_cap(cap_of_container(peer, view, policy).as_ref()),
    };
    // A trusted proxy connects for its clients, so nothing that it shows makes the connection an agent's.
    if !policy.is_trusted_proxy(peer)
        && let Some(basis) = agent_basis(peer, sender.ip, certificate, view, policy)
    {
        return Ok(Lane::Agent(agent_lane(peer, basis, external, view, policy)));
    }
    if !sender.is_trusted_proxy {
        policy.check_lists(external.client)?;
    }
    Ok(Lane::External(external))
}

/// Assigns a connection over plain HTTP, which a trusted proxy alone may have. There is no evidence
/// that could make it an agent's, so it is always external.
///
/// # Errors
/// The peer is no trusted proxy.
pub fn decide_plain(peer: IpAddr, view: &View, policy: &LanePolicy) -> Result<ExternalLane, Denied> {
    let peer = canonical(peer);
    if !policy.is_trusted_proxy(peer) {
        return Err(Denied::NotTrustedProxy);
    }
    Ok(ExternalLane {
        client: peer,
        forwarded_client: ForwardedClient::new(peer, policy.unknown_client),
        is_trusted_proxy: true,
        scheme: Scheme::Http,
        user: None,
        scopes: policy.external_cap(cap_of_container(peer, view, policy).as_ref()),
    })
}

/// Returns what makes the peer an agent, if anything does.
///
/// `sender` is the address that writes the requests. A certificate that counts only from
/// `agents.certificate_from` must be shown by a sender in that list.
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
            // Checked again, so that narrowing `agents.certificate_from` closes connections it had permitted.
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

/// Returns what makes the peer an agent by its address alone, if anything does.
pub(super) fn basis_by_address(peer: IpAddr, view: &View, policy: &LanePolicy) -> Option<AgentBasis> {
    if is_own_address(peer, view) && policy.own_addresses == OwnAddresses::Agent {
        return Some(AgentBasis::OwnAddress);
    }
    // Published ports and rootless engines deliver outsiders with these addresses too, so a network
    // that merely includes them does not make them agents.
    let ambiguous_address =
        peer.is_loopback() || view.is_own(peer) || peer.is_unspecified() || view.bridge_gateways.contains(&peer);
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

/// Returns whether `peer` is an address of this network namespace from which only its own processes connect.
///
/// Of 127.0.0.0/8 that is 127.0.0.1 alone: forwarders deliver outside clients from other addresses
/// of it, such as Istio's inbound passthrough from 127.0.0.6.
pub(super) fn is_own_address(peer: IpAddr, view: &View) -> bool {
    match peer {
        IpAddr::V4(ip) if ip.is_loopback() => ip == Ipv4Addr::LOCALHOST,
        ip => ip.is_loopback() || view.is_own(ip),
    }
}

/// Returns whether `uri` is the identity that loopgate's CA gives to the container, or pod, with this id.
pub(super) fn names_agent(uri: &str, id: &str, trust_domain: &str, source: AgentSourceKind) -> bool {
    let kind = match source {
        AgentSourceKind::Docker => WorkloadKind::Container,
        AgentSourceKind::Kubernetes => WorkloadKind::Pod,
    };
    uri.parse::<AgentId>()
        .is_ok_and(|named| named.trust_domain == trust_domain && named.kind == kind && named.workload == id)
}

/// Returns the scope cap of the container at `peer`. It counts on both lanes and outlasts the loss of
/// Docker, so that an agent can't shed its cap by becoming external. An agent without a label of its
/// own has the common cap.
fn cap_of_container(peer: IpAddr, view: &View, policy: &LanePolicy) -> Option<HeaderValue> {
    let agent = view.agents.get(&peer).or_else(|| view.last_known.get(&peer));
    let of_agent =
        agent.and_then(|agent| agent.scopes.as_deref().map(scope_cap).or_else(|| policy.agent_scopes.clone()));
    let of_address = view.caps.get(&peer);
    let cap = intersect_optional_caps(of_address.map(|cap| scope_cap(&cap.scopes)), of_agent.as_ref());
    // It may be an agent without a label of its own, which has the common cap.
    let in_doubt = of_address.is_some_and(|cap| cap.in_doubt);
    intersect_optional_caps(cap, policy.agent_scopes.as_ref().filter(|_| in_doubt))
}

/// Makes the agent lane of a connection.
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
        // A label on the container takes the place of the common cap.
        AgentBasis::Address(_) | AgentBasis::Attested(_) => cap_of_container(peer, view, policy),
        AgentBasis::Cidr | AgentBasis::Certificate(_) => {
            intersect_optional_caps(cap_of_container(peer, view, policy), policy.agent_scopes.as_ref())
        }
    };
    // An agent without a discovered container, such as one by certificate, takes its cap to the external lane too.
    let as_external = ExternalLane { scopes: policy.external_cap(scopes.as_ref()), ..as_external };
    AgentLane { source, basis, scopes, as_external }
}

#[cfg(test)]
mod tests;

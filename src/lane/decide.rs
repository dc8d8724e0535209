//! The lane decision: monotone, so that whatever is missing or in doubt makes a connection external.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::HeaderValue;
use ipnet::IpNet;

use super::evidence::{Certificate, Evidence, Issuer, Stated};
use super::policy::{Policy, scope_cap};
use super::source::source;
use super::{Admitted, AgentLane, Denied, ExternalLane, Lane, StatedClient};
use crate::addr::canonical;
use crate::agent_id::{AgentId, Kind};
use crate::config::{Discovery, OwnAddresses};
use crate::discovery::{Proof, View};

/// The first judgement, before a byte is read: may a connection from `peer` go on to the TLS handshake?
///
/// A trusted proxy may, since the lists are about its clients, and so may whoever has an agent's address.
///
/// # Errors
/// Why the connection must be closed.
pub fn permit(peer: IpAddr, view: &View, policy: &Policy) -> Result<(), Denied> {
    let peer = canonical(peer);
    if policy.is_trusted_proxy(peer) || may_be_agent(peer, view, policy) { Ok(()) } else { policy.listed(peer) }
}

/// Whether a connection from `peer` may turn out to be an agent's, as far as its address tells.
pub fn may_be_agent(peer: IpAddr, view: &View, policy: &Policy) -> bool {
    let peer = canonical(peer);
    !policy.is_trusted_proxy(peer) && (view.agents.contains_key(&peer) || by_address(peer, view, policy).is_some())
}

/// The second judgement, once a PROXY header was read: may the client that `stated` names go on to the TLS handshake?
///
/// # Errors
/// Why the connection must be closed.
pub fn permit_stated(peer: IpAddr, stated: Stated, policy: &Policy) -> Result<(), Denied> {
    let speaker = Speaker::of(canonical(peer), stated, policy);
    if stated == Stated::Own || speaker.is_proxy { Ok(()) } else { policy.listed(speaker.client) }
}

/// Whose word the requests on a connection are.
struct Speaker {
    client: IpAddr,
    /// Whether it's a trusted proxy, whose requests state clients of their own.
    is_proxy: bool,
}

impl Speaker {
    /// Only a trusted proxy's header is listened to, and what it says takes the proxy's place: behind one that only passes TLS on, the
    /// requests are a stranger's.
    fn of(peer: IpAddr, stated: Stated, policy: &Policy) -> Self {
        let is_proxy = policy.is_trusted_proxy(peer);
        match stated {
            Stated::Client(client) if is_proxy => {
                let client = canonical(client);
                Self { client, is_proxy: policy.is_trusted_proxy(client) }
            }
            Stated::Unknown if is_proxy => Self { client: peer, is_proxy: false },
            _ => Self { client: peer, is_proxy },
        }
    }
}

/// Puts a connection on a lane. `now` is in seconds since the Unix epoch.
///
/// # Errors
/// Why it gets none.
pub fn decide(evidence: &Evidence, view: &View, policy: &Policy, now: i64) -> Result<Lane, Denied> {
    let peer = canonical(evidence.peer);
    let speaker = Speaker::of(peer, evidence.stated, policy);
    let certificate = evidence.certificate.as_ref().filter(|certificate| now < certificate.not_after);
    let external = ExternalLane {
        client: speaker.client,
        stated: StatedClient::new(speaker.client, policy.unknown_client),
        trusted_proxy: speaker.is_proxy,
        // A proxy's certificate says who the proxy is, not whose request it brings.
        user: certificate
            .filter(|certificate| certificate.issuer == Issuer::Operator && !speaker.is_proxy)
            .and_then(|certificate| certificate.user.as_deref())
            .and_then(|user| HeaderValue::from_str(user).ok()),
    };
    // A trusted proxy's connections are others', so that nothing that is shown there makes them agents.
    if !policy.is_trusted_proxy(peer)
        && let Some(admitted) = admitted(peer, certificate, view, policy)
    {
        return Ok(Lane::Agent(agent_lane(peer, admitted, external, policy)));
    }
    if !speaker.is_proxy {
        policy.listed(external.client)?;
    }
    Ok(Lane::External(external))
}

fn admitted(peer: IpAddr, certificate: Option<&Certificate>, view: &View, policy: &Policy) -> Option<Admitted> {
    if !policy.tells_apart {
        return None;
    }
    if let Some(admitted) = by_address(peer, view, policy) {
        return Some(admitted);
    }
    let certificate = certificate?;
    match certificate.issuer {
        Issuer::Own => {
            if let Some(agent) = view.agents.get(&peer)
                && agent.proof == Proof::Attested
                && certificate
                    .uris
                    .iter()
                    .any(|uri| workload_of(uri, &policy.trust_domain, view.source).as_deref() == Some(agent.id.as_str()))
            {
                return Some(Admitted::Attested(Arc::clone(agent)));
            }
            let name = format!("spiffe://{}/agent/", policy.trust_domain);
            certificate.uris.iter().find(|uri| uri.starts_with(&name)).cloned().map(Admitted::Certificate)
        }
        Issuer::Operator => certificate.uris.iter().find(|uri| policy.uris.contains(uri)).cloned().map(Admitted::Certificate),
    }
}

/// What an address alone admits.
pub(super) fn by_address(peer: IpAddr, view: &View, policy: &Policy) -> Option<Admitted> {
    let own = peer.is_loopback() || view.is_own(peer);
    if own && policy.own_addresses == OwnAddresses::Agent {
        return Some(Admitted::OwnAddress);
    }
    // Outsiders arrive with these addresses too (published ports, rootless engines), so a network that merely includes them says nothing.
    let shared = own || peer.is_unspecified() || view.bridge_gateways.contains(&peer);
    let means_it = |net: &IpNet| !shared || net.prefix_len() == net.max_prefix_len() || (peer.is_loopback() && net.addr().is_loopback());
    if policy.cidrs.iter().any(|net| net.contains(&peer) && means_it(net)) {
        return Some(Admitted::Network);
    }
    let agent = view.agents.get(&peer).filter(|agent| agent.proof == Proof::Address && !shared)?;
    Some(Admitted::Address(Arc::clone(agent)))
}

/// Returns the id of the container, or pod, whose identity in `trust_domain` is `uri`, where `source` is what finds such agents.
pub(super) fn workload_of(uri: &str, trust_domain: &str, source: Discovery) -> Option<String> {
    let id: AgentId = uri.parse().ok()?;
    let kind = match source {
        Discovery::Docker => Kind::Container,
        Discovery::Kubernetes => Kind::Pod,
    };
    (id.trust_domain == trust_domain && id.kind == kind).then_some(id.workload)
}

fn agent_lane(peer: IpAddr, admitted: Admitted, as_external: ExternalLane, policy: &Policy) -> AgentLane {
    let source = match &admitted {
        Admitted::OwnAddress => Ipv4Addr::LOCALHOST,
        Admitted::Network => source(peer.to_string().as_bytes(), policy.sources),
        Admitted::Address(agent) | Admitted::Attested(agent) => source(agent.id.as_bytes(), policy.sources),
        Admitted::Certificate(uri) => source(uri.as_bytes(), policy.sources),
    };
    let own_cap = match &admitted {
        Admitted::Address(agent) | Admitted::Attested(agent) => agent.scopes.as_deref().map(scope_cap),
        _ => None,
    };
    let scopes = own_cap.or_else(|| policy.scopes.clone());
    AgentLane { source, admitted, scopes, as_external }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::discovery::{Agent, Interface};
    use proptest::prelude::*;

    const NOW: i64 = 1_000;

    fn agent(id: &str, proof: Proof) -> Arc<Agent> {
        Arc::new(Agent { id: id.into(), name: id.into(), project: None, service: None, proof, scopes: None })
    }

    fn view() -> View {
        let mut view = View {
            interfaces: vec![Interface { name: "eth0".into(), addresses: vec!["172.18.0.2/16".parse().unwrap()] }],
            ..View::default()
        };
        view.bridge_gateways.insert("172.18.0.1".parse().unwrap());
        view.agents.insert("172.18.0.3".parse().unwrap(), agent("aaa", Proof::Address));
        view.agents.insert("172.18.0.4".parse().unwrap(), agent("bbb", Proof::Attested));
        view
    }

    fn policy(change: impl FnOnce(&mut Config)) -> Policy {
        let mut config = Config::default();
        change(&mut config);
        Policy::new(&config)
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn from(peer: &str) -> Evidence {
        Evidence { peer: peer.parse().unwrap(), stated: Stated::Own, certificate: None }
    }

    fn own(uri: &str) -> Certificate {
        Certificate { issuer: Issuer::Own, uris: vec![uri.into()], user: None, not_after: NOW + 1 }
    }

    fn lane(evidence: &Evidence, policy: &Policy) -> String {
        match decide(evidence, &view(), policy, NOW) {
            Ok(Lane::Agent(lane)) => lane.admitted.label().into(),
            Ok(Lane::External(lane)) => format!("external {}", lane.client),
            Err(denied) => denied.label().into(),
        }
    }

    #[test]
    fn nobody_is_an_agent_to_a_gateway_that_is_not_on_loopback() {
        let remote = policy(|config| {
            config.gateway.address = "10.0.0.1:18789".parse().unwrap();
            config.agents.cidrs = nets(&["10.1.0.0/16"]);
            config.listen.own_addresses = OwnAddresses::Agent;
        });
        for peer in ["172.18.0.3", "10.1.0.1", "172.18.0.2", "127.0.0.1"] {
            assert_eq!(lane(&from(peer), &remote), format!("external {peer}"));
        }
        let attested = Evidence { certificate: Some(own("spiffe://loopgate.local/docker/p/s/bbb")), ..from("172.18.0.4") };
        assert_eq!(lane(&attested, &remote), "external 172.18.0.4");
    }

    #[test]
    fn the_lane_of_an_address() {
        let none = policy(|_| {});
        let own_agent = policy(|c| c.listen.own_addresses = OwnAddresses::Agent);
        let wide = policy(|c| c.agents.cidrs = nets(&["172.18.0.0/16", "127.0.0.0/29"]));
        let all = policy(|c| c.agents.cidrs = nets(&["0.0.0.0/0"]));
        let exact = policy(|c| c.agents.cidrs = nets(&["172.18.0.1/32", "172.18.0.2/32", "127.0.0.9/32"]));
        let deny = policy(|c| c.external.deny = nets(&["172.18.0.0/16"]));
        let allow = policy(|c| c.external.allow = nets(&["10.0.0.0/8"]));
        let proxy = policy(|c| {
            c.external.trusted_proxies = nets(&["172.18.0.3"].map(|_| "172.18.0.3/32"));
            c.agents.cidrs = nets(&["172.18.0.0/16"]);
        });
        for (peer, policy, expected) in [
            ("172.18.0.9", &none, "external 172.18.0.9"),
            ("::ffff:172.18.0.9", &none, "external 172.18.0.9"),
            ("172.18.0.3", &none, "address"),
            ("::ffff:172.18.0.3", &none, "address"),
            ("172.18.0.4", &none, "external 172.18.0.4"),
            ("172.18.0.2", &none, "external 172.18.0.2"),
            ("127.0.0.1", &none, "external 127.0.0.1"),
            ("172.18.0.2", &own_agent, "own-address"),
            ("127.0.0.1", &own_agent, "own-address"),
            ("172.18.0.9", &own_agent, "external 172.18.0.9"),
            ("172.18.0.1", &own_agent, "external 172.18.0.1"),
            ("172.18.0.9", &wide, "cidr"),
            ("172.18.0.1", &wide, "external 172.18.0.1"),
            ("172.18.0.2", &wide, "external 172.18.0.2"),
            ("127.0.0.3", &wide, "cidr"),
            ("127.0.0.1", &all, "external 127.0.0.1"),
            ("172.18.0.1", &all, "external 172.18.0.1"),
            ("8.8.8.8", &all, "cidr"),
            ("172.18.0.1", &exact, "cidr"),
            ("172.18.0.2", &exact, "cidr"),
            ("127.0.0.9", &exact, "cidr"),
            ("172.18.0.9", &deny, "deny_list"),
            ("172.18.0.3", &deny, "address"),
            ("172.18.0.9", &allow, "not_in_allow_list"),
            ("10.1.2.3", &allow, "external 10.1.2.3"),
            ("172.18.0.3", &proxy, "external 172.18.0.3"),
        ] {
            assert_eq!(lane(&from(peer), policy), expected, "{peer} {policy:?}");
        }
    }

    #[test]
    fn the_lane_of_a_certificate() {
        let policy = policy(|c| c.agents.uris = vec!["spiffe://corp/robot".into()]);
        let operator = |uri: &str| Certificate { issuer: Issuer::Operator, ..own(uri) };
        let expired = Certificate { not_after: NOW, ..own("spiffe://loopgate.local/docker/p/s/bbb") };
        for (peer, certificate, expected) in [
            ("172.18.0.4", own("spiffe://loopgate.local/docker/p/s/bbb"), "attested"),
            ("172.18.0.4", own("spiffe://loopgate.local/docker/p/s/bbbb"), "external 172.18.0.4"),
            ("172.18.0.4", own("spiffe://loopgate.local/docker/p/s/bbb/x"), "external 172.18.0.4"),
            ("172.18.0.4", own("spiffe://elsewhere/docker/p/s/bbb"), "external 172.18.0.4"),
            ("172.18.0.9", own("spiffe://loopgate.local/docker/p/s/bbb"), "external 172.18.0.9"),
            ("172.18.0.4", expired, "external 172.18.0.4"),
            ("172.18.0.4", operator("spiffe://loopgate.local/docker/p/s/bbb"), "external 172.18.0.4"),
            ("172.18.0.9", own("spiffe://loopgate.local/agent/robot"), "certificate"),
            ("172.18.0.9", operator("spiffe://loopgate.local/agent/robot"), "external 172.18.0.9"),
            ("172.18.0.9", operator("spiffe://corp/robot"), "certificate"),
            ("172.18.0.9", operator("spiffe://corp/robots"), "external 172.18.0.9"),
        ] {
            let evidence = Evidence { certificate: Some(certificate.clone()), ..from(peer) };
            assert_eq!(lane(&evidence, &policy), expected, "{peer} {certificate:?}");
        }
    }

    #[test]
    fn only_a_trusted_proxy_states_an_address() {
        let policy = policy(|c| c.external.trusted_proxies = nets(&["10.0.0.5/32"]));
        let stated = |peer: &str| Evidence { stated: Stated::Client("172.18.0.3".parse().unwrap()), ..from(peer) };
        assert_eq!(lane(&stated("10.0.0.5"), &policy), "external 172.18.0.3");
        assert_eq!(lane(&stated("10.0.0.6"), &policy), "external 10.0.0.6");
    }

    #[test]
    fn whose_word_the_requests_are() {
        let policy = policy(|c| {
            c.external.trusted_proxies = nets(&["10.0.0.5/32", "10.0.0.6/32"]);
            c.external.allow = nets(&["198.51.100.0/24"]);
        });
        let client = |ip: &str| Stated::Client(ip.parse().unwrap());
        let operator = Certificate { issuer: Issuer::Operator, uris: vec![], user: Some("ann".into()), not_after: NOW + 1 };
        for (peer, stated, expected) in [
            ("10.0.0.5", Stated::Own, Ok(("10.0.0.5", true))),
            ("10.0.0.5", Stated::Unknown, Err(Denied::NotListed)),
            ("10.0.0.5", client("198.51.100.7"), Ok(("198.51.100.7", false))),
            ("10.0.0.5", client("203.0.113.7"), Err(Denied::NotListed)),
            ("10.0.0.5", client("10.0.0.6"), Ok(("10.0.0.6", true))),
            ("10.0.0.5", client("::ffff:10.0.0.6"), Ok(("10.0.0.6", true))),
            ("198.51.100.9", Stated::Own, Ok(("198.51.100.9", false))),
            ("198.51.100.9", client("10.0.0.6"), Ok(("198.51.100.9", false))),
            ("198.51.100.9", Stated::Unknown, Ok(("198.51.100.9", false))),
        ] {
            let evidence = Evidence { stated, certificate: Some(operator.clone()), ..from(peer) };
            let decided = decide(&evidence, &view(), &policy, NOW).map(|lane| match lane {
                Lane::External(lane) => {
                    assert_eq!(lane.user.is_some(), !lane.trusted_proxy, "a proxy's certificate is no client's: {evidence:?}");
                    (lane.client.to_string(), lane.trusted_proxy)
                }
                Lane::Agent(lane) => panic!("{lane:?}"),
            });
            assert_eq!(decided, expected.map(|(client, proxy)| (client.to_owned(), proxy)), "{evidence:?}");
            assert_eq!(permit_stated(peer.parse().unwrap(), stated, &policy), expected.map(|_| ()), "{evidence:?}");
        }
    }

    #[test]
    fn whoever_may_turn_out_to_be_an_agent_gets_to_the_handshake() {
        let policy = policy(|c| c.external.deny = nets(&["0.0.0.0/0"]));
        for (peer, expected) in [("172.18.0.3", Ok(())), ("172.18.0.4", Ok(())), ("172.18.0.9", Err(Denied::Listed))] {
            assert_eq!(permit(peer.parse().unwrap(), &view(), &policy), expected, "{peer}");
        }
    }

    #[test]
    fn a_label_caps_scopes_and_beats_the_common_cap() {
        let common = policy(|c| c.agents.scopes = vec!["operator.read".into(), "operator.write".into()]);
        let mut view = view();
        let mut capped = (*agent("aaa", Proof::Address)).clone();
        for (own, expected) in [
            (None, "operator.read,operator.write"),
            (Some(vec!["operator.approvals".to_owned()]), "operator.approvals"),
            (Some(Vec::new()), ""),
            (Some(vec!["bad\nscope".to_owned()]), ""),
        ] {
            capped.scopes = own;
            view.agents.insert("172.18.0.3".parse().unwrap(), Arc::new(capped.clone()));
            let Ok(Lane::Agent(lane)) = decide(&from("172.18.0.3"), &view, &common, NOW) else { panic!("not an agent") };
            assert_eq!(lane.scopes.unwrap(), expected);
        }
    }

    #[test]
    fn a_common_cap_that_cannot_be_said_leaves_no_scope() {
        for (scopes, expected) in
            [(vec![], None), (vec!["operator.read".to_owned()], Some("operator.read")), (vec!["bad\nscope".to_owned()], Some(""))]
        {
            let common = policy(|c| c.agents.scopes = scopes);
            let Ok(Lane::Agent(lane)) = decide(&from("172.18.0.3"), &view(), &common, NOW) else { panic!("not an agent") };
            assert_eq!(lane.scopes.as_ref().map(|cap| cap.to_str().unwrap()), expected);
        }
    }

    proptest! {
        #[test]
        fn no_unlisted_source_is_ever_an_agent(peer: IpAddr, stated: Option<Option<IpAddr>>, uri in "[ -~]{0,60}", ours: bool, not_after: i64) {
            let stated = stated.map_or(Stated::Own, |client| client.map_or(Stated::Unknown, Stated::Client));
            let view = view();
            prop_assume!(!view.agents.contains_key(&canonical(peer)) && !uri.starts_with("spiffe://loopgate.local/agent/"));
            let issuer = if ours { Issuer::Own } else { Issuer::Operator };
            let certificate = Some(Certificate { issuer, uris: vec![uri.clone()], user: Some(uri), not_after });
            let decided = decide(&Evidence { peer, stated, certificate }, &view, &policy(|_| {}), NOW);
            prop_assert!(matches!(decided, Ok(Lane::External(_))));
        }
    }
}

//! Tables of evidence, with the lane that each connection gets.

use super::*;
use crate::config::Config;
use crate::discovery::{Agent, Interface, ScopeCap};
use crate::lane::{
    ProxyHeader, WhyExternal, check_peer_allowed, check_plain_peer_allowed, check_proxied_client_allowed, why_external,
};
use proptest::prelude::*;

const NOW: i64 = 1_000;

fn agent(id: &str, kind: AgentKind) -> Arc<Agent> {
    Arc::new(Agent { id: id.into(), name: id.into(), project: None, service: None, kind, scopes: None })
}

fn view() -> View {
    let mut view = View {
        interfaces: vec![Interface { name: "eth0".into(), addresses: vec!["172.18.0.2/16".parse().unwrap()] }],
        ..View::default()
    };
    view.bridge_gateways.insert("172.18.0.1".parse().unwrap());
    view.agents.insert("172.18.0.3".parse().unwrap(), agent("aaa", AgentKind::Address));
    view.agents.insert("172.18.0.4".parse().unwrap(), agent("bbb", AgentKind::Attested));
    view
}

fn policy(change: impl FnOnce(&mut Config)) -> LanePolicy {
    let mut config = Config::default();
    change(&mut config);
    LanePolicy::new(&config)
}

fn parse_nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn evidence_from(peer: &str) -> Evidence {
    Evidence { peer: peer.parse().unwrap(), proxy_header: ProxyHeader::Local, certificate: None }
}

fn loopgate_certificate(uri: &str) -> Certificate {
    Certificate { issuer: Issuer::Loopgate, serial: Vec::new(), uris: vec![uri.into()], user: None, not_after: NOW + 1 }
}

fn lane_label(evidence: &Evidence, policy: &LanePolicy) -> String {
    match decide_lane(evidence, &view(), policy, NOW) {
        Ok(Lane::Agent(lane)) => lane.basis.label().into(),
        Ok(Lane::External(lane)) => format!("external {}", lane.client),
        Err(denied) => denied.label().into(),
    }
}

#[test]
fn every_client_of_a_gateway_off_loopback_is_external() {
    let remote = policy(|config| {
        config.gateway.address = "10.0.0.1:18789".parse().unwrap();
        config.agents.cidrs = parse_nets(&["10.1.0.0/16"]);
        config.listen.own_addresses = OwnAddresses::Agent;
    });
    for peer in ["172.18.0.3", "10.1.0.1", "172.18.0.2", "127.0.0.1"] {
        assert_eq!(lane_label(&evidence_from(peer), &remote), format!("external {peer}"));
    }
    let attested = Evidence {
        certificate: Some(loopgate_certificate("spiffe://loopgate.local/docker/p/s/bbb")),
        ..evidence_from("172.18.0.4")
    };
    assert_eq!(lane_label(&attested, &remote), "external 172.18.0.4");
}

#[test]
fn over_plain_http_a_trusted_proxy_is_external_and_no_other_peer_has_a_lane() {
    let proxies = policy(|c| {
        c.external.trusted_proxies = parse_nets(&["172.18.0.3/32", "172.18.0.9/32", "127.0.0.1/32"]);
        c.agents.cidrs = parse_nets(&["172.18.0.0/16", "127.0.0.1/32"]);
        c.listen.own_addresses = OwnAddresses::Agent;
        c.external.deny = parse_nets(&["172.18.0.9/32"]);
        c.external.scopes = vec!["operator.read".into()];
    });
    for (peer, stated) in [
        ("172.18.0.9", Some("172.18.0.9")),
        ("::ffff:172.18.0.9", Some("172.18.0.9")),
        ("172.18.0.3", Some("172.18.0.3")),
        ("127.0.0.1", Some("192.0.2.1")),
        ("172.18.0.4", None),
        ("172.18.0.2", None),
        ("10.0.0.1", None),
    ] {
        let peer: IpAddr = peer.parse().unwrap();
        let allowed = check_plain_peer_allowed(peer, &proxies);
        match (decide_plain_lane(peer, &view(), &proxies), stated) {
            (Ok(lane), Some(stated)) => {
                assert_eq!((allowed, lane.client, lane.is_trusted_proxy), (Ok(()), canonical(peer), true));
                assert_eq!((lane.scheme, lane.forwarded_client.into_value()), (Scheme::Http, stated.parse().unwrap()));
                assert_eq!((lane.user, lane.scopes), (None, Some("operator.read".parse().unwrap())));
            }
            (decided, stated) => {
                assert_eq!((allowed, decided.is_err(), stated), (Err(Denied::NotTrustedProxy), true, None), "{peer}");
            }
        }
    }
    assert_eq!(check_plain_peer_allowed("172.18.0.3".parse().unwrap(), &policy(|_| {})), Err(Denied::NotTrustedProxy));
}

#[test]
fn an_address_gets_its_lane() {
    let none = policy(|_| {});
    let own_agent = policy(|c| c.listen.own_addresses = OwnAddresses::Agent);
    let wide = policy(|c| c.agents.cidrs = parse_nets(&["172.18.0.0/16", "127.0.0.0/29"]));
    let all = policy(|c| c.agents.cidrs = parse_nets(&["0.0.0.0/0"]));
    let exact = policy(|c| c.agents.cidrs = parse_nets(&["172.18.0.1/32", "172.18.0.2/32", "127.0.0.9/32"]));
    let deny = policy(|c| c.external.deny = parse_nets(&["172.18.0.0/16"]));
    let allow = policy(|c| c.external.allow = parse_nets(&["10.0.0.0/8"]));
    let proxy = policy(|c| {
        c.external.trusted_proxies = parse_nets(&["172.18.0.3/32"]);
        c.agents.cidrs = parse_nets(&["172.18.0.0/16"]);
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
        ("127.0.0.6", &own_agent, "external 127.0.0.6"),
        ("::ffff:127.0.0.2", &own_agent, "external 127.0.0.2"),
        ("::1", &own_agent, "own-address"),
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
        assert_eq!(lane_label(&evidence_from(peer), policy), expected, "{peer} {policy:?}");
    }
}

#[test]
fn a_certificate_gets_its_lane_only_from_permitted_addresses() {
    let policy = policy(|c| {
        c.agents.uris = vec!["spiffe://corp/robot".into()];
        c.agents.certificate_from = parse_nets(&["172.18.0.9/32"]);
    });
    let operator = |uri: &str| Certificate { issuer: Issuer::Operator, ..loopgate_certificate(uri) };
    let expired = Certificate { not_after: NOW, ..loopgate_certificate("spiffe://loopgate.local/docker/p/s/bbb") };
    for (peer, certificate, expected) in [
        ("172.18.0.4", loopgate_certificate("spiffe://loopgate.local/docker/p/s/bbb"), "attested"),
        ("172.18.0.4", loopgate_certificate("spiffe://loopgate.local/docker/p/s/bbbb"), "external 172.18.0.4"),
        ("172.18.0.4", loopgate_certificate("spiffe://loopgate.local/docker/p/s/bbb/x"), "external 172.18.0.4"),
        ("172.18.0.4", loopgate_certificate("spiffe://elsewhere/docker/p/s/bbb"), "external 172.18.0.4"),
        ("172.18.0.9", loopgate_certificate("spiffe://loopgate.local/docker/p/s/bbb"), "external 172.18.0.9"),
        ("172.18.0.4", expired, "external 172.18.0.4"),
        ("172.18.0.4", operator("spiffe://loopgate.local/docker/p/s/bbb"), "external 172.18.0.4"),
        ("172.18.0.9", loopgate_certificate("spiffe://loopgate.local/agent/robot"), "certificate"),
        ("172.18.0.8", loopgate_certificate("spiffe://loopgate.local/agent/robot"), "external 172.18.0.8"),
        ("172.18.0.4", loopgate_certificate("spiffe://loopgate.local/agent/robot"), "external 172.18.0.4"),
        ("172.18.0.9", operator("spiffe://loopgate.local/agent/robot"), "external 172.18.0.9"),
        ("172.18.0.9", operator("spiffe://corp/robot"), "certificate"),
        ("172.18.0.8", operator("spiffe://corp/robot"), "certificate"),
        ("172.18.0.9", operator("spiffe://corp/robots"), "external 172.18.0.9"),
    ] {
        let evidence = Evidence { certificate: Some(certificate.clone()), ..evidence_from(peer) };
        assert_eq!(lane_label(&evidence, &policy), expected, "{peer} {certificate:?}");
    }
    // With `tls.client_ca` every client is asked for a certificate.
    let asking_all = self::policy(|c| c.tls.client_ca = Some("ca.pem".into()));
    let evidence = Evidence {
        certificate: Some(loopgate_certificate("spiffe://loopgate.local/agent/robot")),
        ..evidence_from("172.18.0.8")
    };
    assert_eq!(lane_label(&evidence, &asking_all), "certificate");
}

#[test]
fn a_user_of_loopgates_ca_is_named_if_clients_are_asked_and_is_never_an_agent() {
    let user = Certificate { uris: Vec::new(), user: Some("ann@example.com".into()), ..loopgate_certificate("") };
    let asked = policy(|c| c.agents.certificate_from = parse_nets(&["172.18.0.9/32"]));
    let asking_all = policy(|c| c.tls.client_ca = Some("ca.pem".into()));
    let proxy = policy(|c| {
        c.tls.client_ca = Some("ca.pem".into());
        c.external.trusted_proxies = parse_nets(&["172.18.0.9/32"]);
    });
    for (peer, policy, not_after, named) in [
        ("172.18.0.9", &asked, NOW + 1, true),
        ("172.18.0.8", &asked, NOW + 1, false),
        ("172.18.0.8", &asking_all, NOW + 1, true),
        ("172.18.0.4", &asking_all, NOW + 1, true),
        ("172.18.0.8", &asking_all, NOW, false),
        ("172.18.0.9", &proxy, NOW + 1, false),
    ] {
        let evidence = Evidence { certificate: Some(Certificate { not_after, ..user.clone() }), ..evidence_from(peer) };
        match decide_lane(&evidence, &view(), policy, NOW) {
            Ok(Lane::External(lane)) => assert_eq!(lane.user.is_some(), named, "{peer} {policy:?}"),
            other => panic!("{peer} {other:?}"),
        }
    }
}

#[test]
fn only_a_trusted_proxy_states_an_address() {
    let policy = policy(|c| c.external.trusted_proxies = parse_nets(&["10.0.0.5/32"]));
    let stated = |peer: &str| Evidence {
        proxy_header: ProxyHeader::Client("172.18.0.3".parse().unwrap()),
        ..evidence_from(peer)
    };
    assert_eq!(lane_label(&stated("10.0.0.5"), &policy), "external 172.18.0.3");
    assert_eq!(lane_label(&stated("10.0.0.6"), &policy), "external 10.0.0.6");
}

#[test]
fn a_proxy_header_of_a_trusted_proxy_replaces_the_sender_of_requests() {
    let policy = policy(|c| {
        c.external.trusted_proxies = parse_nets(&["10.0.0.5/32", "10.0.0.6/32"]);
        c.external.allow = parse_nets(&["198.51.100.0/24"]);
    });
    let client = |ip: &str| ProxyHeader::Client(ip.parse().unwrap());
    let operator = Certificate {
        issuer: Issuer::Operator,
        serial: Vec::new(),
        uris: vec![],
        user: Some("ann".into()),
        not_after: NOW + 1,
    };
    for (peer, proxy_header, expected) in [
        ("10.0.0.5", ProxyHeader::Local, Ok(("10.0.0.5", true))),
        ("10.0.0.5", ProxyHeader::Unknown, Err(Denied::NotInAllowList)),
        ("10.0.0.5", client("198.51.100.7"), Ok(("198.51.100.7", false))),
        ("10.0.0.5", client("203.0.113.7"), Err(Denied::NotInAllowList)),
        ("10.0.0.5", client("10.0.0.6"), Ok(("10.0.0.6", true))),
        ("10.0.0.5", client("::ffff:10.0.0.6"), Ok(("10.0.0.6", true))),
        ("198.51.100.9", ProxyHeader::Local, Ok(("198.51.100.9", false))),
        ("198.51.100.9", client("10.0.0.6"), Ok(("198.51.100.9", false))),
        ("198.51.100.9", ProxyHeader::Unknown, Ok(("198.51.100.9", false))),
    ] {
        let evidence = Evidence { proxy_header, certificate: Some(operator.clone()), ..evidence_from(peer) };
        let decided = decide_lane(&evidence, &view(), &policy, NOW).map(|lane| match lane {
            Lane::External(lane) => {
                assert_eq!(
                    lane.user.is_some(),
                    !lane.is_trusted_proxy,
                    "a proxy's certificate names no client: {evidence:?}"
                );
                (lane.client.to_string(), lane.is_trusted_proxy)
            }
            Lane::Agent(lane) => panic!("{lane:?}"),
        });
        assert_eq!(decided, expected.map(|(client, proxy)| (client.to_owned(), proxy)), "{evidence:?}");
        assert_eq!(
            check_proxied_client_allowed(peer.parse().unwrap(), proxy_header, &policy),
            expected.map(|_| ()),
            "{evidence:?}"
        );
    }
}

#[test]
fn a_possible_agent_is_allowed_the_handshake_in_spite_of_the_deny_list() {
    let policy = policy(|c| c.external.deny = parse_nets(&["0.0.0.0/0"]));
    for (peer, expected) in [("172.18.0.3", Ok(())), ("172.18.0.4", Ok(())), ("172.18.0.9", Err(Denied::InDenyList))] {
        assert_eq!(check_peer_allowed(peer.parse().unwrap(), &view(), &policy), expected, "{peer}");
    }
}

#[test]
fn a_label_caps_scopes_and_beats_the_common_cap() {
    let common = policy(|c| c.agents.scopes = vec!["operator.read".into(), "operator.write".into()]);
    let mut view = view();
    let mut capped = (*agent("aaa", AgentKind::Address)).clone();
    for (own, expected) in [
        (None, "operator.read,operator.write"),
        (Some(vec!["operator.approvals".to_owned()]), "operator.approvals"),
        (Some(Vec::new()), ""),
        (Some(vec!["bad\nscope".to_owned()]), ""),
    ] {
        capped.scopes = own;
        view.agents.insert("172.18.0.3".parse().unwrap(), Arc::new(capped.clone()));
        let Ok(Lane::Agent(lane)) = decide_lane(&evidence_from("172.18.0.3"), &view, &common, NOW) else {
            panic!("not an agent")
        };
        assert_eq!(lane.scopes.unwrap(), expected);
    }
}

#[test]
fn a_cap_follows_its_container_to_the_external_lane() {
    let mut view = view();
    let capped =
        |id: &str, kind| Arc::new(Agent { scopes: Some(vec!["operator.read".into()]), ..(*agent(id, kind)).clone() });
    view.agents.insert("172.18.0.3".parse().unwrap(), capped("aaa", AgentKind::Address));
    view.agents.insert("172.18.0.4".parse().unwrap(), capped("bbb", AgentKind::Attested));
    // As if Docker were unreachable: this container is not an agent at present.
    view.last_known.insert("172.18.0.5".parse().unwrap(), capped("ccc", AgentKind::Address));
    let scopes = |list: &[&str]| list.iter().map(|scope| (*scope).to_owned()).collect::<Vec<_>>();
    let free = policy(|_| {});
    let ceiling = policy(|c| c.external.scopes = scopes(&["operator.read", "operator.write"]));
    let other = policy(|c| c.external.scopes = scopes(&["operator.write"]));
    let common = policy(|c| c.agents.scopes = scopes(&["operator.write"]));
    for (peer, policy, expected) in [
        ("172.18.0.3", &free, Some("operator.read")),
        ("172.18.0.4", &free, Some("operator.read")),
        ("172.18.0.5", &free, Some("operator.read")),
        ("172.18.0.9", &free, None),
        ("172.18.0.3", &ceiling, Some("operator.read")),
        ("172.18.0.9", &ceiling, Some("operator.read,operator.write")),
        ("172.18.0.4", &other, Some("")),
        ("172.18.0.9", &common, None),
    ] {
        let lane = match decide_lane(&evidence_from(peer), &view, policy, NOW).unwrap() {
            Lane::Agent(lane) => lane.as_external,
            Lane::External(lane) => lane,
        };
        assert_eq!(lane.scopes.as_ref().map(|cap| cap.to_str().unwrap()), expected, "{peer} {policy:?}");
    }
}

#[test]
fn every_basis_but_the_own_address_keeps_the_cap_of_its_container() {
    let mut view = view();
    let cap = |scopes: &[&str], maybe_from_image| ScopeCap {
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        maybe_from_image,
    };
    for peer in ["172.18.0.2", "172.18.0.3", "172.18.0.4", "172.18.0.9"] {
        view.caps.insert(peer.parse().unwrap(), cap(&["a", "b"], false));
    }
    view.agents.insert("172.18.0.5".parse().unwrap(), agent("eee", AgentKind::Address));
    view.caps.insert("172.18.0.5".parse().unwrap(), cap(&["a", "b"], true));
    let with = |common: &str, change: fn(&mut Config)| {
        policy(|c| {
            c.agents.scopes = common.split_terminator(',').map(str::to_owned).collect();
            change(c);
        })
    };
    let cidrs: fn(&mut Config) = |c| c.agents.cidrs = parse_nets(&["172.18.0.0/16"]);
    let robots: fn(&mut Config) = |c| c.agents.certificate_from = parse_nets(&["172.18.0.0/16"]);
    let own_agent: fn(&mut Config) = |c| c.listen.own_addresses = OwnAddresses::Agent;
    let robot = || Some(loopgate_certificate("spiffe://loopgate.local/agent/robot"));
    let attested = || Some(loopgate_certificate("spiffe://loopgate.local/docker/p/s/bbb"));
    for (peer, certificate, policy, basis, expected) in [
        ("172.18.0.9", None, with("", cidrs), "cidr", Some("a,b")),
        ("172.18.0.9", None, with("b,c", cidrs), "cidr", Some("b")),
        ("172.18.0.8", None, with("b,c", cidrs), "cidr", Some("b,c")),
        ("172.18.0.9", robot(), with("", robots), "certificate", Some("a,b")),
        ("172.18.0.9", robot(), with("b,c", robots), "certificate", Some("b")),
        ("172.18.0.8", robot(), with("", robots), "certificate", None),
        ("172.18.0.4", attested(), with("", |_| {}), "attested", Some("a,b")),
        ("172.18.0.3", None, with("", |_| {}), "address", Some("a,b")),
        // The image may have set the label, so the label does not replace `agents.scopes`.
        ("172.18.0.5", None, with("b,c", |_| {}), "address", Some("b")),
        ("172.18.0.2", None, with("c", own_agent), "own-address", Some("c")),
        // This container is not an agent, but has the label `loopgate.scopes`.
        ("172.18.0.9", None, with("c", |_| {}), "external", Some("a,b")),
    ] {
        let evidence = Evidence { certificate, ..evidence_from(peer) };
        let (label, lane, external) = match decide_lane(&evidence, &view, &policy, NOW).unwrap() {
            Lane::Agent(lane) => (lane.basis.label(), lane.scopes, lane.as_external.scopes),
            Lane::External(lane) => ("external", lane.scopes.clone(), lane.scopes),
        };
        let text = |cap: &Option<HeaderValue>| cap.as_ref().map(|cap| cap.to_str().unwrap().to_owned());
        assert_eq!((label, text(&lane).as_deref()), (basis, expected), "{evidence:?} {policy:?}");
        assert_eq!(text(&external).as_deref(), expected, "on the external lane: {evidence:?} {policy:?}");
    }
}

#[test]
fn a_common_cap_that_no_header_can_hold_leaves_no_scope() {
    for (scopes, expected) in [
        (vec![], None),
        (vec!["operator.read".to_owned()], Some("operator.read")),
        (vec!["bad\nscope".to_owned()], Some("")),
    ] {
        let common = policy(|c| c.agents.scopes = scopes);
        let Ok(Lane::Agent(lane)) = decide_lane(&evidence_from("172.18.0.3"), &view(), &common, NOW) else {
            panic!("not an agent")
        };
        assert_eq!(lane.scopes.as_ref().map(|cap| cap.to_str().unwrap()), expected);
    }
}

proptest! {
    #[test]
    fn no_unlisted_source_is_ever_an_agent(
        peer: IpAddr, stated: Option<Option<IpAddr>>, uri in "[ -~]{0,60}", ours: bool, not_after: i64,
    ) {
        let proxy_header = match stated {
            None => ProxyHeader::Local,
            Some(client) => client.map_or(ProxyHeader::Unknown, ProxyHeader::Client),
        };
        let view = view();
        prop_assume!(!view.agents.contains_key(&canonical(peer)) && !uri.starts_with("spiffe://loopgate.local/agent/"));
        let issuer = if ours { Issuer::Loopgate } else { Issuer::Operator };
        let (serial, uris, user) = (Vec::new(), vec![uri.clone()], Some(uri));
        let certificate = Some(Certificate { issuer, serial, uris, user, not_after });
        let decided = decide_lane(&Evidence { peer, proxy_header, certificate }, &view, &policy(|_| {}), NOW);
        prop_assert!(matches!(decided, Ok(Lane::External(_))));
    }

    /// `why_external` repeats the conditions of `decide_lane` for a peer with an agent's address.
    #[test]
    fn why_an_agents_address_is_external_agrees_with_the_decision(
        attested: bool, trusted: bool, remote: bool, ours: bool, shows: bool, expired: bool,
        id in prop::sample::select(vec!["docker/p/s/bbb", "docker/p/s/ccc", "agent/robot"]),
    ) {
        let policy = policy(|config| {
            if trusted {
                config.external.trusted_proxies = parse_nets(&["172.18.0.0/16"]);
            }
            if remote {
                config.gateway.address = "10.0.0.1:18789".parse().unwrap();
            }
        });
        let issuer = if ours { Issuer::Loopgate } else { Issuer::Operator };
        let not_after = if expired { NOW } else { NOW + 1 };
        let uri = format!("spiffe://loopgate.local/{id}");
        let certificate = Certificate { issuer, not_after, ..loopgate_certificate(&uri) };
        let peer = if attested { "172.18.0.4" } else { "172.18.0.3" };
        let evidence = Evidence { certificate: shows.then_some(certificate), ..evidence_from(peer) };
        let why = why_external(&evidence, &view(), &policy, NOW);
        let would_be_agent = matches!(why, Some(WhyExternal::ConnectedBeforeAgent { .. }));
        match decide_lane(&evidence, &view(), &policy, NOW) {
            Ok(Lane::Agent(AgentLane { basis: AgentBasis::Certificate(_), .. })) => {}
            Ok(Lane::Agent(_)) => prop_assert!(would_be_agent, "{why:?}"),
            Ok(Lane::External(_)) => prop_assert!(why.is_some() && !would_be_agent, "{why:?}"),
            Err(denied) => prop_assert!(false, "{denied:?}"),
        }
    }
}

//! The requests that the gateway receives through listeners of `listen.forward` and `listen.plain`.

use std::net::{Ipv4Addr, SocketAddr};

use http::Request;

use super::*;
use crate::config::Config;
use crate::discovery::View;
use crate::lane::forwarding::{X_FORWARDED_FOR, X_FORWARDED_PROTO};
use crate::lane::{AgentBasis, Evidence, ProxyHeader, decide_lane, decide_plain_lane};

fn rules(change: impl FnOnce(&mut Config)) -> RequestRules {
    let mut config = Config::default();
    config.agents.cidrs = vec!["172.18.0.3/32".parse().unwrap()];
    change(&mut config);
    RequestRules::new(&config)
}

fn lane_of(peer: &str, rules: &RequestRules) -> Lane {
    let evidence = Evidence { peer: peer.parse().unwrap(), proxy_header: ProxyHeader::Local, certificate: None };
    decide_lane(&evidence, &View::default(), rules.policy(), 0).unwrap()
}

#[test]
fn a_forwarded_port_has_the_same_lanes_but_gets_no_token() {
    let rules = rules(|config| config.agents.scopes = vec!["operator.read".into()]);
    let Lane::Agent(mut attested) = lane_of("172.18.0.3", &rules) else { panic!("not an agent") };
    attested.basis = AgentBasis::Certificate("spiffe://x".into());
    let (gateway, forward): (SocketAddr, SocketAddr) =
        ("127.0.0.1:18789".parse().unwrap(), "127.0.0.1:18793".parse().unwrap());
    let agent_source = attested.source;
    let agent = Lane::Agent(attested);
    let outsider = lane_of("10.0.0.9", &rules);
    for (lane, target, source, host, token) in [
        (&agent, Target::for_gateway(gateway), agent_source, "127.0.0.1:18789", Some("Bearer inherited")),
        (&agent, Target::for_port_forward(forward), agent_source, "127.0.0.1:18793", None),
        (&outsider, Target::for_gateway(gateway), Ipv4Addr::new(127, 0, 0, 2), "gw.example", None),
        (&outsider, Target::for_port_forward(forward), Ipv4Addr::new(127, 0, 0, 2), "gw.example", None),
    ] {
        let names = BTreeSet::from([SubjectName::Dns("gw.example".into())]);
        let (parts, ()) = Request::builder().uri("/").header("host", "gw.example").body(()).unwrap().into_parts();
        let inherited = HeaderValue::from_static("Bearer inherited");
        let head = GatewayHead::new(parts, lane, &rules, &target, Some(&inherited), &names).unwrap();
        assert_eq!(head.route(), GatewayRoute { source, target: target.address() });
        let headers = head.into_request(()).headers().clone();
        assert_eq!((headers[HOST].to_str().unwrap(), headers.contains_key(X_FORWARDED_FOR)), (host, lane == &outsider));
        assert_eq!(headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap()), token, "{host}");
        assert_eq!(headers.contains_key(X_OPENCLAW_SCOPES), lane == &agent, "a cap holds on every port");
    }
}

#[test]
fn the_scheme_is_the_connections_unless_a_trusted_proxy_states_another() {
    let rules = rules(|config| config.external.trusted_proxies = vec!["10.0.0.5/32".parse().unwrap()]);
    let over_tls = lane_of("10.0.0.5", &rules);
    let plain =
        Lane::External(decide_plain_lane("10.0.0.5".parse().unwrap(), &View::default(), rules.policy()).unwrap());
    for (lane, stated, expected) in [
        (&over_tls, "wss", "https"),
        (&over_tls, "ws", "http"),
        (&over_tls, "none", "https"),
        (&plain, "https", "https"),
        (&plain, "http", "http"),
        (&plain, "none", "http"),
    ] {
        let request = Request::builder().uri("/").header("host", "gw.example").header(X_FORWARDED_PROTO, stated);
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let target = Target::for_gateway("127.0.0.1:18789".parse().unwrap());
        let head = GatewayHead::new(parts, lane, &rules, &target, None, &BTreeSet::new()).unwrap();
        assert_eq!(head.into_request(()).headers()[X_FORWARDED_PROTO], expected, "{stated}");
    }
}

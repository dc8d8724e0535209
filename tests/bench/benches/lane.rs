//! The lane decision, which is made for each new connection, and for all connections when the view
//! changes.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use loopgate::config::Config;
use loopgate::discovery::{Agent, AgentKind, Interface, View};
use loopgate::lane::{Certificate, Evidence, Issuer, LanePolicy, ProxyHeader, check_peer_allowed, decide_lane};

const NOW: i64 = 1_000;

/// A network with 200 agents, every second one attested.
fn view() -> View {
    let interface = Interface { name: "eth0".into(), addresses: vec!["172.18.0.2/16".parse().expect("a network")] };
    let mut view = View { interfaces: vec![interface], ..View::default() };
    view.bridge_gateways.insert("172.18.0.1".parse().expect("an address"));
    for number in 0..200 {
        let kind = if number % 2 == 0 { AgentKind::Address } else { AgentKind::Attested };
        let id = format!("{number:064x}");
        let agent = Agent { name: id.clone(), id, project: None, service: None, kind, scopes: None };
        view.agents.insert(address(number), Arc::new(agent));
    }
    view
}

fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(172, 18, 1, number))
}

fn lane(criterion: &mut Criterion) {
    let policy = LanePolicy::new(&Config::default());
    let view = view();
    let attested = |number: u8| Certificate {
        issuer: Issuer::Loopgate,
        serial: Vec::new(),
        uris: vec![format!("spiffe://loopgate.local/docker/project/service/{number:064x}")],
        user: None,
        not_after: NOW + 1,
    };
    for (name, peer, certificate) in [
        ("external", "172.18.9.9".parse().expect("an address"), None),
        ("agent by address", address(100), None),
        ("agent by certificate", address(101), Some(attested(101))),
    ] {
        let evidence = Evidence { peer, proxy_header: ProxyHeader::Local, certificate };
        criterion.bench_function(&format!("permit, {name}"), |bencher| {
            bencher.iter(|| check_peer_allowed(black_box(peer), &view, &policy))
        });
        criterion.bench_function(&format!("decide, {name}"), |bencher| {
            bencher.iter(|| decide_lane(black_box(&evidence), &view, &policy, NOW))
        });
    }
}

criterion_group!(benches, lane);
criterion_main!(benches);

//! Assertions about how the gateway sees a lane.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use crate::fake_gateway::{FakeGateway, ReceivedRequest};

/// The source address of the external lane.
pub const EXTERNAL_SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

fn agent_sources() -> Ipv4Net {
    "127.77.0.0/16".parse().unwrap()
}

/// Fails unless `received` came by the external lane and states `client` as its client.
pub fn assert_external(received: &ReceivedRequest, client: &str) {
    assert_eq!(received.source(), EXTERNAL_SOURCE);
    assert_eq!(received.field("x-forwarded-for"), Some(client));
    assert_eq!(received.field("x-forwarded-proto"), Some("https"));
    assert_eq!(received.field("x-forwarded-host"), Some("gateway.example:18789"));
    assert_eq!(received.field("host"), Some("gateway.example:18789"));
    assert_eq!(reserved(received), ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
}

/// Fails unless `received` came to `gateway` by an agent's lane.
pub fn assert_local(received: &ReceivedRequest, gateway: &FakeGateway) {
    let IpAddr::V4(source) = received.source() else { panic!("not IPv4") };
    assert!(agent_sources().contains(&source), "{source}");
    assert_eq!(received.field("host"), Some(gateway.address.to_string().as_str()));
    assert_eq!(reserved(received), [""; 0]);
}

/// The fields of `received` that only loopgate may set, in any spelling.
fn reserved(received: &ReceivedRequest) -> Vec<String> {
    let prefixes = ["forwarded", "via", "x-forwarded", "x-real-ip", "tailscale-", "x-openclaw-"];
    let mut names: Vec<_> = received
        .field_names()
        .into_iter()
        .filter(|name| prefixes.iter().any(|prefix| name.replace('_', "-").starts_with(prefix)))
        .collect();
    names.sort();
    names
}

//! What the gateway sees of a lane.

use std::net::IpAddr;

use ipnet::Ipv4Net;

use crate::gateway::{Gateway, Heard};
use crate::house::EXTERNAL;

fn agent_sources() -> Ipv4Net {
    "127.77.0.0/16".parse().unwrap()
}

/// Fails unless `heard` is what the external lane says, about `client`.
pub fn assert_external(heard: &Heard, client: &str) {
    assert_eq!(heard.source(), EXTERNAL);
    assert_eq!(heard.field("x-forwarded-for"), Some(client));
    assert_eq!(heard.field("x-forwarded-proto"), Some("https"));
    assert_eq!(heard.field("x-forwarded-host"), Some("gateway.example:18789"));
    assert_eq!(heard.field("host"), Some("gateway.example:18789"));
    assert_eq!(reserved(heard), ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
}

/// Fails unless `heard` is what an agent's lane says to `gateway`.
pub fn assert_local(heard: &Heard, gateway: &Gateway) {
    let IpAddr::V4(source) = heard.source() else { panic!("not IPv4") };
    assert!(agent_sources().contains(&source), "{source}");
    assert_eq!(heard.field("host"), Some(gateway.address.to_string().as_str()));
    assert_eq!(reserved(heard), [""; 0]);
}

/// The names that are loopgate's to say, however they are written.
fn reserved(heard: &Heard) -> Vec<String> {
    let prefixes = ["forwarded", "via", "x-forwarded", "x-real-ip", "tailscale-", "x-openclaw-"];
    let mut names: Vec<_> =
        heard.names().into_iter().filter(|name| prefixes.iter().any(|prefix| name.replace('_', "-").starts_with(prefix))).collect();
    names.sort();
    names
}

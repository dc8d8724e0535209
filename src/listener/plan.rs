//! Which doors there should be, and what to do about it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::addr::canonical;
use crate::config::{ListenAddresses, ListenOn};
use crate::discovery::Interface;

/// What to do with the doors; see [`plan`].
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// To be closed, first: a door of `[::]` stands in the way of one of a single address.
    pub close: Vec<SocketAddr>,
    /// To be opened.
    pub open: Vec<SocketAddr>,
}

/// What makes the `open` doors the `wanted` ones.
pub fn plan(wanted: &BTreeSet<SocketAddr>, open: &BTreeSet<SocketAddr>) -> Plan {
    Plan { close: open.difference(wanted).copied().collect(), open: wanted.difference(open).copied().collect() }
}

/// The addresses to listen on, given `interfaces`, and `scope_of` the name of one (its index, for link-local addresses).
///
/// The gateway's own address is never among them, and none that an unspecified address (`[::]`, `0.0.0.0`) covers already.
pub fn wanted(listen: &[ListenOn], gateway: SocketAddr, interfaces: &[Interface], scope_of: impl Fn(&str) -> u32) -> BTreeSet<SocketAddr> {
    let mut wanted: BTreeSet<SocketAddr> = BTreeSet::new();
    for ListenOn { addresses, port } in listen {
        let own = interfaces.iter().flat_map(|interface| interface.addresses.iter().map(move |net| (interface, net.addr())));
        let matching = own.filter(|(interface, ip)| matches(addresses, interface, *ip));
        wanted.extend(matching.map(|(interface, ip)| match ip {
            IpAddr::V6(v6) if is_link_local_v6(ip) => SocketAddrV6::new(v6, *port, 0, scope_of(&interface.name)).into(),
            _ => SocketAddr::new(ip, *port),
        }));
        if let ListenAddresses::Address(exact) = addresses
            // Also where no interface shows it: 127.0.0.9 and AnyIP routes can be bound all the same.
            && !is_link_local_v6(*exact)
        {
            wanted.insert(SocketAddr::new(canonical(*exact), *port));
        }
    }
    let covering: Vec<SocketAddr> = wanted.iter().filter(|door| door.ip().is_unspecified()).copied().collect();
    wanted.retain(|door| *door != gateway && !covering.iter().any(|wide| wide != door && covers(*wide, *door)));
    wanted
}

/// Those of `listen` that no address of `interfaces` matches, be it for now or because they are misspelt.
pub fn unmatched<'a>(listen: &'a [ListenOn], interfaces: &[Interface]) -> impl Iterator<Item = &'a ListenOn> {
    let own = |addresses: &ListenAddresses| {
        interfaces.iter().any(|interface| interface.addresses.iter().any(|net| matches(addresses, interface, net.addr())))
    };
    // One that is named in full is bound whether an interface shows it or not.
    listen.iter().filter(move |on| !matches!(on.addresses, ListenAddresses::Address(ip) if !is_link_local_v6(ip)) && !own(&on.addresses))
}

/// Says whether `addresses` mean `ip` of `interface`.
fn matches(addresses: &ListenAddresses, interface: &Interface, ip: IpAddr) -> bool {
    match addresses {
        // A link-local address means something on one link only, so no client would be told it.
        ListenAddresses::Bridge => !ip.is_loopback() && !is_link_local_v6(ip),
        ListenAddresses::Interface(name) => interface.name == *name,
        ListenAddresses::Network(network) => network.contains(&ip),
        ListenAddresses::Address(exact) => canonical(*exact) == ip,
    }
}

/// The `--listen` address, if any, that would take the gateway's own.
pub fn takes_gateways_own(listen: &[ListenOn], gateway: SocketAddr) -> Option<SocketAddr> {
    listen.iter().find_map(|on| match on.addresses {
        ListenAddresses::Address(exact) => {
            let door = SocketAddr::new(canonical(exact), on.port);
            // An unspecified address takes the port of every own address, and only loopback is the gateway's for certain.
            let taken = door == gateway || (gateway.ip().is_loopback() && covers(door, gateway));
            taken.then_some(door)
        }
        _ => None,
    })
}

/// Says whether `wide` is an unspecified address that takes the port of `door` too. `[::]` is dual-stack.
fn covers(wide: SocketAddr, door: SocketAddr) -> bool {
    wide.ip().is_unspecified() && wide.port() == door.port() && (wide.is_ipv6() || door.is_ipv4())
}

fn is_link_local_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if Ipv6Addr::is_unicast_link_local(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "127.0.0.1:18789";

    fn interfaces() -> Vec<Interface> {
        let interface = |name: &str, addresses: &[&str]| Interface {
            name: name.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        vec![
            interface("eth0", &["172.18.0.5/16", "fd00::5/64", "fe80::5/64"]),
            interface("eth1", &["10.0.0.5/24"]),
            interface("lo", &["127.0.0.1/8", "::1/128"]),
        ]
    }

    fn on(addresses: &str, port: u16) -> ListenOn {
        let addresses = match addresses {
            "bridge" => ListenAddresses::Bridge,
            other => match (other.parse(), other.parse()) {
                (Ok(address), _) => ListenAddresses::Address(address),
                (_, Ok(network)) => ListenAddresses::Network(network),
                _ => ListenAddresses::Interface(other.into()),
            },
        };
        ListenOn { addresses, port }
    }

    fn set(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_wanted() {
        type Listen = &'static [(&'static str, u16)];
        let table: &[(Listen, &[&str])] = &[
            (&[("bridge", 18789)], &["172.18.0.5:18789", "[fd00::5]:18789", "10.0.0.5:18789"]),
            (&[("eth0", 443)], &["172.18.0.5:443", "[fd00::5]:443", "[fe80::5%7]:443"]),
            (&[("eth9", 443)], &[]),
            (&[("lo", 18789)], &["[::1]:18789"]),
            (&[("lo", 443)], &["127.0.0.1:443", "[::1]:443"]),
            (&[("172.16.0.0/12", 443)], &["172.18.0.5:443"]),
            (&[("192.168.0.0/16", 443)], &[]),
            (&[("fe80::/10", 443)], &["[fe80::5%7]:443"]),
            (&[("fe80::5", 443)], &["[fe80::5%7]:443"]),
            (&[("10.0.0.5", 443)], &["10.0.0.5:443"]),
            (&[("10.0.0.9", 443)], &["10.0.0.9:443"]),
            (&[("127.0.0.9", 0)], &["127.0.0.9:0"]),
            (&[("::ffff:10.0.0.5", 443)], &["10.0.0.5:443"]),
            (&[("::", 443), ("bridge", 443)], &["[::]:443"]),
            (&[("::", 443), ("0.0.0.0", 443)], &["[::]:443"]),
            (&[("::", 443), ("10.0.0.5", 444)], &["[::]:443", "10.0.0.5:444"]),
            (&[("0.0.0.0", 443), ("bridge", 443)], &["0.0.0.0:443", "[fd00::5]:443"]),
            (&[("bridge", 443), ("eth1", 443), ("eth1", 444)], &["172.18.0.5:443", "[fd00::5]:443", "10.0.0.5:443", "10.0.0.5:444"]),
        ];
        for (listen, expected) in table {
            let listen: Vec<ListenOn> = listen.iter().map(|(addresses, port)| on(addresses, *port)).collect();
            assert_eq!(wanted(&listen, GATEWAY.parse().unwrap(), &interfaces(), |_| 7), set(expected), "{listen:?}");
        }
    }

    #[test]
    fn what_matches_nothing_is_named() {
        let named =
            |listen: &[ListenOn], interfaces: &[Interface]| unmatched(listen, interfaces).map(ToString::to_string).collect::<Vec<_>>();
        let listen = ["bridge", "eth0", "nope0", "10.0.0.0/8", "192.168.0.0/16", "fd01::/64", "127.0.0.9", "::", "fe80::9", "fe80::5"]
            .map(|addresses| on(addresses, 443));
        assert_eq!(named(&listen, &interfaces()), ["nope0:443", "192.168.0.0/16:443", "[fd01::/64]:443", "[fe80::9]:443"]);
        assert_eq!(named(&listen[..1], &interfaces()[2..]), ["bridge:443"]);
    }

    #[test]
    fn what_is_done_about_it() {
        let plan = plan(&set(&["10.0.0.5:443", "10.0.0.6:443"]), &set(&["10.0.0.4:443", "10.0.0.5:443"]));
        assert_eq!(plan.close, ["10.0.0.4:443".parse().unwrap()]);
        assert_eq!(plan.open, ["10.0.0.6:443".parse().unwrap()]);
    }

    #[test]
    fn the_gateways_own_address_is_not_ours_to_take() {
        let table = [
            ("127.0.0.1", 18789, GATEWAY, true),
            ("::ffff:127.0.0.1", 18789, GATEWAY, true),
            ("0.0.0.0", 18789, GATEWAY, true),
            ("::", 18789, GATEWAY, true),
            ("127.0.0.2", 18789, GATEWAY, false),
            ("127.0.0.1", 443, GATEWAY, false),
            ("::", 443, GATEWAY, false),
            ("127.0.0.1", 0, GATEWAY, false),
            ("0.0.0.0", 18789, "[::1]:18789", false),
            ("::", 18789, "[::1]:18789", true),
            ("::", 18789, "10.0.0.9:18789", false),
            ("bridge", 18789, GATEWAY, false),
        ];
        for (address, port, gateway, taken) in table {
            let found = takes_gateways_own(&[on(address, port)], gateway.parse().unwrap());
            assert_eq!(found.is_some(), taken, "{address}:{port} before {gateway}");
        }
    }
}

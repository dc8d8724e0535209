//! Decides on which addresses to listen. Pure functions.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::kind::{ListenerAddress, ListenerKind};
use crate::addr::canonical;
use crate::config::{Listen, ListenAddresses, ListenOn};
use crate::discovery::Interface;

/// The listeners to close and to open.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The listeners to close, before any is opened: an open one on `[::]` would prevent one on a
    /// single address.
    pub close: Vec<ListenerAddress>,
    /// The listeners to open.
    pub open: Vec<ListenerAddress>,
}

/// Returns the steps from the `open` listeners to the `wanted` ones.
pub fn plan_changes(wanted: &BTreeSet<ListenerAddress>, open: &BTreeSet<ListenerAddress>) -> Plan {
    Plan { close: open.difference(wanted).copied().collect(), open: wanted.difference(open).copied().collect() }
}

/// Returns the kind and the values of each option that asks for listeners.
fn listener_options(listen: &Listen) -> impl Iterator<Item = (ListenerKind, Cow<'_, [ListenOn]>)> {
    let to_gateway = [(ListenerKind::Tls, Cow::from(&listen.on)), (ListenerKind::Plain, Cow::from(&listen.plain))];
    let forwards = listen.forward.iter().map(|forward| {
        let with_port = |value: &ListenOn| ListenOn { addresses: value.addresses.clone(), port: forward.port };
        (ListenerKind::PortForward(*forward), listen.on.iter().map(with_port).collect())
    });
    to_gateway.into_iter().chain(forwards)
}

/// Returns the addresses that no listener may take: the gateway's, and the targets of port
/// forwards.
fn reserved_addresses(listen: &Listen, gateway: SocketAddr) -> Vec<SocketAddr> {
    let targets = listen.forward.iter().map(|forward| SocketAddr::new(gateway.ip(), forward.target));
    std::iter::once(gateway).chain(targets).collect()
}

/// Returns the listeners that all options ask for; see [`wanted_addresses`].
pub fn wanted_listeners(
    listen: &Listen,
    gateway: SocketAddr,
    interfaces: &[Interface],
    scope_of: impl Fn(&str) -> u32,
) -> BTreeSet<ListenerAddress> {
    let reserved = reserved_addresses(listen, gateway);
    let listeners_of = |(kind, values): (_, Cow<'_, [ListenOn]>)| {
        let addresses = wanted_addresses(&values, &reserved, interfaces, &scope_of);
        addresses.into_iter().map(move |address| ListenerAddress { address, kind })
    };
    listener_options(listen).flat_map(listeners_of).collect()
}

/// Returns the addresses that the values in `listen` ask for. They do not include `reserved` ones,
/// nor those that an unspecified address in the result (`[::]`, `0.0.0.0`) covers.
///
/// `scope_of` returns the index of the interface with a name, for link-local addresses.
pub fn wanted_addresses(
    listen: &[ListenOn],
    reserved: &[SocketAddr],
    interfaces: &[Interface],
    scope_of: impl Fn(&str) -> u32,
) -> BTreeSet<SocketAddr> {
    let mut wanted: BTreeSet<SocketAddr> = BTreeSet::new();
    for ListenOn { addresses, port } in listen {
        let local =
            interfaces.iter().flat_map(|interface| interface.addresses.iter().map(move |net| (interface, net.addr())));
        let matching = local.filter(|(interface, ip)| includes_address(addresses, interface, *ip));
        wanted.extend(matching.map(|(interface, ip)| match ip {
            IpAddr::V6(v6) if is_link_local_v6(ip) => SocketAddrV6::new(v6, *port, 0, scope_of(&interface.name)).into(),
            _ => SocketAddr::new(ip, *port),
        }));
        if let ListenAddresses::Address(exact) = addresses
            // Added even if no interface has it: 127.0.0.9 and addresses of AnyIP routes can be
            // bound too.
            && !is_link_local_v6(*exact)
        {
            wanted.insert(SocketAddr::new(canonical(*exact), *port));
        }
    }
    let covering: Vec<SocketAddr> = wanted.iter().filter(|address| address.ip().is_unspecified()).copied().collect();
    wanted.retain(|address| {
        !reserved.contains(address) && !covering.iter().any(|wide| wide != address && takes_port_of(*wide, *address))
    });
    wanted
}

/// Returns the values of `listen.on` and `listen.plain` that match no address of `interfaces`: one
/// may appear later, or a value is mistyped. An exact address needs no match.
pub fn find_unmatched_values<'a>(
    listen: &'a Listen,
    interfaces: &[Interface],
) -> impl Iterator<Item = (ListenerKind, &'a ListenOn)> {
    let tls = unmatched_values(&listen.on, interfaces).map(|value| (ListenerKind::Tls, value));
    tls.chain(unmatched_values(&listen.plain, interfaces).map(|value| (ListenerKind::Plain, value)))
}

/// Returns the values of one option that are not exact addresses and match none of `interfaces`.
fn unmatched_values<'a>(listen: &'a [ListenOn], interfaces: &[Interface]) -> impl Iterator<Item = &'a ListenOn> {
    let match_an_interface = |addresses: &ListenAddresses| {
        interfaces
            .iter()
            .any(|interface| interface.addresses.iter().any(|net| includes_address(addresses, interface, net.addr())))
    };
    // An exact address is bound even if no interface has it.
    listen.iter().filter(move |value| {
        !matches!(value.addresses, ListenAddresses::Address(ip) if !is_link_local_v6(ip))
            && !match_an_interface(&value.addresses)
    })
}

/// Returns whether `addresses` include `ip` of `interface`.
fn includes_address(addresses: &ListenAddresses, interface: &Interface, ip: IpAddr) -> bool {
    match addresses {
        // Clients do not use link-local addresses: they are valid on one link only.
        ListenAddresses::Bridge => !ip.is_loopback() && !is_link_local_v6(ip),
        ListenAddresses::Interface(name) => interface.name == *name,
        ListenAddresses::Network(network) => network.contains(&ip),
        ListenAddresses::Address(exact) => canonical(*exact) == ip,
    }
}

/// Returns whether an option names the address of `listener` exactly.
pub fn is_named_exactly(listen: &Listen, listener: &ListenerAddress) -> bool {
    let names_listener = |value: &ListenOn| {
        value.exact_address().is_some_and(|ip| canonical(ip) == listener.address.ip())
            && value.port == listener.address.port()
    };
    listener_options(listen).any(|(kind, values)| kind == listener.kind && values.iter().any(names_listener))
}

/// Returns the first listener that would take the gateway's address or the target of a port
/// forward, and the address that it would take.
pub fn find_conflict(listen: &Listen, gateway: SocketAddr) -> Option<(ListenerAddress, SocketAddr)> {
    let reserved = reserved_addresses(listen, gateway);
    let conflict_of = |(kind, values): (_, Cow<'_, [ListenOn]>)| {
        let conflict_with = |taken: &SocketAddr| {
            taken_address(&values, *taken).map(|address| (ListenerAddress { address, kind }, *taken))
        };
        reserved.iter().find_map(conflict_with)
    };
    listener_options(listen).find_map(conflict_of)
}

/// Returns the first exact address of `listen` that would take `reserved`: the gateway's address,
/// or the target of a forward.
fn taken_address(listen: &[ListenOn], reserved: SocketAddr) -> Option<SocketAddr> {
    listen.iter().find_map(|value| match value.addresses {
        ListenAddresses::Address(exact) => {
            let address = SocketAddr::new(canonical(exact), value.port);
            // An unspecified address takes the port on every local address. Only a gateway on
            // loopback is certainly local.
            let taken = address == reserved || (reserved.ip().is_loopback() && takes_port_of(address, reserved));
            taken.then_some(address)
        }
        _ => None,
    })
}

/// Returns whether `wide` is an unspecified address that takes the port of `address` too. `[::]` is
/// dual-stack.
fn takes_port_of(wide: SocketAddr, address: SocketAddr) -> bool {
    wide.ip().is_unspecified() && wide.port() == address.port() && (wide.is_ipv6() || address.is_ipv4())
}

fn is_link_local_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if Ipv6Addr::is_unicast_link_local(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, PortForward};

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

    fn listen_on(addresses: &str, port: u16) -> ListenOn {
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

    fn address_set(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn wanted_addresses_follow_the_listen_values() {
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
            (
                &[("bridge", 443), ("eth1", 443), ("eth1", 444)],
                &["172.18.0.5:443", "[fd00::5]:443", "10.0.0.5:443", "10.0.0.5:444"],
            ),
        ];
        for (listen, expected) in table {
            let listen: Vec<ListenOn> = listen.iter().map(|(addresses, port)| listen_on(addresses, *port)).collect();
            assert_eq!(
                wanted_addresses(&listen, &[GATEWAY.parse().unwrap()], &interfaces(), |_| 7),
                address_set(expected),
                "{listen:?}"
            );
        }
    }

    #[test]
    fn each_option_has_listeners_of_its_kind() {
        let mut listen = Config::default().listen;
        listen.on = vec![listen_on("eth1", 443), listen_on("10.0.0.9", 0), listen_on("eth7", 1)];
        listen.plain = vec![listen_on("10.0.0.9", 0), listen_on("eth8", 1)];
        let found = wanted_listeners(&listen, GATEWAY.parse().unwrap(), &interfaces(), |_| 7);
        let found: Vec<_> = found.iter().map(|found| (found.address.to_string(), found.kind.option_key())).collect();
        let expected = [("10.0.0.5:443", "listen.on"), ("10.0.0.9:0", "listen.on"), ("10.0.0.9:0", "listen.plain")];
        assert_eq!(found, expected.map(|(address, key)| (address.to_owned(), key)));
        let missing: Vec<_> = find_unmatched_values(&listen, &interfaces())
            .map(|(kind, on)| (kind.option_key(), on.to_string()))
            .collect();
        assert_eq!(missing, [("listen.on", "eth7:1".to_owned()), ("listen.plain", "eth8:1".to_owned())]);
    }

    #[test]
    fn a_forward_has_the_addresses_of_listen_on_and_takes_no_target_of_a_forward() {
        let mut listen = Config::default().listen;
        listen.on = vec![listen_on("eth1", 443), listen_on("lo", 443), listen_on("10.0.0.9", 1)];
        listen.forward = vec![PortForward { port: 18793, target: 18793 }, PortForward { port: 444, target: 443 }];
        let gateway = GATEWAY.parse().unwrap();
        let found = wanted_listeners(&listen, gateway, &interfaces(), |_| 7);
        let of = |kind| {
            let of_it = found.iter().filter(|found| found.kind == kind);
            of_it.map(|found| found.address.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(ListenerKind::Tls), ["10.0.0.5:443", "10.0.0.9:1", "[::1]:443"]);
        assert_eq!(
            of(ListenerKind::PortForward(listen.forward[0])),
            ["10.0.0.5:18793", "10.0.0.9:18793", "[::1]:18793"]
        );
        let both = ["10.0.0.5:444", "10.0.0.9:444", "127.0.0.1:444", "[::1]:444"];
        let mut second = of(ListenerKind::PortForward(listen.forward[1]));
        second.sort();
        assert_eq!(second, both);
        assert_eq!(find_conflict(&listen, gateway), None);
        listen.on.push(listen_on("127.0.0.1", 1));
        let (listener, taken) = find_conflict(&listen, gateway).unwrap();
        assert_eq!(listener, ListenerAddress { address: taken, kind: ListenerKind::PortForward(listen.forward[0]) });
        assert_eq!(taken, "127.0.0.1:18793".parse().unwrap());
    }

    #[test]
    fn listen_values_without_a_matching_address_are_reported() {
        let named = |listen: &[ListenOn], interfaces: &[Interface]| {
            unmatched_values(listen, interfaces).map(ToString::to_string).collect::<Vec<_>>()
        };
        let listen = [
            "bridge",
            "eth0",
            "nope0",
            "10.0.0.0/8",
            "192.168.0.0/16",
            "fd01::/64",
            "127.0.0.9",
            "::",
            "fe80::9",
            "fe80::5",
        ]
        .map(|addresses| listen_on(addresses, 443));
        assert_eq!(
            named(&listen, &interfaces()),
            ["nope0:443", "192.168.0.0/16:443", "[fd01::/64]:443", "[fe80::9]:443"]
        );
        assert_eq!(named(&listen[..1], &interfaces()[2..]), ["bridge:443"]);
    }

    #[test]
    fn the_plan_closes_and_opens_only_what_differs() {
        let of = |kind| move |address: &str| ListenerAddress { address: address.parse().unwrap(), kind };
        let (tls, plain) = (of(ListenerKind::Tls), of(ListenerKind::Plain));
        let wanted = [tls("10.0.0.5:443"), tls("10.0.0.6:443"), plain("10.0.0.7:443")];
        let open = [tls("10.0.0.4:443"), tls("10.0.0.5:443"), tls("10.0.0.7:443")];
        let plan = plan_changes(&wanted.into(), &open.into());
        assert_eq!(plan.close, [tls("10.0.0.4:443"), tls("10.0.0.7:443")]);
        assert_eq!(plan.open, [tls("10.0.0.6:443"), plain("10.0.0.7:443")]);
    }

    #[test]
    fn a_listen_address_that_takes_the_gateways_is_found() {
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
            let mut listen = Config::default().listen;
            listen.plain = vec![listen_on(address, port)];
            let found = find_conflict(&listen, gateway.parse().unwrap());
            assert_eq!(found.is_some(), taken, "{address}:{port} before {gateway}");
            assert!(found.is_none_or(|(listener, _)| listener.kind == ListenerKind::Plain));
        }
    }
}

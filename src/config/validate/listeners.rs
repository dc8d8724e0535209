//! Finds options that ask to listen on an address and port that the gateway, the admin listener or
//! another option needs, and forwards that lead to one of these.

use std::net::{IpAddr, SocketAddr};

use crate::config::settings::{Config, ListenAddresses, ListenOn, PortForward};

/// Two options that contradict each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The flags of the two options.
    pub flags: [&'static str; 2],
    /// The message for the user.
    pub message: String,
}

/// The addresses and the port on which one value of an option asks to listen.
struct RequestedListener {
    /// The flag of the option.
    flag: &'static str,
    /// The value as text, for messages.
    value: String,
    on: ListenOn,
    /// Values of one group may overlap: the listener serves them alike.
    group: usize,
}

impl RequestedListener {
    fn new(flag: &'static str, value: &impl ToString, on: &ListenOn, group: usize) -> Self {
        Self { flag, value: value.to_string(), on: on.clone(), group }
    }
}

/// Returns every fault of the options `listen`, `listen-plain` and `forward`, without duplicates.
pub(super) fn find_faults(config: &Config) -> Vec<Fault> {
    let listen = &config.listen;
    let tls = listen.on.iter().map(|value| RequestedListener::new("listen", value, value, 0));
    let plain = listen.plain.iter().map(|value| RequestedListener::new("listen-plain", value, value, 1));
    let forwards = listen.forward.iter().enumerate().flat_map(|(index, forward)| {
        let with_port = |value: &ListenOn| ListenOn { addresses: value.addresses.clone(), port: forward.port };
        listen.on.iter().map(move |value| RequestedListener::new("forward", forward, &with_port(value), 2 + index))
    });
    let requested: Vec<RequestedListener> = tls.chain(plain).chain(forwards).collect();
    let reserved = requested
        .iter()
        .filter_map(|requested| reserved_address_fault(requested, config.gateway.address, config.admin));
    let targets = listen.forward.iter().filter_map(|forward| {
        forbidden_target(*forward, config, &requested)
            .map(|(flag, message)| Fault { flags: ["forward", flag], message })
    });
    let pairs = requested
        .iter()
        .enumerate()
        .flat_map(|(index, first)| requested[index + 1..].iter().map(move |next| (first, next)));
    let mut faults: Vec<Fault> = Vec::new();
    for fault in reserved.chain(targets).chain(pairs.filter_map(|(first, next)| collision_fault(first, next))) {
        // One port forward has an entry in `requested` for each value of `listen.on`, so its faults
        // may repeat.
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    faults
}

/// Returns the fault of a listener on exactly the address and port of the gateway or the admin
/// listener.
fn reserved_address_fault(
    requested: &RequestedListener,
    gateway: SocketAddr,
    admin: Option<SocketAddr>,
) -> Option<Fault> {
    let RequestedListener { flag, on, .. } = requested;
    let address = SocketAddr::new(on.exact_address()?, on.port);
    if address == gateway {
        let message = "the sidecar can't listen on the gateway's own address".into();
        return Some(Fault { flags: [flag, "gateway"], message });
    }
    let message = "the admin listener needs its own address and port".into();
    (admin == Some(address) && on.port != 0).then_some(Fault { flags: ["admin", flag], message })
}

/// Returns why a port forward may not lead to its target, and the flag of the option that forbids
/// it.
///
/// A port forward to the gateway's own port could bypass the rules for that port. A port forward to
/// one of loopgate's own listeners would let clients connect to it from a loopback address.
fn forbidden_target(
    forward: PortForward,
    config: &Config,
    requested: &[RequestedListener],
) -> Option<(&'static str, String)> {
    let gateway = config.gateway.address;
    let target = SocketAddr::new(gateway.ip(), forward.target);
    if target == gateway {
        return Some(("gateway", format!("{forward} leads to the gateway's own port, which --listen carries")));
    }
    if config.admin.is_some_and(|admin| admin.port() == forward.target) {
        return Some(("admin", format!("{forward} leads to the admin listener, which is for the operator")));
    }
    let address = ListenAddresses::Address(target.ip());
    let may_take_target = |listener: &&RequestedListener| {
        listener.on.port == target.port() && may_overlap(&listener.on.addresses, &address)
    };
    let RequestedListener { flag, value: listen_value, .. } = requested.iter().find(may_take_target)?;
    Some((flag, format!("{forward} leads to a port that loopgate itself listens on ({listen_value} of --{flag})")))
}

/// Returns the fault of two values that may ask for the same address and port. The addresses of the
/// namespace are not known yet, so two values are refused unless they differ whatever the addresses
/// are.
fn collision_fault(first: &RequestedListener, next: &RequestedListener) -> Option<Fault> {
    let same_port = first.on.port == next.on.port && first.on.port != 0;
    let collide = first.group != next.group && same_port && may_overlap(&first.on.addresses, &next.on.addresses);
    let message = || {
        format!(
            "{} of --{} could take the address and port of {} (--{}): give each a port of its own",
            next.value, next.flag, first.value, first.flag
        )
    };
    collide.then(|| Fault { flags: [next.flag, first.flag], message: message() })
}

/// Returns whether one address could match both `first` and `next`.
fn may_overlap(first: &ListenAddresses, next: &ListenAddresses) -> bool {
    use ListenAddresses::{Address, Bridge, Interface, Network};
    match (first, next) {
        (Address(first), Address(next)) => {
            first == next || accepts_connections_to(*first, *next) || accepts_connections_to(*next, *first)
        }
        (Address(ip), Network(network)) | (Network(network), Address(ip)) => {
            network.contains(ip) || accepts_connections_to(*ip, network.addr())
        }
        (Address(ip), Bridge) | (Bridge, Address(ip)) => !ip.is_loopback(),
        (Address(ip), Interface(name)) | (Interface(name), Address(ip)) => !ip.is_loopback() || name == "lo",
        (Network(network), Bridge) | (Bridge, Network(network)) => !network.addr().is_loopback(),
        (Network(first), Network(next)) => first.contains(next) || next.contains(first),
        (Interface(first), Interface(next)) => first == next,
        _ => true,
    }
}

/// Returns whether `wide` is an unspecified address, and a listener on it accepts connections to
/// `ip`. `[::]` accepts IPv4 as well.
fn accepts_connections_to(wide: IpAddr, ip: IpAddr) -> bool {
    wide.is_unspecified() && (wide.is_ipv6() || ip.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::{listen_on, port_forward};

    #[test]
    fn listeners_that_may_take_the_same_address_are_found() {
        let table = [
            ("bridge:1", "bridge:2", false),
            ("bridge:1", "bridge:1", true),
            ("bridge:0", "bridge:0", false),
            ("bridge:1", "10.0.0.5:1", true),
            ("bridge:1", "0.0.0.0:1", true),
            ("bridge:1", "127.0.0.1:1", false),
            ("bridge:1", "127.0.0.0/8:1", false),
            ("bridge:1", "10.0.0.0/8:1", true),
            ("bridge:1", "eth0:1", true),
            ("eth0:1", "eth0:1", true),
            ("eth0:1", "eth1:1", false),
            ("eth0:1", "10.0.0.5:1", true),
            ("eth0:1", "127.0.0.5:1", false),
            ("lo:1", "127.0.0.5:1", true),
            ("10.0.0.0/8:1", "10.1.0.0/16:1", true),
            ("10.0.0.0/8:1", "11.0.0.0/8:1", false),
            ("10.0.0.0/8:1", "10.0.0.5:1", true),
            ("10.0.0.0/8:1", "11.0.0.5:1", false),
            ("10.0.0.0/8:1", "0.0.0.0:1", true),
            ("[fd00::/8]:1", "0.0.0.0:1", false),
            ("[fd00::/8]:1", "[::]:1", true),
            ("10.0.0.5:1", "10.0.0.5:1", true),
            ("10.0.0.5:1", "10.0.0.6:1", false),
            ("10.0.0.5:1", "0.0.0.0:1", true),
            ("10.0.0.5:1", "[::]:1", true),
            ("[fd00::5]:1", "0.0.0.0:1", false),
        ];
        for (tls, plain, collides) in table {
            for (tls, plain) in [(tls, plain), (plain, tls)] {
                let mut config = Config::default();
                config.listen.on = vec![listen_on(tls).unwrap()];
                config.listen.plain = vec![listen_on(plain).unwrap()];
                let found = find_faults(&config);
                assert_eq!(found.len(), usize::from(collides), "{tls} {plain}: {found:?}");
                for fault in found {
                    assert_eq!(fault.flags, ["listen-plain", "listen"]);
                    assert!(fault.message.contains(tls) && fault.message.contains(plain), "{fault:?}");
                }
            }
        }
    }
    #[test]
    fn forwards_that_collide_or_lead_astray_are_found() {
        let table: [(&str, &[&str], Option<&str>); 14] = [
            ("bridge:18443", &["18793", "18792", "3334"], None),
            ("bridge:18443", &["18443:18793"], Some("listen")),
            ("bridge:18443", &["28793:18443"], None),
            ("[::]:18443", &["28793:18443"], Some("leads to a port that loopgate itself listens on ([::]:18443")),
            (
                "[::]:18443",
                &["18793"],
                Some("18793 leads to a port that loopgate itself listens on (18793 of --forward)"),
            ),
            ("127.0.0.1:18443", &["28793:18793"], None),
            ("127.0.0.1:18443", &["28793:18793", "18793:3334"], Some("(18793:3334 of --forward)")),
            ("bridge:18443", &["18789"], Some("the gateway's own port")),
            ("bridge:18443", &["28789:18789"], Some("the gateway's own port")),
            ("bridge:18443", &["9180"], Some("the admin listener")),
            ("bridge:18443", &["1", "1"], Some("1 of --forward could take the address and port of 1 (--forward)")),
            ("bridge:18443", &["1", "1:2"], Some("1:2 of --forward could take the address and port of 1 (--forward)")),
            ("bridge:18443", &["0:1", "0:2"], None),
            ("bridge:18443", &["8080:1"], Some("8080:1 of --forward could take the address and port of bridge:8080")),
        ];
        for (listen, forwards, found) in table {
            let mut config = Config::default();
            config.listen.on = vec![listen_on(listen).unwrap(), listen_on("eth7:444").unwrap()];
            config.listen.plain = vec![listen_on("bridge:8080").unwrap()];
            config.listen.forward = forwards.iter().map(|value| port_forward(value).unwrap()).collect();
            let faults = find_faults(&config);
            assert_eq!(faults.is_empty(), found.is_none(), "{listen} {forwards:?}: {faults:?}");
            let text = format!("{faults:?}");
            assert!(found.is_none_or(|found| text.contains(found)), "{listen} {forwards:?}: {text}");
        }
    }
}

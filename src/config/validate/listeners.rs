//! Finds listeners that would take an address and port from the gateway, from the admin listener or from each other.

use std::net::{IpAddr, SocketAddr};

use crate::config::settings::{Config, ListenAddresses, ListenOn};

/// A fault in where to listen.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The flags of the options that cause it.
    pub flags: [&'static str; 2],
    /// What is wrong.
    pub what: String,
}

/// Where an option asks to listen.
struct Wanted<'a> {
    flag: &'static str,
    on: &'a ListenOn,
}

/// Returns every fault in where `config` listens.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let listen = &config.listen;
    let tls = listen.on.iter().map(|on| Wanted { flag: "listen", on });
    let plain = listen.plain.iter().map(|on| Wanted { flag: "listen-plain", on });
    let wanted: Vec<Wanted<'_>> = tls.chain(plain).collect();
    let alone = wanted.iter().filter_map(|wanted| taken(wanted, config.gateway.address, config.admin));
    let pairs =
        wanted.iter().enumerate().flat_map(|(at, first)| wanted[at + 1..].iter().map(move |next| (first, next)));
    alone.chain(pairs.filter_map(|(first, next)| collision(first, next))).collect()
}

/// Returns the fault of a listener that takes the gateway's or the admin listener's own address.
fn taken(wanted: &Wanted<'_>, gateway: SocketAddr, admin: Option<SocketAddr>) -> Option<Fault> {
    let Wanted { flag, on } = wanted;
    let address = SocketAddr::new(on.exact()?, on.port);
    if address == gateway {
        let what = "the sidecar can't listen on the gateway's own address".into();
        return Some(Fault { flags: [flag, "gateway"], what });
    }
    let what = "the admin listener needs its own address and port".into();
    (admin == Some(address) && on.port != 0).then_some(Fault { flags: ["admin", flag], what })
}

/// Returns the fault of two options that may ask for the same address and port. Which addresses
/// there are is not known yet, so what is not certainly different is refused.
fn collision(first: &Wanted<'_>, next: &Wanted<'_>) -> Option<Fault> {
    let same_port = first.on.port == next.on.port && first.on.port != 0;
    let collide = first.flag != next.flag && same_port && may_overlap(&first.on.addresses, &next.on.addresses);
    let what = || {
        let (first_flag, next_flag) = (first.flag, next.flag);
        format!(
            "{} of --{next_flag} could take the address and port of {} (--{first_flag}): give each a port of its own",
            next.on, first.on
        )
    };
    collide.then(|| Fault { flags: [next.flag, first.flag], what: what() })
}

/// Returns whether an address could belong to both.
fn may_overlap(first: &ListenAddresses, next: &ListenAddresses) -> bool {
    use ListenAddresses::{Address, Bridge, Interface, Network};
    match (first, next) {
        (Address(first), Address(next)) => first == next || covers(*first, *next) || covers(*next, *first),
        (Address(ip), Network(network)) | (Network(network), Address(ip)) => {
            network.contains(ip) || covers(*ip, network.addr())
        }
        (Address(ip), Bridge) | (Bridge, Address(ip)) => !ip.is_loopback(),
        (Network(network), Bridge) | (Bridge, Network(network)) => !network.addr().is_loopback(),
        (Network(first), Network(next)) => first.contains(next) || next.contains(first),
        (Interface(first), Interface(next)) => first == next,
        _ => true,
    }
}

/// Returns whether `wide` is an unspecified address that includes `ip`. `[::]` is dual-stack.
fn covers(wide: IpAddr, ip: IpAddr) -> bool {
    wide.is_unspecified() && (wide.is_ipv6() || ip.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::listen_on;

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
                let found = faults(&config);
                assert_eq!(found.len(), usize::from(collides), "{tls} {plain}: {found:?}");
                for fault in found {
                    assert_eq!(fault.flags, ["listen-plain", "listen"]);
                    assert!(fault.what.contains(tls) && fault.what.contains(plain), "{fault:?}");
                }
            }
        }
    }
}

//! The addresses at which clients reach the listeners, for the names of the certificate.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::plan;
use crate::config::ListenOn;
use crate::discovery::View;

/// Returns the addresses at which clients reach this sidecar: all that it listens on, including a
/// loopback address that `listen` names. Other addresses are left out, since each new name changes
/// the leaf certificate, and clients may have pinned its fingerprint.
pub fn reachable_addresses(listen: &[ListenOn], gateway: SocketAddr, view: &View) -> BTreeSet<IpAddr> {
    // A link-local address needs a zone, which URLs can't have.
    let is_usable = |ip: &IpAddr| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let listening = plan::wanted_addresses(listen, &[gateway], &view.interfaces, |_| 0);
    let covered = |ip: &IpAddr| {
        listening.iter().any(|on| on.ip() == *ip || (on.ip().is_unspecified() && (on.is_ipv6() || ip.is_ipv4())))
    };
    let named = listening.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
    view.non_loopback_addresses().filter(covered).chain(named).filter(is_usable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ListenAddresses;
    use crate::discovery::Interface;

    #[test]
    fn only_the_addresses_of_listeners_are_reachable() {
        let interface = |name: &str, addresses: &[&str]| Interface {
            name: name.into(),
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        };
        let interfaces = vec![
            interface("lo", &["127.0.0.1/8", "::1/128"]),
            interface("eth0", &["10.0.0.5/24", "fd00::5/64", "fe80::5/64"]),
            interface("br-1", &["172.18.0.1/16"]),
        ];
        let view = View { interfaces, ..View::default() };
        let all = vec!["10.0.0.5", "172.18.0.1", "fd00::5"];
        for (listen, expected) in [
            (ListenAddresses::Bridge, all.clone()),
            (ListenAddresses::Interface("eth0".into()), vec!["10.0.0.5", "fd00::5"]),
            (ListenAddresses::Network("10.0.0.0/8".parse().unwrap()), vec!["10.0.0.5"]),
            (ListenAddresses::Address("127.0.0.9".parse().unwrap()), vec!["127.0.0.9"]),
            (ListenAddresses::Address("::".parse().unwrap()), all),
            (ListenAddresses::Address("0.0.0.0".parse().unwrap()), vec!["10.0.0.5", "172.18.0.1"]),
        ] {
            let on = [ListenOn { addresses: listen, port: 18443 }];
            let found = reachable_addresses(&on, "127.0.0.1:18789".parse().unwrap(), &view);
            assert_eq!(found, expected.iter().map(|ip| ip.parse().unwrap()).collect(), "{on:?}");
        }
    }
}

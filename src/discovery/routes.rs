//! Reads the gateways of this namespace's routes from the kernel (proc_pid_net(5)). On a
//! container's network the gateway is the bridge, so the bridge's address is known without Docker.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use crate::addr::parse_kernel_address;

/// The flags `RTF_UP` and `RTF_GATEWAY` of `<linux/route.h>`.
const VIA_GATEWAY: u32 = 0x1 | 0x2;

/// Returns the gateways of all routes that are up, the default route included.
///
/// # Errors
/// The kernel's lists can't be read.
pub(super) fn read_gateways() -> io::Result<BTreeSet<IpAddr>> {
    // `thread-self` instead of `self`, since tests run threads in other network namespaces.
    let (v4, v6) =
        (read_if_exists("/proc/thread-self/net/route")?, read_if_exists("/proc/thread-self/net/ipv6_route")?);
    Ok(v4.lines().filter_map(gateway_v4).chain(v6.lines().filter_map(gateway_v6).map(IpAddr::V6)).collect())
}

/// Reads the file at `path`; empty if it does not exist, for example because the kernel has no
/// IPv6.
fn read_if_exists(path: &str) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result,
    }
}

/// Returns the gateway in a line of `net/route`; `None` if the route has none.
///
/// The fields are interface, destination, gateway, flags and others.
fn gateway_v4(line: &str) -> Option<IpAddr> {
    let mut fields = line.split_ascii_whitespace().skip(2);
    let (gateway, flags) = (fields.next()?, fields.next()?);
    if is_via_gateway(flags) { parse_kernel_address(gateway) } else { None }
}

/// Returns the gateway in a line of `net/ipv6_route`; `None` if the route has none.
///
/// The gateway is the fifth field, and the flags are the last but one. Addresses are in network
/// byte order.
fn gateway_v6(line: &str) -> Option<Ipv6Addr> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, _, _, _, gateway, _, _, _, flags, _] = fields[..] else { return None };
    let gateway = u128::from_str_radix(gateway, 16).ok().filter(|_| gateway.len() == 32)?;
    is_via_gateway(flags).then(|| Ipv6Addr::from(gateway))
}

/// Returns whether a route with these flags, in hexadecimal, is up and leads to a gateway.
fn is_via_gateway(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & VIA_GATEWAY == VIA_GATEWAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_gateway_of_an_ipv4_route_is_read() {
        for (line, expected) in [
            ("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT", None),
            ("eth0\t00000000\t01091EAC\t0003\t0\t0\t0\t00000000\t0\t0\t0", Some("172.30.9.1")),
            ("eth0\t00091EAC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0", None),
            ("eth1\t0000A8C0\tFE0512AC\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0", Some("172.18.5.254")),
            ("eth0\t00000000\t01091EAC\t0002\t0\t0\t0\t00000000\t0\t0\t0", None),
            ("eth0\t00000000\t01091EAC", None),
            ("", None),
        ] {
            let expected = expected.map(|ip| ip.parse::<IpAddr>().unwrap());
            assert_eq!(gateway_v4(line), expected, "{line:?}");
        }
    }

    #[test]
    fn the_gateway_of_an_ipv6_route_is_read() {
        let none = "00000000000000000000000000000000";
        let default = |gateway: &str, flags: &str| {
            format!("{none} 00 {none} 00 {gateway} 00000400 00000001 00000000 {flags} eth0")
        };
        for (line, expected) in [
            (default("fd000000000000000000000000000001", "00000003"), Some("fd00::1")),
            (default("fe800000000000000000000000000001", "00450003"), Some("fe80::1")),
            (default(none, "00000001"), None),
            (default(none, "00200200"), None),
            (default("fd00", "00000003"), None),
            ("fd00".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(gateway_v6(&line), expected.map(|ip: &str| ip.parse().unwrap()), "{line:?}");
        }
    }
}

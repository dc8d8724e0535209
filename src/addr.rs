//! IP addresses in canonical form: an IPv4-mapped IPv6 address becomes the IPv4 address, so that
//! two spellings of one address compare equal.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Returns the canonical form of `ip`: an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) as
/// the IPv4 address.
pub fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// Returns the key by which the limits per client count the client at `ip`: the IPv4 address, or
/// the /64 of an IPv6 address, because one host can use all addresses of a /64 (RFC 4291 section
/// 2.5.1).
pub fn address_or_v6_prefix(ip: IpAddr) -> IpAddr {
    match canonical(ip) {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip => ip,
    }
}

/// Returns whether `ip` is loopback or unspecified, or an IPv6 form of such an IPv4 address:
/// mapped, compatible (`::127.0.0.1`, RFC 4291 section 2.5.5.1) or translated
/// (`64:ff9b::127.0.0.1`, RFC 6052).
///
/// loopgate never states such an address to the gateway, which would treat the client as local.
pub fn is_loopback_or_unspecified(ip: IpAddr) -> bool {
    let ip = match canonical(ip) {
        IpAddr::V6(ip) if ip.is_loopback() => return true,
        IpAddr::V6(ip) if matches!(ip.segments()[..6], [0, 0, 0, 0, 0, 0] | [0x64, 0xff9b, 0, 0, 0, 0]) => {
            let [.., high, low] = ip.segments();
            IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        ip => ip,
    };
    ip.is_loopback() || ip.is_unspecified()
}

/// Parses an address as the kernel writes it in `/proc/net/tcp`, `/proc/net/tcp6` and
/// `/proc/net/route` (proc_pid_net(5)): one or four 32-bit numbers in hexadecimal, in the machine's
/// byte order. Returns it in canonical form, or `None` if `digits` is malformed.
pub fn parse_kernel_address(digits: &str) -> Option<IpAddr> {
    let words = digits.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).ok().filter(|word| word.len() == 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    match bytes.len() {
        4 => Some(IpAddr::V4(<[u8; 4]>::try_from(bytes).ok()?.into())),
        16 => Some(canonical(IpAddr::V6(<[u8; 16]>::try_from(bytes).ok()?.into()))),
        _ => None,
    }
}

/// The address of a downstream connection's peer, in canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(SocketAddr);

impl PeerAddr {
    /// Converts the address that the socket or a PROXY header states.
    pub fn new(addr: SocketAddr) -> Self {
        Self(SocketAddr::new(canonical(addr.ip()), addr.port()))
    }

    /// Returns the IP address, in canonical form.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }

    /// Returns the TCP port.
    pub fn port(self) -> u16 {
        self.0.port()
    }
}

impl From<SocketAddr> for PeerAddr {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr)
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_count_a_64_of_ipv6_as_one_client() {
        for (ip, expected) in [
            ("10.0.0.7", "10.0.0.7"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("fd00:1:2:3:4:5:6:7", "fd00:1:2:3::"),
            ("fd00::1", "fd00::"),
        ] {
            assert_eq!(address_or_v6_prefix(ip.parse().unwrap()), expected.parse::<IpAddr>().unwrap(), "{ip}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let peer = PeerAddr::new("[::ffff:172.18.0.3]:5000".parse().unwrap());
        assert_eq!(peer.to_string(), "172.18.0.3:5000");
    }

    #[test]
    fn loopback_and_unspecified_addresses() {
        for ip in
            ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "::127.0.0.1", "64:ff9b::127.0.0.1"]
        {
            assert!(is_loopback_or_unspecified(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["172.18.0.3", "192.0.2.1", "fd00::1", "::2.0.0.0", "64:ff9b::192.0.2.1", "2001:db8::7f00:1"] {
            assert!(!is_loopback_or_unspecified(ip.parse().unwrap()), "{ip}");
        }
    }
}

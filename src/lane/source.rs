//! The loopback address that an agent has to the gateway.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// An address of `sources` for the agent `key`: always the same one, so that nothing needs to be remembered.
///
/// Two agents may share an address, which merely makes them share the gateway's budget for unauthenticated sockets.
pub(super) fn source(key: &[u8], sources: Ipv4Net) -> Ipv4Addr {
    // FNV-1a: spread evenly, and the same in every build.
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let size = 1_u64 << (32 - u32::from(sources.prefix_len()));
    // The first and the last address of a network are left out where it is wide enough to have others.
    let (first, usable) = if size > 2 { (1, size - 2) } else { (0, size) };
    let offset = first + (hash ^ (hash >> 32)) % usable;
    Ipv4Addr::from(u32::from(sources.network()) + u32::try_from(offset).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_agent_always_has_the_same_source_inside_the_range(key: Vec<u8>, prefix in 8_u8..=32) {
            let sources = Ipv4Net::new("127.77.0.0".parse().unwrap(), prefix).unwrap().trunc();
            let given = source(&key, sources);
            prop_assert!(sources.contains(&given) && given.is_loopback());
            prop_assert_eq!(given, source(&key, sources));
        }
    }
}

//! The loopback source address of an agent at the gateway.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Returns the address in the network `sources` for the agent identified by `key`. The address is a
/// hash of `key`, so it is always the same without being stored.
///
/// Two agents may get the same address. They then share the gateway's limit for unauthenticated
/// sockets.
pub(super) fn source_address(key: &[u8], sources: Ipv4Net) -> Ipv4Addr {
    // FNV-1a: evenly distributed, and the same in every build, unlike std's hashers.
    let hash = key
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let size = 1_u64 << (32 - u32::from(sources.prefix_len()));
    // The first and the last address are not used, unless the network has no others.
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
            let given = source_address(&key, sources);
            prop_assert!(sources.contains(&given) && given.is_loopback());
            prop_assert_eq!(given, source_address(&key, sources));
        }
    }
}

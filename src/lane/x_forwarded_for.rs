//! Reads the client's address from a trusted proxy's `X-Forwarded-For`.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use crate::addr::canonical;

/// Returns the rightmost address in all `X-Forwarded-For` fields that is not itself a trusted
/// proxy's.
///
/// The connected proxy wrote the rightmost entry. If that entry is a trusted proxy, that proxy
/// wrote the next one to the left, and so on. Entries left of the first untrusted one can be
/// forged. Returns `None` if there is no entry, or if one that must be read is not an address.
pub(super) fn client_address(headers: &HeaderMap, is_trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let lines: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
    let mut leftmost = None;
    for line in lines.iter().rev() {
        for entry in line.as_bytes().rsplit(|byte| *byte == b',') {
            let ip = parse_address(entry.trim_ascii())?;
            if !is_trusted(ip) {
                return Some(ip);
            }
            leftmost = Some(ip);
        }
    }
    // All entries are trusted proxies, so the farthest one counts as the client.
    leftmost
}

/// Parses `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`; `None`
/// for anything else.
fn parse_address(entry: &[u8]) -> Option<IpAddr> {
    // The longest form of an IPv6 address with port has 47 characters.
    let text = std::str::from_utf8(entry).ok().filter(|text| text.len() <= 64)?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = match bare {
        Some(inner) => IpAddr::V6(inner.parse().ok()?),
        None => text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip()))?,
    };
    Some(canonical(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn is_trusted(ip: IpAddr) -> bool {
        ip == IpAddr::from([10, 0, 0, 1]) || ip == IpAddr::from([10, 0, 0, 2])
    }

    fn client_in(lines: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_str(line).unwrap());
        }
        client_address(&headers, is_trusted).map(|ip| ip.to_string())
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_trusted_proxy() {
        for (lines, expected) in [
            (&[][..], None),
            (&["203.0.113.7"], Some("203.0.113.7")),
            (&["127.0.0.1, 203.0.113.7"], Some("203.0.113.7")),
            (&["203.0.113.7, 10.0.0.2"], Some("203.0.113.7")),
            (&["203.0.113.7", "10.0.0.2"], Some("203.0.113.7")),
            (&["1.1.1.1", "203.0.113.7,10.0.0.2 , 10.0.0.1"], Some("203.0.113.7")),
            (&["10.0.0.1, 10.0.0.2"], Some("10.0.0.1")),
            (&["203.0.113.7:4711"], Some("203.0.113.7")),
            (&["[2001:db8::1]:443"], Some("2001:db8::1")),
            (&["[2001:db8::1]"], Some("2001:db8::1")),
            (&["2001:db8::1"], Some("2001:db8::1")),
            (&["::ffff:203.0.113.7"], Some("203.0.113.7")),
            (&["203.0.113.7, unknown"], None),
            (&["203.0.113.7, "], None),
            (&["203.0.113.7,,10.0.0.1"], None),
            (&["[203.0.113.7]"], None),
            (&["203.0.113.7, _hidden, 10.0.0.1"], None),
        ] {
            assert_eq!(client_in(lines).as_deref(), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_gives_an_address_or_nothing(line in "[\\x20-\\x7e]{0,400}") {
            let _ = client_in(&[&line]);
        }
    }
}

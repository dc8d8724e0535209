//! Classifies a client by its address and forwarding headers, as the newest OpenClaw (2026.9) does.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use serde::{Deserialize, Serialize};

/// How the gateway classifies a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Class {
    /// A client on the gateway's own host: paired without approval.
    Local,
    /// A remote client: its pairing needs approval.
    Remote,
    /// A client of an untrusted proxy, or of one that does not state the client: 403
    /// `proxy_attribution_required`.
    Refused,
}

impl Class {
    /// Returns the class in one word.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Refused => "403",
        }
    }
}

/// Classifies a request from `peer`, where `trusted` is the only trusted proxy, and returns the
/// reason in a sentence. `Host` does not matter.
pub(super) fn classify_with_reason(peer: IpAddr, trusted: IpAddr, headers: &HeaderMap) -> (Class, String) {
    let Some(field) = headers.keys().map(http::HeaderName::as_str).find(|name| is_forwarding_header(name)) else {
        return if peer.is_loopback() {
            (Class::Local, format!("the request comes from {peer}, a loopback address, and has no forwarding headers"))
        } else {
            (Class::Remote, format!("the request comes from {peer}, which is not a loopback address"))
        };
    };
    if peer != trusted {
        return (Class::Refused, format!("the request carries {field}, but {peer} is not a trusted proxy"));
    }
    match stated_client(headers, trusted) {
        Some(client) => {
            (Class::Remote, format!("the trusted proxy at {peer} says that the request comes from {client}"))
        }
        None => (Class::Refused, format!("the trusted proxy at {peer} does not say where the request comes from")),
    }
}

/// Returns whether only a proxy sends this field.
fn is_forwarding_header(name: &str) -> bool {
    matches!(name, "forwarded" | "x-real-ip") || name.starts_with("x-forwarded-") || name.starts_with("tailscale-")
}

/// Returns the rightmost address of `X-Forwarded-For` that is neither loopback nor `trusted`;
/// `None` if an entry to the right of it is not an address.
fn stated_client(headers: &HeaderMap, trusted: IpAddr) -> Option<IpAddr> {
    let lines = headers.get_all("x-forwarded-for").iter().map(|line| line.to_str().unwrap_or_default());
    let hops: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    for hop in hops.into_iter().rev() {
        let ip = hop.parse().or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip())).ok()?.to_canonical();
        if !ip.is_loopback() && ip != trusted {
            return Some(ip);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn clients_are_judged_as_the_real_gateway_does() {
        use Class::{Local, Refused, Remote};
        let xff = "x-forwarded-for";
        for (peer, fields, expected) in [
            ("127.0.0.1", &[][..], Local),
            ("127.77.1.2", &[("host", "gateway.example.com")], Local),
            // The gateway fails open here, so no request may leave on the external lane without
            // forwarding headers.
            ("127.0.0.2", &[], Local),
            ("172.18.0.9", &[], Remote),
            ("127.0.0.1", &[(xff, "172.18.0.9")], Refused),
            ("127.0.0.1", &[("tailscale-user-login", "a@example.com")], Refused),
            ("127.0.0.1", &[("x-real-ip", "172.18.0.9")], Refused),
            ("127.0.0.2", &[(xff, "172.18.0.9")], Remote),
            ("127.0.0.2", &[(xff, "172.18.0.9, 127.0.0.1")], Remote),
            ("127.0.0.2", &[(xff, "172.18.0.9:5000")], Remote),
            ("127.0.0.2", &[(xff, "[fd00::9]:5000")], Remote),
            ("127.0.0.2", &[(xff, "127.0.0.1")], Refused),
            ("127.0.0.2", &[(xff, "::1")], Refused),
            ("127.0.0.2", &[(xff, "unknown")], Refused),
            ("127.0.0.2", &[("x-forwarded-proto", "https")], Refused),
            ("127.0.0.2", &[("forwarded", "for=172.18.0.9")], Refused),
        ] {
            let named = |(name, value): &(&str, &str)| {
                (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
            };
            let headers = fields.iter().map(named).collect();
            let (class, reason) = classify_with_reason(peer.parse().unwrap(), "127.0.0.2".parse().unwrap(), &headers);
            assert_eq!(class, expected, "{peer} {fields:?}: {reason}");
        }
    }
}

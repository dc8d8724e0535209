//! The client address in `X-Forwarded-For`.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderValue;

use crate::addr::is_loopback_or_unspecified;

/// A client's address as `X-Forwarded-For` states it: never a loopback or unspecified address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedClient(HeaderValue);

impl ForwardedClient {
    /// Returns `ip`, or the placeholder `unknown` if `ip` is loopback or unspecified, since the
    /// gateway would treat a client with such an address as local.
    pub fn address_or_placeholder(ip: IpAddr, unknown: IpAddr) -> Self {
        let ip = if is_loopback_or_unspecified(ip) { unknown } else { ip };
        // The configured placeholder could be loopback too; 192.0.2.1 is of TEST-NET-1 (RFC 5737).
        let ip = if is_loopback_or_unspecified(ip) { IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)) } else { ip };
        Self(HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("192.0.2.1")))
    }

    /// Returns the value of `X-Forwarded-For`.
    pub(super) fn into_value(self) -> HeaderValue {
        self.0
    }
}

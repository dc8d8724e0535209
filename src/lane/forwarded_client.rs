//! A client's address as the gateway gets it.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderValue;

use crate::addr::is_loopback_or_unspecified;

/// A client's address as the gateway gets it: never a loopback or unspecified one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedClient(HeaderValue);

impl ForwardedClient {
    /// States `ip`, or `unknown` if `ip` is loopback or unspecified: the gateway would treat such a client as local.
    pub fn new(ip: IpAddr, unknown: IpAddr) -> Self {
        let ip = if is_loopback_or_unspecified(ip) { unknown } else { ip };
        // The configured stand-in could be such an address too; TEST-NET-1 (RFC 5737) never is.
        let ip = if is_loopback_or_unspecified(ip) { IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)) } else { ip };
        Self(HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("192.0.2.1")))
    }

    /// Returns it as the value of `X-Forwarded-For`.
    pub(super) fn into_value(self) -> HeaderValue {
        self.0
    }
}

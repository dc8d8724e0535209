//! Where the requests of a connection go.

use std::net::{Ipv4Addr, SocketAddr};

use http::HeaderValue;

/// The port of the gateway that a listener leads to.
#[derive(Clone, Debug)]
pub struct Target {
    address: SocketAddr,
    host: HeaderValue,
    is_gateway: bool,
}

impl Target {
    /// The gateway itself.
    pub fn gateway(address: SocketAddr) -> Self {
        Self { is_gateway: true, ..Self::forward(address) }
    }

    /// Another port of its address (`listen.forward`). The rules for the gateway's own protocol, token
    /// and devices do not apply to what answers there.
    pub fn forward(address: SocketAddr) -> Self {
        let host = HeaderValue::from_str(&address.to_string()).unwrap_or(HeaderValue::from_static("127.0.0.1"));
        Self { address, host, is_gateway: false }
    }

    /// Returns whether it is the gateway itself.
    pub fn is_gateway(&self) -> bool {
        self.is_gateway
    }

    /// The address and port to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as the value of `Host`.
    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }
}

/// The two ends of a connection that carries a request to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GatewayRoute {
    /// The loopback address that it comes from.
    pub source: Ipv4Addr,
    /// The address that it goes to.
    pub target: SocketAddr,
}

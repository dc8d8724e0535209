//! The destination of a connection's requests.

use std::net::{Ipv4Addr, SocketAddr};

use http::HeaderValue;

/// The gateway's address and port to which a listener forwards requests.
#[derive(Clone, Debug)]
pub struct Target {
    address: SocketAddr,
    host: HeaderValue,
    is_gateway: bool,
}

impl Target {
    /// Returns the target of a listener for the gateway itself.
    pub fn for_gateway(address: SocketAddr) -> Self {
        Self { is_gateway: true, ..Self::for_port_forward(address) }
    }

    /// Returns the target of a listener for another port of the gateway's address
    /// (`listen.forward`). The rules for the gateway's protocol, token and devices do not apply to
    /// it.
    pub fn for_port_forward(address: SocketAddr) -> Self {
        let host = HeaderValue::from_str(&address.to_string()).unwrap_or(HeaderValue::from_static("127.0.0.1"));
        Self { address, host, is_gateway: false }
    }

    /// Returns whether the target is the gateway itself, and not a port of `listen.forward`.
    pub fn is_gateway(&self) -> bool {
        self.is_gateway
    }

    /// The address and port to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The target's address and port as the value of `Host`.
    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }
}

/// The source and destination address of a connection to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayRoute {
    /// The loopback address that loopgate binds, which the gateway sees as the client's.
    pub source: Ipv4Addr,
    /// The gateway's address and port.
    pub target: SocketAddr,
}

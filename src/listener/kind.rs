//! The kinds of listeners.

use std::net::SocketAddr;

use crate::config::PortForward;

/// The protocol of a listener's clients, and the target of their requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenerKind {
    /// TLS, to the gateway (`listen.on`).
    Tls,
    /// Plain HTTP to the gateway, for trusted proxies only (`listen.plain`).
    Plain,
    /// TLS, to another port of the gateway's address (`listen.forward`).
    PortForward(PortForward),
}

impl ListenerKind {
    /// Returns whether requests go to the gateway itself.
    pub fn leads_to_gateway(self) -> bool {
        !matches!(self, Self::PortForward(_))
    }

    /// Returns the key of the option that asks for listeners of this kind.
    pub fn option_key(self) -> &'static str {
        match self {
            Self::Tls => "listen.on",
            Self::Plain => "listen.plain",
            Self::PortForward(_) => "listen.forward",
        }
    }
}

/// The address and the kind of a listener that is open or shall be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenerAddress {
    /// The address. If a listener shall be opened with port 0, the kernel chooses the port.
    pub address: SocketAddr,
    /// The kind of the listener.
    pub kind: ListenerKind,
}

//! What a listener is for.

use std::net::SocketAddr;

use crate::config::Forward;

/// What clients of a listener speak, and where their requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenerKind {
    /// TLS, to the gateway (`listen.on`).
    Tls,
    /// Plain HTTP to the gateway, for trusted proxies only (`listen.plain`).
    Plain,
    /// TLS, to another port of the gateway's address (`listen.forward`).
    Forward(Forward),
}

impl ListenerKind {
    /// Returns whether requests go to the gateway itself.
    pub fn leads_to_gateway(self) -> bool {
        !matches!(self, Self::Forward(_))
    }

    /// The key of the option that asks for such listeners.
    pub fn key(self) -> &'static str {
        match self {
            Self::Tls => "listen.on",
            Self::Plain => "listen.plain",
            Self::Forward(_) => "listen.forward",
        }
    }
}

/// An address to listen on, or one that is listened on, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenerAddress {
    /// The address; wanted with port 0, the kernel chooses the port.
    pub address: SocketAddr,
    /// What for.
    pub kind: ListenerKind,
}

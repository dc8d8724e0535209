//! What a listener is for.

use std::net::SocketAddr;

/// What clients of a listener speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenerKind {
    /// TLS (`listen.on`).
    Tls,
    /// Plain HTTP, if they are trusted proxies (`listen.plain`).
    Plain,
}

impl ListenerKind {
    /// The key of the option that asks for such listeners.
    pub fn key(self) -> &'static str {
        match self {
            Self::Tls => "listen.on",
            Self::Plain => "listen.plain",
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

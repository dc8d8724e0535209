//! An accepted connection, with its addresses and its permit.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::kind::ListenerKind;
use super::limits::ConnectionPermit;
use crate::addr::PeerAddr;

/// An accepted connection within all limits.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, with TCP_NODELAY, keep-alive and TCP_USER_TIMEOUT set.
    pub stream: TcpStream,
    /// The remote address.
    pub peer: PeerAddr,
    /// The local address, with an IPv4-mapped IPv6 address as IPv4.
    pub local: SocketAddr,
    /// The kind of the listener that accepted it.
    pub kind: ListenerKind,
    /// Counts the connection against the limits; must be held until the connection ends.
    pub permit: ConnectionPermit,
}

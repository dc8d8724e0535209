//! The asking: requests that change nothing, from addresses that lanes have.

pub mod docker;
pub mod gateway;
mod http;
pub mod kubernetes;
mod tls;
mod websocket;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long each answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The client that probes of the external lane are for (TEST-NET-2, RFC 5737), so that nobody else is locked out for what they do.
const CLIENT: &str = "198.51.100.7";

/// A connection to `to` from the address `from`.
async fn connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    within(socket.connect(to)).await
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

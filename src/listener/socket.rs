//! A listening socket as every door needs it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;

/// How many connections the kernel holds for us while we are busy or at a limit; it takes `net.core.somaxconn` if that is less.
const BACKLOG: i32 = 4096;
/// How long a connection is silent before the peer is asked whether it lives.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// How long after one such question the next is sent.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// After how many without an answer the connection is given up.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long what we sent may stay unacknowledged, or the peer's window closed (tcp(7), `TCP_USER_TIMEOUT`).
const USER_TIMEOUT: Duration = Duration::from_secs(120);
/// How many bytes may wait unsent in the kernel (tcp(7), `TCP_NOTSENT_LOWAT`). Without a limit it holds megabytes for a slow reader and tells
/// us nothing until a third of them are gone, so that a steady reader of 16 KiB/s would pass for one that takes nothing.
const UNSENT: u32 = 256 * 1024;

/// Listens on `address`: dual-stack on `[::]`, and on IPv6 alone on any other IPv6 address.
///
/// The TCP options are set once, here: Linux hands them on to every accepted socket.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn accepted_sockets_inherit_what_finds_dead_and_slow_peers() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT);
    }
}

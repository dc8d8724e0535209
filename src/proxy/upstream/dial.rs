//! Opens TCP connections to the gateway.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use tokio::net::{TcpSocket, TcpStream};

use crate::lane::GatewayRoute;

/// Connects along `route`. If the gateway's address is not one of IPv4 loopback, the kernel chooses
/// the source address: answers of another host can't reach a loopback address.
///
/// # Errors
/// Those of socket(2), bind(2) and connect(2).
pub async fn dial(route: GatewayRoute) -> io::Result<TcpStream> {
    let GatewayRoute { source, target: gateway } = route;
    let socket = if gateway.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if matches!(gateway.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
        // With this option connect(2) chooses the source port, so that connections to different
        // destinations can share one. Without it, bind(2) reserves a port of the 28,000 that each
        // source address has. QEMU's user-mode emulation does not know the option; so many ports
        // are enough there.
        match nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true) {
            Err(Errno::ENOPROTOOPT) => {}
            set => set?,
        }
        socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    }
    socket.set_nodelay(true)?;
    socket.connect(gateway).await
}

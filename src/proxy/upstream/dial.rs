//! Opens TCP connections to the gateway.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use tokio::net::{TcpSocket, TcpStream};

use crate::lane::GatewayRoute;

/// Connects along `route`; with any source address where the gateway is not on loopback, since no packet comes back
/// from there to a loopback address.
///
/// # Errors
/// Those of socket(2), bind(2) and connect(2).
pub async fn dial(route: GatewayRoute) -> io::Result<TcpStream> {
    let GatewayRoute { source, target: gateway } = route;
    let socket = if gateway.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if matches!(gateway.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
        // Has connect(2) choose the port, when the destination is known: otherwise each source
        // address has only 28,000 of them. QEMU's user-mode emulation does not know the option; there
        // that number suffices.
        match nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true) {
            Err(Errno::ENOPROTOOPT) => {}
            set => set?,
        }
        socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    }
    socket.set_nodelay(true)?;
    socket.connect(gateway).await
}

//! Clients that request a large body and read nothing.

use std::io;
use std::time::Duration;

use tokio::net::TcpSocket;

use super::Sample;
use crate::client::head;
use crate::peer::Running;

/// The size of a client's receive buffer: small, so that a hundred clients don't fill the kernel's
/// memory.
const RECEIVE: u32 = 64 * 1024;

pub(super) async fn measure(running: &Running, count: usize) -> io::Result<Sample> {
    let tree = running.tree.as_ref().ok_or(io::ErrorKind::Unsupported)?;
    let request = head("GET", "/bytes/67108864", "");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = tree.memory()?;
    let mut stalled = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(RECEIVE)?;
        let stream = socket.connect(running.target.address).await?;
        let mut connection = running.target.shake_hands(stream).await?;
        connection.send(&request).await?;
        stalled.push(connection);
    }
    // Waits until the side uses no more CPU time.
    for _ in 0..50 {
        let cpu = tree.cpu();
        tokio::time::sleep(Duration::from_millis(200)).await;
        if tree.cpu() - cpu < Duration::from_millis(2) {
            break;
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = tree.memory()?.saturating_sub(before) as f64 / count as f64 / 1024.0;
    Ok(Sample::new(vec![("KiB each", each)], 0))
}

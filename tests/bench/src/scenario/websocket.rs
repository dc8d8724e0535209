//! Echoes over WebSockets.

use std::time::{Duration, Instant};

use super::Sample;
use super::flow::MIB;
use crate::load::drive;
use crate::peer::Running;
use crate::websocket::client_frame;

pub(super) async fn echoes(running: &Running, time: Duration, clients: usize) -> Sample {
    let target = running.target.clone();
    let window = drive(running, time, clients, move |tally| {
        let target = target.clone();
        async move {
            let frame = client_frame(256);
            let mut socket = target.connect().await?;
            socket.upgrade().await?;
            loop {
                let began = Instant::now();
                socket.echo(&frame).await?;
                tally.took(began.elapsed());
            }
        }
    })
    .await;
    Sample::new(
        vec![
            ("CPU µs/echo", window.cpu_each(1)),
            ("echoes/s", window.rate(1)),
            ("p50 µs", window.quantile(0.5)),
            ("p99 µs", window.quantile(0.99)),
        ],
        window.failed,
    )
}

/// Sends and receives at the same time, because a message is longer than all buffers on its way.
pub(super) async fn bulk(running: &Running, time: Duration, clients: usize) -> Sample {
    let target = running.target.clone();
    let window = drive(running, time, clients, move |tally| {
        let target = target.clone();
        async move {
            let frame = client_frame(MIB as usize);
            let mut socket = target.connect().await?;
            socket.upgrade().await?;
            socket.echo_for_ever(&frame, |bytes| tally.add(bytes)).await
        }
    })
    .await;
    Sample::new(vec![("CPU µs/MiB", window.cpu_each(MIB)), ("MiB/s", window.rate(MIB))], window.failed)
}

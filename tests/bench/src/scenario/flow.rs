//! Downloads, uploads and server-sent events.

use std::io;
use std::time::Duration;

use super::Sample;
use crate::client::head;
use crate::load::{Window, drive};
use crate::peer::Running;
use crate::process::monotonic;

/// The bytes of a mebibyte.
pub(super) const MIB: u64 = 1 << 20;
const BODY: u64 = 16 * MIB;
/// The number of bytes of an upload that are written at once.
const PIECE: usize = 64 * 1024;

pub(super) async fn download(running: &Running, time: Duration, clients: usize) -> Sample {
    let target = running.target.clone();
    let window = drive(running, time, clients, move |tally| {
        let target = target.clone();
        async move {
            let request = head("GET", &format!("/bytes/{BODY}"), "");
            let mut connection = target.connect().await?;
            loop {
                connection.send(&request).await?;
                let length = connection.answer(200).await?.unwrap_or(BODY);
                connection.skip(length, |bytes| tally.add(bytes)).await?;
            }
        }
    })
    .await;
    sample(&window)
}

pub(super) async fn upload(running: &Running, time: Duration, clients: usize) -> Sample {
    let target = running.target.clone();
    let window = drive(running, time, clients, move |tally| {
        let target = target.clone();
        async move {
            let request = head("POST", "/upload", &format!("Content-Length: {BODY}\r\n"));
            let piece = vec![0; PIECE];
            let mut connection = target.connect().await?;
            loop {
                connection.send(&request).await?;
                for _ in 0..BODY / PIECE as u64 {
                    connection.send(&piece).await?;
                    tally.add(PIECE as u64);
                }
                let length = connection.answer(200).await?.unwrap_or(0);
                connection.skip(length, |_| {}).await?;
            }
        }
    })
    .await;
    sample(&window)
}

fn sample(window: &Window) -> Sample {
    Sample::new(vec![("CPU µs/MiB", window.cpu_each(MIB)), ("MiB/s", window.rate(MIB))], window.failed)
}

/// Measures events. The latency of an event is its age when it arrives; both ends read the same
/// clock.
pub(super) async fn events(running: &Running, time: Duration, clients: usize) -> Sample {
    let target = running.target.clone();
    let window = drive(running, time, clients, move |tally| {
        let target = target.clone();
        async move {
            let mut connection = target.connect().await?;
            connection.send(&head("GET", "/events", "")).await?;
            connection.answer(200).await?;
            loop {
                connection.read_until(b"data: ").await?;
                let sent = connection.read_until(b" ").await?;
                let sent: u64 = std::str::from_utf8(&sent)
                    .ok()
                    .and_then(|sent| sent.parse().ok())
                    .ok_or(io::ErrorKind::InvalidData)?;
                tally.took(Duration::from_nanos(monotonic().saturating_sub(sent)));
            }
        }
    })
    .await;
    Sample::new(
        vec![("CPU µs/event", window.cpu_each(1)), ("p50 µs", window.quantile(0.5)), ("p99 µs", window.quantile(0.99))],
        window.failed,
    )
}

//! Small requests over keep-alive connections, and over new connections.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::Sample;
use crate::client::head;
use crate::load::{Window, drive};
use crate::peer::Running;

pub(super) async fn requests(running: &Running, time: Duration, clients: usize) -> Sample {
    let window = drive_requests(running, time, clients).await;
    Sample::new(
        vec![
            ("CPU µs/request", window.cpu_each(1)),
            ("requests/s", window.rate(1)),
            ("p50 µs", window.quantile(0.5)),
            ("p99 µs", window.quantile(0.99)),
        ],
        window.failed,
    )
}

/// Drives `clients` clients that send small requests, each over one connection.
pub(super) async fn drive_requests(running: &Running, time: Duration, clients: usize) -> Window {
    let target = running.target.clone();
    drive(running, time, clients, move |tally| {
        let target = target.clone();
        async move {
            let request = head("GET", "/", "");
            let mut connection = target.connect().await?;
            loop {
                let began = Instant::now();
                connection.exchange(&request).await?;
                tally.took(began.elapsed());
            }
        }
    })
    .await
}

pub(super) async fn handshakes(running: &Running, time: Duration, clients: usize, resuming: bool) -> Sample {
    let (window, resumed) = drive_handshakes(running, time, clients, resuming).await;
    let mut measures = vec![("CPU µs/handshake", window.cpu_each(1)), ("handshakes/s", window.rate(1))];
    if resuming {
        measures.push(("resumed share", resumed));
    }
    Sample::new(measures, window.failed)
}

/// Drives `clients` clients that open one connection after the other, for one request each. Also
/// returns the share of connections whose TLS session was resumed; 0 without connections.
pub(super) async fn drive_handshakes(
    running: &Running,
    time: Duration,
    clients: usize,
    resuming: bool,
) -> (Window, f64) {
    let target = running.target.clone();
    let (connections, resumed) = (Rc::<Cell<u64>>::default(), Rc::<Cell<u64>>::default());
    let counts = (Rc::clone(&connections), Rc::clone(&resumed));
    let window = drive(running, time, clients, move |tally| {
        let (target, (connections, resumed)) =
            (if resuming { target.with_tickets() } else { target.clone() }, counts.clone());
        async move {
            let request = head("GET", "/", "");
            loop {
                let began = Instant::now();
                let mut connection = target.connect().await?;
                connections.set(connections.get() + 1);
                resumed.set(resumed.get() + u64::from(connection.resumed));
                connection.exchange(&request).await?;
                connection.stream.shutdown().await?;
                tally.took(began.elapsed());
            }
        }
    })
    .await;
    let share = resumed.get() as f64 / connections.get().max(1) as f64;
    (window, share)
}

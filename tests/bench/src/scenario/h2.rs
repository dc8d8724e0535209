//! HTTP/2 requests of h2load, nghttp2's load generator.

use std::io;
use std::time::Duration;

use tokio::process::Command;

use super::Sample;
use crate::peer::Running;

pub(super) async fn requests(running: &Running, time: Duration) -> io::Result<Sample> {
    let port = running.target.address.port();
    let seconds = time.as_secs_f64().ceil().max(1.0);
    let mut h2load = Command::new("h2load");
    h2load.args([
        "--clients=8",
        "--max-concurrent-streams=16",
        "--threads=1",
        "--groups=X25519",
        "--tls13-ciphers=TLS_AES_128_GCM_SHA256",
    ]);
    h2load
        .arg(format!("--duration={seconds}"))
        .arg(format!("--connect-to=127.0.0.1:{port}"))
        .arg(format!("https://localhost:{port}/"));
    let cpu = running.cpu();
    let output = h2load.kill_on_drop(true).output().await?;
    let cpu = running.cpu() - cpu;
    let printed = String::from_utf8_lossy(&output.stdout);
    let counts = printed
        .lines()
        .find_map(|line| line.strip_prefix("requests: "))
        .ok_or_else(|| io::Error::other(printed.clone().into_owned()))?;
    let count = |what: &str| -> u64 {
        let words = counts.split(", ").find_map(|count| count.strip_suffix(what));
        words.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    };
    // Requests that are open at the end of the time count neither as succeeded nor as failed.
    let (succeeded, failed) = (count("succeeded"), count("errored") + count("timeout"));
    Ok(Sample::new(
        vec![
            ("CPU µs/request", cpu.as_secs_f64() * 1e6 / succeeded as f64),
            ("requests/s", succeeded as f64 / seconds),
        ],
        failed,
    ))
}

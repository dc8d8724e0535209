//! How long a client waits for its responses while others load or attack the sidecar.

use std::fmt;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::raw_http::RawHttp;
use crate::tls_client::{TlsClient, request_text};

/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// The pause after each request.
const PAUSE: Duration = Duration::from_millis(10);

/// The latencies of a client's requests. A failed request counts with the time that it took to
/// fail.
#[derive(Debug, Default)]
pub struct Latencies {
    sorted: Vec<Duration>,
    /// How many requests failed.
    pub failed: usize,
    first_failure: Option<String>,
}

impl Latencies {
    /// The number of requests.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The latency that `share` of the requests did not exceed; zero without requests.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.sorted.len().saturating_sub(1);
        self.sorted.get((last as f64 * share).ceil() as usize).copied().unwrap_or_default()
    }

    /// The median.
    pub fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    /// The latency that one request in a hundred exceeded.
    pub fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    fn add(&mut self, time: Duration, end: Result<(), String>) {
        self.sorted.push(time);
        if let Err(failure) = end {
            self.failed += 1;
            self.first_failure.get_or_insert(failure);
        }
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, p50 {:.1?}, p99 {:.1?}, {} failed", self.count(), self.p50(), self.p99(), self.failed)?;
        self.first_failure.as_ref().map_or(Ok(()), |failure| write!(f, " ({failure})"))
    }
}

/// Sends GET requests for `path` from `source` for `time`, one after the other, each on a new
/// connection.
pub async fn measure(client: &TlsClient, source: &str, path: &str, time: Duration) -> Latencies {
    let client = client.from(source);
    let request = request_text(&format!("GET {path}"), "Connection: close\r\n");
    let mut latencies = Latencies::default();
    let start = Instant::now();
    while start.elapsed() < time {
        let began = Instant::now();
        let end =
            timeout(LIMIT, ask(&client, &request)).await.unwrap_or_else(|_| Err(format!("nothing within {LIMIT:?}")));
        latencies.add(began.elapsed(), end);
        sleep(PAUSE).await;
    }
    latencies.sorted.sort_unstable();
    latencies
}

/// Does the same as [`measure`] in a new thread, so that the rest of the test does not delay the
/// measurements.
pub fn measure_in_thread(client: &TlsClient, source: &str, path: &str, time: Duration) -> JoinHandle<Latencies> {
    let (client, source, path) = (client.clone(), source.to_owned(), path.to_owned());
    thread::spawn(move || measure_blocking(&client, &source, &path, time))
}

/// Does the same as [`measure`] for code that blocks.
pub fn measure_blocking(client: &TlsClient, source: &str, path: &str, time: Duration) -> Latencies {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure(client, source, path, time))
}

async fn ask(client: &TlsClient, request: &str) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let mut connection = RawHttp::new(client.connect("http/1.1").await.map_err(text)?);
    connection.send(request).await.map_err(text)?;
    match connection.read_response().await {
        Some(response) if response.status() == 200 && !response.truncated => Ok(()),
        Some(response) => Err(format!("status {}", response.status())),
        None => Err("no response".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_include_failures() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.p99(), Duration::ZERO);
        for milliseconds in 1..=99 {
            latencies.add(Duration::from_millis(milliseconds), Ok(()));
        }
        latencies.add(LIMIT, Err("nothing".into()));
        latencies.sorted.sort_unstable();
        assert_eq!((latencies.count(), latencies.failed, latencies.quantile(1.0)), (100, 1, LIMIT));
        assert_eq!(latencies.p50(), Duration::from_millis(51));
        assert_eq!(latencies.p99(), LIMIT, "one request in a hundred takes so long");
    }
}

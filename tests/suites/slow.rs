//! slowhttptest: a normal client is served while hundreds of clients are slow on purpose.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{print_now, python, run};
use loopgate_test_support::backend::Backend;
use loopgate_test_support::sidecar::Launch;
use loopgate_test_support::tls_client::TlsClient;

/// The duration of an attack in seconds: longer than the time allowed for a request head.
const SECONDS: u64 = 13;
/// The number of connections of an attack.
const CONNECTIONS: &str = "500";
/// The time allowed for the normal client's request with a new connection. It is long, for busy
/// machines.
const PATIENCE: Duration = Duration::from_secs(3);

#[test]
fn a_normal_client_is_served_during_slow_heads() {
    attack("slow heads", "count/5", &["-H", "-i", "2", "-x", "24"]);
}

#[test]
fn a_normal_client_is_served_during_slow_bodies() {
    attack("slow bodies", "echo", &["-B", "-i", "2", "-s", "8192", "-x", "10"]);
}

#[test]
fn a_normal_client_is_served_during_slow_reads() {
    attack("slow reads", "count/100000", &["-X", "-w", "10", "-y", "20", "-n", "2", "-z", "32", "-k", "3"]);
}

fn attack(name: &str, path: &str, mode: &[&str]) {
    if python().is_none() {
        return;
    }
    run(async {
        let backend = Backend::start().await;
        let sidecar = Launch::new().gateway(backend.address).start();
        let client = TlsClient::with_ca_file(sidecar.address, &sidecar.ca_file()).from("127.0.0.5");
        let url = format!("https://localhost:{}/{path}", sidecar.address.port());
        let mut slow = Command::new("slowhttptest");
        slow.args(mode).args(["-c", CONNECTIONS, "-r", "200", "-l", &SECONDS.to_string(), "-p", "3", "-u", &url]);
        let mut slow =
            slow.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("slowhttptest");
        let (before, start) = (sidecar.process().open_file_count(), Instant::now());
        let (mut times, mut most) = (Vec::new(), 0);
        while slow.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(SECONDS + 20), "the attack does not end");
            let request_start = Instant::now();
            tokio::time::timeout(PATIENCE, request_once(&client))
                .await
                .unwrap_or_else(|_| panic!("{name}: no answer in {PATIENCE:?}"));
            times.push(request_start.elapsed());
            most = most.max(sidecar.process().open_file_count() - before.min(sidecar.process().open_file_count()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        times.sort();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        print_now(format_args!(
            "  {name}: {} requests of the normal client, all answered, median {median:.0?}, worst {worst:.0?}, with \
             {most} descriptors more than before, {} MiB",
            times.len(),
            sidecar.process().memory() >> 20
        ));
        assert!(times.len() >= 50 && most >= 200, "too few requests or connections to test the attack");
        sidecar.stop();
    });
}

/// Sends one request on a new connection.
async fn request_once(client: &TlsClient) {
    let mut stream = client.connect("http/1.1").await.expect("a handshake");
    stream.write_all(b"GET /count/5 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

//! Large transfers, single events and thousands of WebSockets, with curl and real TLS clients on
//! another host.

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::NamedTempFile;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::{JoinSet, LocalSet};

use crate::backend::HostedBackend;
use crate::openclaw::directory;
use crate::sidecar::{self, URL};
use loopgate_test_support::content::{self, Checksum};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::process::memory;
use loopgate_test_support::requirements::{Missing, find_program, print_now, run_exclusively};
use loopgate_test_support::sidecar::Sidecar;
use loopgate_test_support::tls_client::{PROTOCOLS, Protocol};
use loopgate_test_support::websocket::{assert_echo, close};

const MIB: u64 = 1 << 20;
const CURL_PROTOCOLS: [(&str, &str); 2] = [("--http1.1", "1.1"), ("--http2", "2")];

#[test]
fn a_gibibyte_passes_unchanged_both_ways_in_constant_memory() {
    run_exclusively("real", "a gibibyte up and down with curl, over h1 and h2", || gibibyte(&directory("gibibyte")));
}

#[test]
fn server_sent_events_arrive_one_by_one() {
    run_exclusively("real", "server-sent events with curl, over h1 and h2", || events(&directory("events")));
}

#[test]
fn a_message_of_64_mebibytes_passes_a_websocket() {
    run_exclusively("real", "a WebSocket message of 64 MiB, over h1 and h2", || {
        large_message(&directory("large-message"))
    });
}

#[test]
fn two_thousand_websockets_echo_at_once() {
    run_exclusively("real", "2,000 WebSockets at once", || many_websockets(&directory("many-websockets")));
}

fn gibibyte(directory: &Path) -> Result<(), Missing> {
    find_program("curl")?;
    let network = Network::new()?;
    let _backend = HostedBackend::start(&network);
    let sidecar = sidecar::start(&network, directory, &[]);
    let checksum = content::checksum();
    let mut file = NamedTempFile::new_in(directory).expect("a file");
    content::blocks().for_each(|block| file.write_all(&block).expect("enough space for a gibibyte"));

    for (flag, version) in CURL_PROTOCOLS {
        // A first request, so that its cost isn't counted.
        assert_eq!(output_of(curl(&network, &sidecar, flag).arg(URL)), "hello");
        let (before, _) = memory(sidecar.process().id());

        let answer = output_of(
            curl(&network, &sidecar, flag)
                .arg("--upload-file")
                .arg(file.path())
                .args(["--write-out", " %{http_version}"])
                .arg(format!("{URL}/upload")),
        );
        assert_eq!(answer, format!("{checksum} {version}"), "the upload differs");
        print_now(format_args!(
            "  {flag}: upload, loopgate's memory was {} MiB at most (before: {} MiB)",
            memory(sidecar.process().id()).1 / MIB,
            before / MIB
        ));

        let mut download =
            curl(&network, &sidecar, flag).arg(format!("{URL}/download")).stdout(Stdio::piped()).spawn().expect("curl");
        assert_eq!(checksum_of(download.stdout.take().expect("a pipe")), checksum, "the download differs");
        assert!(download.wait().expect("own child").success());

        let (_, highest) = memory(sidecar.process().id());
        print_now(format_args!("  {flag}: download, loopgate's memory was {} MiB at most", highest / MIB));
        assert!(highest < before + 32 * MIB, "memory went from {} to {} MiB", before / MIB, highest / MIB);
    }
    sidecar.stop();
    Ok(())
}

fn events(directory: &Path) -> Result<(), Missing> {
    find_program("curl")?;
    let network = Network::new()?;
    let backend = HostedBackend::start(&network);
    let sidecar = sidecar::start(&network, directory, &[]);
    for (flag, _) in CURL_PROTOCOLS {
        let events = backend.events();
        let mut curl = curl(&network, &sidecar, flag);
        let mut curl = curl
            .args(["--no-buffer", "--max-time", "30"])
            .arg(format!("{URL}/events"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl");
        let mut lines = BufReader::new(curl.stdout.take().expect("a pipe")).lines();
        for number in 0..20 {
            // The next event is sent only after this one has arrived, so a delayed event ends the
            // stream.
            events.send(number.to_string()).expect("curl still reads");
            assert_eq!(lines.next().expect("an event in time").expect("a pipe"), format!("data: {number}"));
            assert_eq!(lines.next().expect("the end of an event in time").expect("a pipe"), "");
        }
        drop(events);
        assert!(lines.next().is_none());
        assert!(curl.wait().expect("own child").success());
    }
    sidecar.stop();
    Ok(())
}

fn large_message(directory: &Path) -> Result<(), Missing> {
    let network = Network::new()?;
    let _backend = HostedBackend::start(&network);
    let sidecar = sidecar::start(&network, directory, &[]);
    let client = sidecar.clone().expecting_address();
    let (before, _) = memory(sidecar.process().id());
    let thread = network.run_on(Host::External, move || {
        run(async move {
            let message = Bytes::from(content::blocks().take(1024).flatten().collect::<Vec<u8>>());
            assert_eq!(message.len() as u64, 64 * MIB);
            for protocol in PROTOCOLS {
                let mut socket = client.open_websocket(protocol, &address(0), "/ws").await;
                assert_echo(&mut socket, message.clone()).await;
                close(socket).await;
            }
        });
    });
    thread.join().expect("both echoes are whole");
    let (_, highest) = memory(sidecar.process().id());
    assert!(
        highest < before + 32 * MIB,
        "memory went from {} to {} MiB: a message was held whole",
        before / MIB,
        highest / MIB
    );
    sidecar.stop();
    Ok(())
}

fn many_websockets(directory: &Path) -> Result<(), Missing> {
    const COUNT: usize = 2000;
    let (_, hard_limit) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    if hard_limit < 3 * COUNT as u64 {
        return Err(Missing(format!("only {hard_limit} file descriptors may be open")));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard_limit, hard_limit).expect("the soft limit may rise to the hard one");

    let network = Network::new()?;
    let _backend = HostedBackend::start(&network);
    let sidecar = sidecar::start(&network, directory, &[]);
    let client = sidecar.clone().expecting_address();
    let thread = network.run_on(Host::External, move || {
        run(async move {
            let all_open = Arc::new(Barrier::new(COUNT));
            // All are open at the same time, but at most 64 are being opened at the same time.
            let opening = Arc::new(Semaphore::new(64));
            let mut clients = JoinSet::new();
            for number in 0..COUNT {
                let (client, all_open, opening) = (client.clone(), Arc::clone(&all_open), Arc::clone(&opening));
                clients.spawn(async move {
                    let turn = opening.acquire().await.expect("open");
                    let mut socket = client.open_websocket(Protocol::H1, &address(number), "/ws").await;
                    drop(turn);
                    all_open.wait().await;
                    for round in 0..3 {
                        let size = 1 + (number * 37 + round * 4096) % 16_384;
                        let line = format!("{number}/{round};");
                        assert_echo(&mut socket, line.bytes().cycle().take(size).collect()).await;
                    }
                    all_open.wait().await;
                    close(socket).await;
                });
            }
            while let Some(client) = clients.join_next().await {
                client.expect("each client gets its own messages back");
            }
        });
    });
    thread.join().expect("2,000 clients get their messages back");
    print_now(format_args!("  loopgate's memory was {} MiB at most", memory(sidecar.process().id()).1 / MIB));
    sidecar.stop();
    Ok(())
}

/// The external host's address for client `number`. There are eight, because the sidecar limits the
/// connections of one address.
fn address(number: usize) -> String {
    format!("172.18.1.{}", number % 8)
}

fn run(client: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(LocalSet::new().run_until(client));
}

fn curl(network: &Network, sidecar: &Sidecar, protocol: &str) -> Command {
    let mut curl = network.command(Host::External, "curl");
    curl.args(["--silent", "--show-error", "--fail", protocol, "--cacert"]).arg(sidecar.ca_file());
    curl
}

/// Runs curl, which must succeed, and returns its standard output.
fn output_of(command: &mut Command) -> String {
    let output = command.output().expect("curl");
    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn checksum_of(mut stream: impl Read) -> String {
    let mut sum = Checksum::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match stream.read(&mut buffer).expect("a pipe") {
            0 => return sum.hex(),
            count => sum.update(&buffer[..count]),
        }
    }
}

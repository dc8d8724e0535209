//! A soak: mixed load whose every response is verified, while the gateway restarts, the certificate changes, the configuration is read
//! again and clients break off; and in the end memory is flat and no descriptor is left.
//!
//! A minute, or as many seconds as `LOOPGATE_SOAK` says.

mod certificate;
mod load;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use loopgate::shutdown::Shutdown;

use self::certificate::Authority;
use self::load::Load;
use crate::backend::Backend;
use crate::client::Client;
use crate::sidecar::Sidecar;
use crate::{run, say};

/// How long the gateway is away when it restarts: less than a request waits for it.
const AWAY: Duration = Duration::from_millis(400);
const MIB: u64 = 1 << 20;

#[test]
fn a_soak_loses_nothing_and_leaves_nothing_behind() {
    let seconds = std::env::var("LOOPGATE_SOAK").map_or(60, |seconds| seconds.parse().expect("LOOPGATE_SOAK is a number of seconds"));
    run(soak(Duration::from_secs(seconds)));
}

async fn soak(length: Duration) {
    let backend = Backend::start().await;
    let mut authority = Authority::new();
    let [certificate, key] = authority.files();
    let sidecar = Sidecar::start(backend.address, &["--tls-cert", &certificate, "--tls-key", &key]);
    let at_first = sidecar.descriptors();
    let client = |from: &str| Client::new(&authority.ca(), from, sidecar.door);
    let tasks = Shutdown::new();
    let load = Arc::new(Load::default());
    for number in 0..4 {
        let of = |kind: u8| client(&format!("127.0.{kind}.{}", number + 1));
        tasks.spawn(load::http(Arc::clone(&load), of(1), "http/1.1", tasks.clone()));
        tasks.spawn(load::http(Arc::clone(&load), of(2), "h2", tasks.clone()));
        tasks.spawn(load::websockets(Arc::clone(&load), of(3), tasks.clone()));
        tasks.spawn(load::events(Arc::clone(&load), of(4), tasks.clone()));
    }
    tasks.spawn(load::resets(Arc::clone(&load), client("127.0.5.1"), tasks.clone()));

    let observer = client("127.0.6.1");
    let start = Instant::now();
    let mut memory = Vec::new();
    let (mut restarts, mut hang_ups, mut swaps) = (0, 0, 0);
    for tick in 1.. {
        tokio::time::sleep(Duration::from_secs(1)).await;
        memory.push(sidecar.memory());
        match tick % 9 {
            3 => {
                load.gateway_goes();
                backend.kill().await;
                tokio::time::sleep(AWAY).await;
                backend.restart();
                load.gateway_is_back();
                restarts += 1;
            }
            6 => {
                sidecar.hang_up();
                hang_ups += 1;
            }
            0 => {
                let leaf = authority.renew();
                let deadline = Instant::now() + Duration::from_secs(20);
                while observer.connect("http/1.1").await.unwrap().get_ref().1.peer_certificates().unwrap()[0] != leaf {
                    assert!(Instant::now() < deadline, "the new certificate is not served:\n{}", sidecar.log());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                swaps += 1;
            }
            _ => {}
        }
        if start.elapsed() >= length {
            break;
        }
    }
    tasks.begin();
    assert_eq!(tasks.finished(Duration::from_secs(60)).await, 0, "every client comes to its end");
    let done = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    say(format_args!(
        "  {} requests, {} WebSocket messages, {} event streams verified; {} cut short by {restarts} restarts; {} resets, {hang_ups} SIGHUPs, {swaps} certificates",
        done(&load.requests),
        done(&load.messages),
        done(&load.streams),
        done(&load.excused),
        done(&load.resets),
    ));
    let failures = load.failures.lock().unwrap().clone();
    assert!(failures.is_empty(), "{} failed, such as {:#?}", failures.len(), &failures[..failures.len().min(10)]);
    assert!(done(&load.requests) > 20 * length.as_secs() && done(&load.messages) > 0 && done(&load.streams) > 0, "that was no load");

    // The pool's connections go with the gateway; then nothing is left that was not there before.
    backend.kill().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while sidecar.descriptors() > at_first {
        assert!(Instant::now() < deadline, "{} descriptors, {at_first} before the load", sidecar.descriptors());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let median = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part[part.len() / 2]
    };
    let (early, late) = (median(&memory[memory.len() / 5..memory.len() * 2 / 5]), median(&memory[memory.len() * 4 / 5..]));
    say(format_args!("  memory {} MiB early, {} MiB late; {at_first} descriptors before and after", early / MIB, late / MIB));
    assert!(late <= early + early / 5 + 8 * MIB, "memory grows: {} to {} MiB", early / MIB, late / MIB);
    assert!(!sidecar.log().contains("panicked"), "{}", sidecar.log());
    sidecar.stop();
}

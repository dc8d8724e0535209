//! A soak test: clients send a mixed load and verify every response, while the gateway restarts,
//! the certificate changes, the configuration is reloaded, a container starts and stops, and
//! clients reset connections. At the end, memory must not have grown and all descriptors must be
//! closed.
//!
//! It takes a minute, or the number of seconds in `TEST_SOAK`.

mod certificate;
mod docker;
mod load;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loopgate::shutdown::Shutdown;
use nix::sys::signal::Signal;

use self::certificate::Authority;
use self::docker::Docker;
use self::load::Load;
use crate::{print_now, run};
use loopgate_test_support::backend::Backend;
use loopgate_test_support::sidecar::Launch;
use loopgate_test_support::tls_client::TlsClient;

/// How long the gateway is down when it restarts: less than a request waits for it.
const DOWNTIME: Duration = Duration::from_millis(400);
const MIB: u64 = 1 << 20;

#[test]
fn a_soak_loses_no_byte_and_leaks_nothing() {
    let seconds =
        std::env::var("TEST_SOAK").map_or(60, |seconds| seconds.parse().expect("TEST_SOAK is a number of seconds"));
    run(soak(Duration::from_secs(seconds)));
}

async fn soak(length: Duration) {
    let backend = Backend::start().await;
    let mut authority = Authority::new();
    let [certificate, key] = authority.files();
    let docker = Docker::start();
    if docker.is_none() {
        print_now("  this machine has only loopback addresses: no container will start and stop");
    }
    let flags = docker
        .iter()
        .flat_map(Docker::flags)
        .chain(["--tls-cert".into(), certificate, "--tls-key".into(), key])
        .collect::<Vec<_>>();
    let sidecar =
        Launch::new().gateway(backend.address).flags(&flags.iter().map(String::as_str).collect::<Vec<_>>()).start();
    let descriptors_before = sidecar.process().open_file_count();
    let client = |from: &str| TlsClient::with_ca_file(sidecar.address, &authority.ca()).from(from);
    let tasks = Shutdown::new();
    let load = Arc::new(Load::default());
    start_clients(&load, client, &tasks);
    if let Some(docker) = &docker {
        let (chain, key) = docker::certificate(&sidecar.state_dir());
        let client = client(docker::ADDRESS).with_certificate(chain, key);
        for alpn in ["http/1.1", "h2"] {
            let life = Arc::clone(&docker.life);
            tasks.spawn(load::run_container_client(Arc::clone(&load), client.clone(), alpn, life, tasks.clone()));
        }
    }

    let observer = client("127.0.6.1");
    let start = Instant::now();
    let mut memory = Vec::new();
    let (mut restarts, mut reloads, mut renewals) = (0, 0, 0);
    for tick in 1.. {
        tokio::time::sleep(Duration::from_secs(1)).await;
        memory.push(sidecar.process().memory());
        if let Some(docker) = docker.as_ref().filter(|_| tick % 7 == 0) {
            docker.start_or_stop();
        }
        match tick % 9 {
            3 => {
                load.gateway_stops();
                backend.kill().await;
                tokio::time::sleep(DOWNTIME).await;
                backend.restart();
                load.gateway_has_started();
                restarts += 1;
            }
            6 => {
                sidecar.process().signal(Signal::SIGHUP);
                reloads += 1;
            }
            0 => {
                let leaf = authority.renew();
                let deadline = Instant::now() + Duration::from_secs(20);
                while observer.connect("http/1.1").await.unwrap().get_ref().1.peer_certificates().unwrap()[0] != leaf {
                    assert!(
                        Instant::now() < deadline,
                        "the new certificate is not served:\n{}",
                        sidecar.process().output()
                    );
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                renewals += 1;
            }
            _ => {}
        }
        if start.elapsed() >= length {
            break;
        }
    }
    tasks.begin();
    assert_eq!(tasks.wait_for_tasks(Duration::from_secs(60)).await, 0, "clients that have not ended");
    let events =
        format!("{restarts} restarts; {} resets, {reloads} SIGHUPs, {renewals} certificates", value(&load.resets));
    check_load(&load, docker.as_ref(), length, &events);

    // Without the gateway the pool's connections end, and no descriptor of the load is left.
    backend.kill().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while sidecar.process().open_file_count() > descriptors_before {
        assert!(
            Instant::now() < deadline,
            "{} descriptors, {descriptors_before} before the load",
            sidecar.process().open_file_count()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    check_memory(&memory);
    print_now(format_args!("  {descriptors_before} descriptors before and after"));
    assert!(!sidecar.process().output().contains("panicked"), "{}", sidecar.process().output());
    sidecar.stop();
}

/// Starts clients of every kind; `client` makes one with the given source address.
fn start_clients(load: &Arc<Load>, client: impl Fn(&str) -> TlsClient, tasks: &Shutdown) {
    for number in 0..4 {
        let of = |kind: u8| client(&format!("127.0.{kind}.{}", number + 1));
        tasks.spawn(load::run_http_client(Arc::clone(load), of(1), "http/1.1", tasks.clone()));
        tasks.spawn(load::run_http_client(Arc::clone(load), of(2), "h2", tasks.clone()));
        let alpn = if number % 2 == 0 { "http/1.1" } else { "h2" };
        tasks.spawn(load::run_websocket_client(Arc::clone(load), of(3), alpn, tasks.clone()));
        tasks.spawn(load::run_event_client(Arc::clone(load), of(4), tasks.clone()));
    }
    tasks.spawn(load::run_resetting_client(Arc::clone(load), client("127.0.5.1"), tasks.clone()));
}

fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Prints what the clients did during `events`, and fails if there was a failure or too little
/// load.
fn check_load(load: &Load, docker: Option<&Docker>, length: Duration, events: &str) {
    print_now(format_args!(
        "  {} requests, {} WebSocket messages, {} event streams verified; {} cut short by {events}",
        value(&load.requests),
        value(&load.messages),
        value(&load.streams),
        value(&load.excused),
    ));
    if let Some(docker) = docker {
        let (agent, external) = (value(&load.as_agent), value(&load.as_external));
        print_now(format_args!(
            "  a container started or stopped {} times: {agent} requests by the agent lane, {external} by the external \
             lane",
            docker.life.changes()
        ));
        assert!(agent > 0 && external > 0, "the container's client never had one of the lanes");
    }
    let failures = load.failures.lock().unwrap().clone();
    assert!(failures.is_empty(), "{} failed, such as {:#?}", failures.len(), &failures[..failures.len().min(10)]);
    assert!(
        value(&load.requests) > 20 * length.as_secs() && value(&load.messages) > 0 && value(&load.streams) > 0,
        "the clients did too little"
    );
}

/// Fails if the memory, measured each second, grows.
fn check_memory(memory: &[u64]) {
    let median = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part[part.len() / 2]
    };
    let (early, late) =
        (median(&memory[memory.len() / 5..memory.len() * 2 / 5]), median(&memory[memory.len() * 4 / 5..]));
    let (first, last) = (memory[0] / MIB, memory[memory.len() - 1] / MIB);
    print_now(format_args!(
        "  memory {first} MiB at first, {} MiB early, {} MiB late, {last} MiB at last",
        early / MIB,
        late / MIB,
    ));
    assert!(late <= early + early / 5 + 8 * MIB, "memory grows: {} to {} MiB", early / MIB, late / MIB);
}

//! Requests that are not read, or are read or sent slowly: what the gateway and loopgate hold for
//! them, and how others fare.

use std::time::Duration;

use loopgate_test_support::flood::{Flood, RunningFlood, Stream};
use loopgate_test_support::requirements::report;
use loopgate_test_support::sidecar::{Launch, SidecarWithGateway};
use tokio::time::{sleep, timeout};

use crate::{Bystanders, MIB, Memory, attack, attackers};

/// The default of `limits.gateway_requests`.
const GATEWAY_REQUESTS: usize = 128;

#[test]
fn unread_files_and_slow_readers_exhaust_neither_the_gateway_nor_loopgate() {
    attack("25 connections with 100 unread files each, and 15 with 90 slow readers each", || async {
        // Shorter than `--gateway-stall`: a request that it ends leaves a busy gateway's memory
        // later than the next one comes.
        let sidecar = Launch::new().start_with_gateway().await;
        let memory = Memory::before_attack(&sidecar, sidecar.process()).await;
        let unread = unread(25, 100, 1).start(&sidecar);
        let slow = flood(15, 90, Stream::ReadSlowly(1000), "/file?3500000", "127.0.0.5").start(&sidecar);
        let bystanders = Bystanders::watch(&sidecar, Duration::from_secs(8)).await;
        let most = sidecar.gateway.most_buffered() as u64;
        report(format_args!("  the gateway: {} MiB of files at most", most / MIB));
        assert_flooded(&sidecar, &[&unread, &slow], 25 * 100 + 15 * 90);
        assert!(most < 300 * MIB, "the gateway held {} MiB", most / MIB);
        memory.assert_bounded();
        bystanders.assert_served();
        drop((unread, slow));
        let released = async {
            while sidecar.gateway.buffered() > 0 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(10), released).await.expect("requests of clients that are gone leave the gateway");
    });
}

#[test]
fn unread_responses_of_many_clients_leave_room_for_others() {
    attack("100 connections from 16 addresses with 100 unread responses each", || async {
        let sidecar = Launch::new().flags(&["--gateway-stall=3s"]).start_with_gateway().await;
        let memory = Memory::before_attack(&sidecar, sidecar.process()).await;
        // Short enough that hyper takes a response whole.
        let unread = Flood { path: "/large?60000".into(), ..unread(100, 100, 16) }.start(&sidecar);
        let bystanders = Bystanders::watch(&sidecar, Duration::from_secs(8)).await;
        assert_flooded(&sidecar, &[&unread], 100 * 100);
        memory.assert_bounded();
        bystanders.assert_served();
    });
}

#[test]
fn slow_requests_of_one_client_delay_no_other() {
    attack("2,250 slow requests from one address", || async {
        let sidecar = Launch::new().start_with_gateway().await;
        let memory = Memory::before_attack(&sidecar, sidecar.process()).await;
        let slow = flood(25, 90, Stream::SendSlowly, "/echo", "127.0.0.5").start(&sidecar);
        let bystanders = Bystanders::watch(&sidecar, Duration::from_secs(6)).await;
        assert_flooded(&sidecar, &[&slow], 2250);
        memory.assert_bounded();
        bystanders.assert_served();
    });
}

fn flood(connections: usize, streams: usize, stream: Stream, path: &str, source: &str) -> Flood {
    Flood { sources: vec![source.into()], connections, streams, stream, path: path.into() }
}

/// Files of the size of the largest one of the gateway's Control UI, that nobody reads.
fn unread(connections: usize, streams: usize, addresses: usize) -> Flood {
    Flood { sources: attackers(addresses), ..flood(connections, streams, Stream::Unread, "/file?3500000", "") }
}

/// Fails unless all of the requests were sent; prints how many the gateway got.
fn assert_flooded(sidecar: &SidecarWithGateway, floods: &[&RunningFlood], requests: usize) {
    let sum = |of: fn(&RunningFlood) -> usize| floods.iter().map(|flood| of(flood)).sum::<usize>();
    let (sent, ended, closed) =
        (sum(|flood| flood.count.requests()), sum(|flood| flood.count.ended()), sum(|flood| flood.count.closed()));
    let (arrived, connections) = (sidecar.gateway.requests().len(), sidecar.gateway.connections());
    report(format_args!("  {sent} hostile requests; {ended} of them ended, {closed} connections closed"));
    report(format_args!(
        "  the gateway: {connections} connections, {arrived} requests that were read, with those of the others"
    ));
    assert!(sent >= requests, "{sent} of {requests} requests were sent");
    assert!(connections >= GATEWAY_REQUESTS / 4, "that was no flood");
}

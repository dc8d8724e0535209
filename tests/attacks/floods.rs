//! Responses that are not read or are read slowly, and requests that are sent slowly: how much
//! memory the gateway and loopgate use for them, and whether other clients are served.

use std::time::Duration;

use loopgate_test_support::flood::{Flood, RunningFlood, Stream};
use loopgate_test_support::requirements::print_now;
use loopgate_test_support::sidecar::{Launch, SidecarWithGateway};
use tokio::time::{sleep, timeout};

use crate::{Bystanders, MIB, Memory, attack, attackers};

/// The default of `limits.gateway_requests`.
const GATEWAY_REQUESTS: usize = 128;

#[test]
fn unread_files_and_slow_readers_exhaust_neither_the_gateway_nor_loopgate() {
    attack("25 connections with 100 unread files each, and 15 with 90 slow readers each", || async {
        // The attack is shorter than `--gateway-stall`. A busy gateway frees the memory of a
        // request that this limit ended only after the next request has arrived.
        let sidecar = Launch::new().start_with_gateway().await;
        let memory = Memory::before_attack(&sidecar, sidecar.process()).await;
        let unread = unread(25, 100, 1).start(&sidecar);
        let slow = flood(15, 90, Stream::ReadSlowly(1000), "/file?3500000", "127.0.0.5").start(&sidecar);
        let bystanders = Bystanders::measure(&sidecar, Duration::from_secs(8)).await;
        let most_buffered = sidecar.gateway.most_buffered() as u64;
        print_now(format_args!("  the gateway: {} MiB of files at most", most_buffered / MIB));
        assert_flooded(&sidecar, &[&unread, &slow], 25 * 100 + 15 * 90);
        assert!(most_buffered < 300 * MIB, "the gateway held {} MiB", most_buffered / MIB);
        memory.assert_bounded();
        bystanders.assert_served();
        drop((unread, slow));
        let released = async {
            while sidecar.gateway.buffered_bytes() > 0 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(10), released)
            .await
            .expect("the gateway still holds requests of closed connections");
    });
}

#[test]
fn other_clients_are_served_while_many_clients_do_not_read() {
    attack("100 connections from 16 addresses with 100 unread responses each", || async {
        let sidecar = Launch::new().flags(&["--gateway-stall=3s"]).start_with_gateway().await;
        let memory = Memory::before_attack(&sidecar, sidecar.process()).await;
        // Responses are so short that hyper buffers each one whole.
        let unread = Flood { path: "/large?60000".into(), ..unread(100, 100, 16) }.start(&sidecar);
        let bystanders = Bystanders::measure(&sidecar, Duration::from_secs(8)).await;
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
        let bystanders = Bystanders::measure(&sidecar, Duration::from_secs(6)).await;
        assert_flooded(&sidecar, &[&slow], 2250);
        memory.assert_bounded();
        bystanders.assert_served();
    });
}

fn flood(connections: usize, streams: usize, stream: Stream, path: &str, source: &str) -> Flood {
    Flood { sources: vec![source.into()], connections, streams, stream, path: path.into() }
}

/// Requests for files as large as the largest file of the gateway's Control UI, which no client
/// reads.
fn unread(connections: usize, streams: usize, addresses: usize) -> Flood {
    Flood { sources: attackers(addresses), ..flood(connections, streams, Stream::Unread, "/file?3500000", "") }
}

/// Fails unless all of the requests were sent; prints how many the gateway got.
fn assert_flooded(sidecar: &SidecarWithGateway, floods: &[&RunningFlood], requests: usize) {
    let sum = |of: fn(&RunningFlood) -> usize| floods.iter().map(|flood| of(flood)).sum::<usize>();
    let (sent, ended, closed) = (
        sum(|flood| flood.count.request_count()),
        sum(|flood| flood.count.ended_count()),
        sum(|flood| flood.count.closed_count()),
    );
    let (arrived, connections) = (sidecar.gateway.requests().len(), sidecar.gateway.connections());
    print_now(format_args!("  {sent} hostile requests; {ended} of them ended, {closed} connections closed"));
    print_now(format_args!(
        "  the gateway: {connections} connections, {arrived} requests, those of other clients included"
    ));
    assert!(sent >= requests, "{sent} of {requests} requests were sent");
    assert!(connections >= GATEWAY_REQUESTS / 4, "too few connections reached the gateway");
}

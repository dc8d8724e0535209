//! Uploads while the gateway is down.

use std::time::Duration;

use loopgate_test_support::raw_h2::{DATA, END_HEADERS, HEADERS, RawH2, frame, request_block};
use loopgate_test_support::requirements::print_now;
use loopgate_test_support::sidecar::Launch;
use tokio::time::{sleep, timeout};

use crate::{Bystanders, MIB, Memory, attack, attackers};

const CONNECTIONS: usize = 60;
const STREAMS: [u32; 4] = [1, 3, 5, 7];
const OUTAGE: Duration = Duration::from_secs(5);

#[test]
fn uploads_while_the_gateway_is_down_are_not_held_in_memory() {
    attack("60 connections that upload while the gateway is down for 5 s", || async {
        let sidecar = Launch::new().start_with_gateway().await;
        let memory = Memory::before_attack(&sidecar, sidecar.process()).await;
        sidecar.gateway.kill();
        let outage = tokio::time::Instant::now();
        let (sources, head) = (attackers(3), request_block("POST", "/echo", &[]));
        let data = vec![0; 8 * 1024];
        let (mut uploads, mut sent) = (Vec::new(), 0);
        for number in 0..CONNECTIONS {
            let mut client = RawH2::connect(&sidecar, &sources[number % sources.len()], &[]).await;
            client.send(&STREAMS.map(|stream| frame(HEADERS, END_HEADERS, stream, &head)).concat()).await;
            // Send as much as the flow-control windows allow.
            let (mut stream_window, mut window) = client.read_windows().await;
            while stream_window >= data.len() && window >= STREAMS.len() * data.len() {
                client.send(&STREAMS.map(|stream| frame(DATA, 0, stream, &data)).concat()).await;
                (stream_window, window) = (stream_window - data.len(), window - STREAMS.len() * data.len());
                sent += STREAMS.len() * data.len();
            }
            uploads.push(client);
        }
        print_now(format_args!("  {} MiB were sent", sent as u64 / MIB));
        assert!(sent > CONNECTIONS * 32 * 1024, "too little was sent to test the limit");
        memory.assert_bounded();
        tokio::time::sleep_until(outage + OUTAGE).await;
        memory.assert_bounded();
        sidecar.gateway.restart();
        timeout(Duration::from_secs(10), async {
            while Bystanders::measure(&sidecar, Duration::from_millis(300)).await.agent.failed > 0 {
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await
        .expect("requests succeed when the gateway is back");
        drop(uploads);
    });
}

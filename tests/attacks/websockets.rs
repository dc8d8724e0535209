//! WebSockets on which the gateway sends without end and the client does not read.

use std::time::Duration;

use loopgate_test_support::raw_h2::{
    END_HEADERS, HEADERS, INITIAL_WINDOW, PREFACE, WINDOW_UPDATE, frame, header_block, settings,
};
use loopgate_test_support::requirements::print_now;
use loopgate_test_support::sidecar::{Launch, SidecarWithGateway};
use loopgate_test_support::tls_client::TlsClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::{Bystanders, MIB, Memory, attack, attackers};

const WEBSOCKETS: usize = 400;
/// HTTP/2 connections, which share the WebSockets evenly.
const CONNECTIONS: usize = 20;
/// The limit of buffered bytes (`limits.buffered`). WebSockets may use a quarter of it.
const BUFFERED: &str = "--buffered=4194304";
const HEAD: &str = "GET /ws-floods HTTP/1.1\r\nHost: gateway.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn unread_websockets_share_a_memory_budget() {
    attack("400 WebSockets that are not read", || async {
        let sidecar = Launch::new().flags(&[BUFFERED]).start_with_gateway().await;
        let memory = Memory::before_attack(&sidecar, sidecar.process()).await;
        let sources = attackers(8);
        let mut clients = Vec::new();
        for number in 0..WEBSOCKETS {
            let stream = tcp(&sidecar, &sources[number % sources.len()]).await;
            let mut client = sidecar.handshake(stream, "http/1.1").await.unwrap();
            client.write_all(HEAD.as_bytes()).await.unwrap();
            let mut head = [0; 12];
            client.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 101", "{number}");
            clients.push(client);
        }
        // Without the budget, each WebSocket would hold 64 KiB.
        let grown = growth_when_stalled(&sidecar, &memory).await;
        assert!(grown < WEBSOCKETS as u64 * 36 * 1024, "loopgate grew by {} KiB", grown / 1024);
        Bystanders::measure(&sidecar, Duration::from_secs(2)).await.assert_served();
        drop(clients);
    });
}

#[test]
fn unread_websockets_over_h2_share_a_memory_budget() {
    attack("400 WebSockets on 20 HTTP/2 connections that are not read", || async {
        let sidecar = Launch::new().flags(&[BUFFERED]).start_with_gateway().await;
        let memory = Memory::before_attack(&sidecar, sidecar.process()).await;
        let sources = attackers(8);
        let fields = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":authority", "gateway.example:18789"),
            (":path", "/ws-floods"),
            ("sec-websocket-version", "13"),
        ];
        let (head, streams) = (header_block(&fields), WEBSOCKETS / CONNECTIONS);
        let mut clients = Vec::new();
        for number in 0..CONNECTIONS {
            let stream = tcp(&sidecar, &sources[number % sources.len()]).await;
            let mut client = sidecar.handshake(stream, "h2").await.unwrap();
            let max_window = i32::MAX as u32;
            let window = frame(WINDOW_UPDATE, 0, 0, &(max_window - 65_535).to_be_bytes());
            client.write_all(&[PREFACE, &settings(&[(INITIAL_WINDOW, max_window)]), &window].concat()).await.unwrap();
            for stream in 0..streams {
                let id = 2 * u32::try_from(stream).unwrap() + 1;
                client.write_all(&frame(HEADERS, END_HEADERS, id, &head)).await.unwrap();
            }
            clients.push(client);
        }
        sidecar.gateway.wait_for_requests(WEBSOCKETS).await;
        // Besides loopgate's own buffers, hyper holds 64 KiB for each stream.
        let grown = growth_when_stalled(&sidecar, &memory).await;
        assert!(grown < WEBSOCKETS as u64 * 120 * 1024, "loopgate grew by {} KiB", grown / 1024);
        Bystanders::measure(&sidecar, Duration::from_secs(2)).await.assert_served();
        drop(clients);
    });
}

/// Connects from `source` with a small receive buffer in the kernel.
async fn tcp(sidecar: &TlsClient, source: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(sidecar.address).await.unwrap()
}

/// Waits until the gateway can send no more; returns how much loopgate's memory has grown, in
/// bytes.
async fn growth_when_stalled(sidecar: &SidecarWithGateway, memory: &Memory<'_>) -> u64 {
    let (mut pushed_before, mut unchanged_for) = (0, 0);
    let no_more = async {
        while unchanged_for < 5 {
            sleep(Duration::from_millis(200)).await;
            let pushed = sidecar.gateway.pushed_bytes();
            unchanged_for = if pushed == pushed_before { unchanged_for + 1 } else { 0 };
            pushed_before = pushed;
        }
    };
    timeout(Duration::from_secs(20), no_more).await.expect("clients that do not read stop the gateway");
    assert!(pushed_before >= WEBSOCKETS * 64 * 1024, "only {pushed_before} bytes were sent");
    let grown = memory.growth();
    print_now(format_args!(
        "  the kernel took {} MiB of the gateway, loopgate grew by {} KiB",
        pushed_before as u64 / MIB,
        grown / 1024
    ));
    grown
}

//! Drain: requests in flight complete, every client is notified, and none can delay the end
//! forever.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::{
    AGENT, Harness, OUTSIDER, PROTOCOLS, TRUSTED_PROXY, h2_request, read_whole_body, request_text, start_process,
};

#[tokio::test]
async fn a_drain_completes_hundreds_of_requests_and_websockets() {
    let harness = Harness::start_with(|config| config.limits.gateway_requests = 1000).await;
    let source = |number: usize| if number.is_multiple_of(3) { AGENT } else { OUTSIDER };
    const H1_REQUESTS: usize = 100;
    const H2_CONNECTIONS: usize = 10;
    const STREAMS: usize = 20;
    const HELD_REQUESTS: usize = H1_REQUESTS + H2_CONNECTIONS * STREAMS;
    const UPLOADS: usize = 20;
    const WEBSOCKETS: usize = 100;
    let mut h1 = Vec::new();
    for number in 0..H1_REQUESTS {
        let mut client = harness.connect_h1(source(number)).await;
        client.send(request_text("GET /held", "")).await.unwrap();
        h1.push(client);
    }
    let mut h2 = Vec::new();
    for number in 0..H2_CONNECTIONS {
        let mut client = harness.connect_h2(source(number)).await;
        for _ in 0..STREAMS {
            client = client.ready().await.unwrap();
            h2.push(client.send_request(h2_request("GET /held", &[]), true).unwrap().0);
        }
    }
    let mut uploads = Vec::new();
    for number in 0..UPLOADS {
        let mut client = harness.connect_h1(source(number)).await;
        client.send(request_text("POST /echo", "Content-Length: 8\r\n") + "half").await.unwrap();
        uploads.push(client);
    }
    let mut sockets = Vec::new();
    for number in 0..WEBSOCKETS {
        sockets.push(harness.open_websocket(PROTOCOLS[number % 2], source(number), "/ws").await);
    }
    // The gateway records an upload only when it is complete.
    harness.gateway.wait_for_requests(HELD_REQUESTS + WEBSOCKETS).await;

    let begun = Instant::now();
    let h1 = join_all(h1.into_iter().map(|mut client| async move {
        let response = client.read_response().await.expect("a whole response");
        assert_eq!(
            (response.status(), response.text().as_str(), response.field("connection")),
            (200, "held", Some("close"))
        );
        assert!(client.read_rest().await.is_empty());
    }));
    let h2 = join_all(h2.into_iter().map(|response| async move {
        let mut response = response.await.unwrap();
        assert_eq!(
            (response.status().as_u16(), read_whole_body(response.body_mut()).await.unwrap()),
            (200, b"held".to_vec())
        );
    }));
    let uploads = join_all(uploads.into_iter().map(|mut client| async move {
        client.send("half").await.unwrap();
        assert_eq!(client.read_response().await.expect("a whole response").text(), "halfhalf");
    }));
    let sockets = join_all(sockets.into_iter().map(|mut socket| async move {
        let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("no close frame") };
        assert_eq!(frame.code, CloseCode::Away);
        while let Some(Ok(_)) = socket.next().await {}
    }));
    let release = async {
        // `join!` polls this after `stop`, so the clients continue only after the drain has begun.
        assert!(harness.sidecar.is_stopping());
        harness.gateway.release_held(HELD_REQUESTS);
    };
    tokio::join!(harness.sidecar.stop(), release, h1, h2, uploads, sockets);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(TcpStream::connect(harness.address).await.is_err(), "the listener is closed");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_silent_connections() {
    let harness = Harness::start_with(|config| {
        config.listen.proxy_protocol = true;
        config.limits.handshake_timeout = Duration::from_secs(30);
    })
    .await;
    // The first is silent before its handshake, the second before its PROXY header.
    let silent = [harness.connect_tcp(OUTSIDER).await, harness.connect_tcp(TRUSTED_PROXY).await];
    // The silent connections were accepted before this one.
    let status = harness.connect_h1(OUTSIDER).await.send_request(request_text("GET /", "")).await.status();
    assert_eq!(status, 200, "silent connections do not keep another client from the gateway");
    let begun = Instant::now();
    harness.sidecar.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(silent);
}

#[tokio::test]
async fn sigterm_waits_for_requests_in_flight_and_exits_with_0() {
    let sidecar = start_process(&[], "").await;
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /held", "")).await.unwrap();
    sidecar.gateway.wait_for_requests(1).await;
    sidecar.process().signal(Signal::SIGTERM);
    sidecar.process().wait_for_log("stopping").await;
    sidecar.gateway.release_held(1);
    assert_eq!(client.read_response().await.unwrap().text(), "held");
    assert_eq!(sidecar.process().wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn the_drain_timeout_aborts_what_does_not_end() {
    let sidecar = start_process(&["--drain-timeout=300ms"], "").await;
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /stalls", "")).await.unwrap();
    sidecar.gateway.wait_for_requests(1).await;
    let begun = Instant::now();
    sidecar.process().signal(Signal::SIGTERM);
    assert_eq!(sidecar.process().wait_for_exit().await.code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(client.read_response().await.is_none());
}

#[tokio::test]
async fn a_reloaded_drain_timeout_holds_for_open_connections() {
    let sidecar = start_process(&["--access-log"], "[limits]\ndrain_timeout = \"1h\"\n").await;
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /stalls", "")).await.unwrap();
    sidecar.gateway.wait_for_requests(1).await;
    std::fs::write(sidecar.config_file(), "[limits]\ndrain_timeout = \"300ms\"\n").unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    sidecar.process().wait_for_log("configuration reloaded").await;
    sidecar.process().signal(Signal::SIGTERM);
    let line = sidecar.process().wait_for_log("\"path\":\"/stalls\"").await;
    assert!(line.contains("\"end\":\"drain_timeout\""), "{line}");
    assert_eq!(sidecar.process().wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_reloaded_drain_timeout_holds_for_busy_websockets() {
    let sidecar = start_process(&[], "[limits]\ndrain_timeout = \"1h\"\n").await;
    let mut sockets = Vec::new();
    for protocol in PROTOCOLS {
        sockets.push(sidecar.open_websocket(protocol, OUTSIDER, "/ws").await);
    }
    std::fs::write(sidecar.config_file(), "[limits]\ndrain_timeout = \"4s\"\n").unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    sidecar.process().wait_for_log("configuration reloaded").await;
    sidecar.process().signal(Signal::SIGTERM);
    let closed = join_all(sockets.iter_mut().map(|socket| async {
        loop {
            let _ = socket.send(Message::text("busy")).await;
            match socket.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code),
                Some(Ok(_)) => {}
                _ => return None,
            }
        }
    }));
    assert_eq!(timeout(Duration::from_secs(20), closed).await.unwrap(), [Some(CloseCode::Away); PROTOCOLS.len()]);
    assert_eq!(sidecar.process().wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_is_denied_during_the_drain_is_cut_off() {
    let sidecar = start_process(&["--drain-timeout=1h"], "[external]\ndeny = []\n").await;
    let mut denied = sidecar.connect_h1(OUTSIDER).await;
    let mut other = sidecar.connect_h1("127.0.0.4").await;
    for client in [&mut denied, &mut other] {
        client.send(request_text("GET /held", "")).await.unwrap();
    }
    sidecar.gateway.wait_for_requests(2).await;
    sidecar.process().signal(Signal::SIGTERM);
    sidecar.process().wait_for_log("stopping").await;
    std::fs::write(sidecar.config_file(), format!("[external]\ndeny = [\"{OUTSIDER}\"]\n")).unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    assert!(timeout(Duration::from_secs(10), denied.read_response()).await.expect("still open").is_none());
    sidecar.gateway.release_held(2);
    assert_eq!(other.read_response().await.unwrap().text(), "held");
    assert_eq!(sidecar.process().wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_exits_at_once() {
    for (first, second) in [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGINT, Signal::SIGTERM)] {
        let sidecar = start_process(&["--drain-timeout=1h"], "").await;
        let mut client = sidecar.connect_h1(OUTSIDER).await;
        client.send(request_text("GET /stalls", "")).await.unwrap();
        sidecar.gateway.wait_for_requests(1).await;
        sidecar.process().signal(first);
        sidecar.process().wait_for_log("stopping").await;
        sidecar.process().signal(second);
        assert_eq!(sidecar.process().wait_for_exit().await.code(), Some(0));
        sidecar.process().wait_for_log("second stop signal").await;
    }
}

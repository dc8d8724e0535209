//! Bodies continue after each pause, in whatever order client and gateway send and read.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use crate::harness::{Harness, OUTSIDER, h2_request, read_whole_body, request_text};
use loopgate_test_support::fake_gateway::pattern_byte;

/// The time limit of each step. It is longer than any step takes, so that only a hang fails.
const SOON: Duration = Duration::from_secs(30);
/// Long enough for all buffers on the way to fill.
const PAUSE: Duration = Duration::from_millis(300);
/// More bytes than all buffers on the way hold.
const MUCH: usize = 20_000_000;

/// Waits before `next` further bytes are read, after `received` bytes: long before the first byte
/// and halfway, and briefly within the first hundredth.
async fn pause_reading(received: usize, next: usize) {
    if received == 0 || (received < MUCH / 2) != (received + next < MUCH / 2) {
        sleep(PAUSE).await;
    } else if received < MUCH / 100 {
        sleep(Duration::from_millis(2)).await;
    }
}

fn assert_pattern(body: &[u8], name: &str) {
    assert!(body.len() == MUCH && body.iter().enumerate().all(|(at, byte)| *byte == pattern_byte(at)), "{name}");
}

#[tokio::test]
async fn a_download_continues_after_each_pause_of_its_client() {
    let harness = Harness::start().await;
    let reading = async {
        let mut client = harness.connect_h1(OUTSIDER).await;
        for path in ["/large", "/large-chunks"] {
            let head = client.ask_head(request_text(&format!("GET {path}?{MUCH}"), "")).await;
            let mut body = Vec::new();
            while body.len() < MUCH {
                pause_reading(body.len(), 65_536).await;
                let is_chunked = head.field("transfer-encoding").is_some();
                let next = if is_chunked {
                    client.read_chunk().await
                } else {
                    client.read_exactly(65_536.min(MUCH - body.len())).await
                };
                body.extend(next.expect("the body continues"));
            }
            assert_pattern(&body, path);
            if path == "/large-chunks" {
                assert_eq!(client.read_chunk().await.unwrap(), b"");
                assert_eq!(client.read_trailers().await.unwrap(), format!("x-sum: {MUCH}\r\n"));
            }
            assert_eq!(client.send_request(request_text("GET /", "")).await.text(), "hello");
        }
    };
    timeout(SOON, reading).await.expect("HTTP/1.1");
    assert_eq!(harness.gateway.connections(), 1, "its connection to the gateway can be used again");

    let harness = Harness::start().await;
    let reading = async {
        let mut client = harness.connect_h2(OUTSIDER).await;
        for path in ["/large", "/large-chunks"] {
            let (response, _) = client.send_request(h2_request(&format!("GET {path}?{MUCH}"), &[]), true).unwrap();
            let (mut stream, mut body) = (response.await.unwrap().into_body(), Vec::new());
            while let Some(data) = stream.data().await {
                let data = data.unwrap();
                pause_reading(body.len(), data.len()).await;
                stream.flow_control().release_capacity(data.len()).unwrap();
                body.extend(data);
            }
            assert_pattern(&body, path);
            let trailers = stream.trailers().await.unwrap();
            assert_eq!(trailers.is_some_and(|trailers| trailers["x-sum"] == MUCH.to_string()), path == "/large-chunks");
            let (response, _) = client.send_request(h2_request("GET /", &[]), true).unwrap();
            assert_eq!(read_whole_body(response.await.unwrap().body_mut()).await.unwrap(), b"hello");
        }
    };
    timeout(SOON, reading).await.expect("HTTP/2");
    assert_eq!(harness.gateway.connections(), 1, "its connection to the gateway can be used again");
}

#[tokio::test]
async fn a_request_and_its_response_take_turns() {
    const PIECES: [usize; 6] = [1, 20_000, 3, 200_000, 70_000, 5];
    let harness = Harness::start().await;
    let talking = async {
        let mut client = harness.connect_h1(OUTSIDER).await;
        for _ in 0..2 {
            let head = client.ask_head(request_text("POST /conversation", "Transfer-Encoding: chunked\r\n")).await;
            assert_eq!(head.status(), 200, "the response begins before the request body");
            for size in PIECES {
                let piece = vec![b'x'; size];
                client.send([format!("{size:x}\r\n").as_bytes(), &piece, b"\r\n"].concat()).await.unwrap();
                let mut received = 0;
                while received < size {
                    received += client.read_chunk().await.expect("a piece of the response").len();
                }
            }
            client.send("0\r\n\r\n").await.unwrap();
            assert_eq!(
                (client.read_chunk().await.unwrap(), client.read_trailers().await.unwrap()),
                (Vec::new(), String::new())
            );
            assert_eq!(client.send_request(request_text("GET /", "")).await.text(), "hello");
        }
    };
    timeout(SOON, talking).await.expect("HTTP/1.1");

    let talking = async {
        let mut client = harness.connect_h2(OUTSIDER).await;
        for _ in 0..2 {
            let (response, mut up) = client.send_request(h2_request("POST /conversation", &[]), false).unwrap();
            let mut down = response.await.unwrap().into_body();
            for size in PIECES {
                up.send_data(Bytes::from(vec![b'x'; size]), false).unwrap();
                let mut received = 0;
                while received < size {
                    let data = down.data().await.expect("a piece of the response").unwrap();
                    down.flow_control().release_capacity(data.len()).unwrap();
                    received += data.len();
                }
            }
            up.send_data(Bytes::new(), true).unwrap();
            assert_eq!(read_whole_body(&mut down).await.unwrap(), b"");
        }
    };
    timeout(SOON, talking).await.expect("HTTP/2");
}

/// Many clients read a response only after they have sent the whole request.
#[tokio::test]
async fn an_upload_continues_while_the_client_does_not_read_the_response() {
    let harness = Harness::start().await;
    let uploading = async {
        let mut client = harness.connect_h1(OUTSIDER).await;
        for _ in 0..2 {
            let request = format!("POST /large-early?{MUCH}");
            client.send(request_text(&request, &format!("Content-Length: {MUCH}\r\n"))).await.unwrap();
            sleep(PAUSE).await;
            client.send(vec![b'x'; MUCH]).await.unwrap();
            let head = client.read_head().await.expect("a response");
            assert_eq!(head.status(), 200);
            assert_pattern(&client.read_exactly(MUCH).await.expect("the whole response"), "a late reader");
        }
        assert_eq!(client.send_request(request_text("GET /", "")).await.text(), "hello");
    };
    timeout(SOON, uploading).await.expect("HTTP/1.1");
    assert_eq!(harness.gateway.connections(), 1, "its connection to the gateway can be used again");
}

#[tokio::test]
async fn a_response_that_ends_before_its_request_keeps_both_connections() {
    let early = async {
        let harness = Harness::start().await;
        let mut client = harness.connect_h1(OUTSIDER).await;
        for number in 1..=3 {
            let response = client.send_request(request_text("POST /early", "Content-Length: 4\r\n")).await;
            assert_eq!(response.text(), "early");
            client.send("body").await.unwrap();
            assert_eq!(harness.gateway.wait_for_requests(number).await[number - 1].body, b"body");
        }
        assert_eq!(harness.gateway.connections(), 1, "over HTTP/1.1");

        let harness = Harness::start().await;
        let mut client = harness.connect_h2(OUTSIDER).await;
        for number in 1..=3 {
            let (response, mut up) =
                client.send_request(h2_request("POST /early", &[("content-length", "4")]), false).unwrap();
            assert_eq!(read_whole_body(response.await.unwrap().body_mut()).await.unwrap(), b"early");
            up.send_data(Bytes::from_static(b"body"), true).unwrap();
            assert_eq!(harness.gateway.wait_for_requests(number).await[number - 1].body, b"body");
        }
        assert_eq!(harness.gateway.connections(), 1, "over HTTP/2");
    };
    timeout(SOON, early).await.expect("neither side waits");
}

#[tokio::test]
async fn streams_continue_while_another_one_is_not_read() {
    let harness = Harness::start().await;
    let stream = harness.handshake(harness.connect_tcp(OUTSIDER).await, "h2").await.unwrap();
    // The connection's window is larger than a stream's, so the unread stream leaves room for the
    // others.
    let mut settings = h2::client::Builder::new();
    let settings = settings.initial_window_size(65_535).initial_connection_window_size(1 << 20);
    let (client, connection) = settings.handshake::<_, Bytes>(stream).await.unwrap();
    harness.tasks.spawn(async move {
        let _ = connection.await;
    });
    let mut bodies = Vec::new();
    for _ in 0..4 {
        let mut client = client.clone().ready().await.unwrap();
        let (response, _) = client.send_request(h2_request("GET /large?5000000", &[]), true).unwrap();
        bodies.push(response.await.unwrap().into_body());
    }
    let mut unread = bodies.remove(0);
    let others = join_all(bodies.iter_mut().map(read_whole_body));
    for body in timeout(SOON, others).await.expect("the others continue") {
        assert_eq!(body.unwrap().len(), 5_000_000);
    }
    sleep(PAUSE).await;
    assert_eq!(
        timeout(SOON, read_whole_body(&mut unread)).await.expect("the last one continues").unwrap().len(),
        5_000_000
    );
}

#[tokio::test]
async fn clients_are_served_after_others_disconnect_midway() {
    let harness = Harness::start().await;
    let hello = || async {
        for protocol in crate::harness::PROTOCOLS {
            let asked = timeout(SOON, harness.send_request(protocol, OUTSIDER, "GET /", &[])).await;
            assert_eq!(asked.expect("an answer"), (200, "hello".into()), "{protocol:?}");
        }
    };
    const ROUNDS: usize = 10;
    const CONNECTIONS_OF_A_ROUND: usize = 4;
    for round in 0..ROUNDS {
        let mut h1 = harness.connect_h1(OUTSIDER).await;
        h1.ask_head(request_text(&format!("GET /large?{MUCH}"), "")).await;
        let mut talk = harness.connect_h1(OUTSIDER).await;
        talk.ask_head(request_text("POST /conversation", "Transfer-Encoding: chunked\r\n") + "1\r\na\r\n").await;
        let mut h2 = harness.connect_h2(OUTSIDER).await;
        let (response, mut up) = h2.send_request(h2_request("POST /conversation", &[]), false).unwrap();
        up.send_data(Bytes::from_static(b"a"), false).unwrap();
        let response = response.await.unwrap();
        let (large, _) = h2.send_request(h2_request(&format!("GET /large?{MUCH}"), &[]), true).unwrap();
        let large = large.await.unwrap();
        if round % 2 == 0 {
            hello().await;
        }
        drop((h1, talk, up, response, large, h2));
        hello().await;
    }
    let waiting = timeout(SOON, harness.gateway.wait_for_closed(ROUNDS * CONNECTIONS_OF_A_ROUND));
    waiting.await.expect("the gateway connections of clients that left are closed");
}

/// There are more idle connections than one poll of a task can look at within tokio's budget
/// (`tokio::task::coop`).
#[tokio::test]
async fn a_request_passes_many_connections_that_the_gateway_has_closed() {
    const IDLE: usize = 200;
    let harness = Harness::start_with(|config| {
        config.limits.h2_streams = 1000;
        config.limits.gateway_requests = 1000;
    })
    .await;
    for round in 0..2 {
        let mut client = harness.connect_h2(OUTSIDER).await;
        let mut responses = Vec::new();
        for _ in 0..IDLE {
            client = client.ready().await.unwrap();
            responses.push(client.send_request(h2_request("GET /held", &[]), true).unwrap().0);
        }
        harness.gateway.wait_for_requests(round * (IDLE + 1) + IDLE).await;
        harness.gateway.release_held(IDLE);
        for response in responses {
            assert_eq!(read_whole_body(response.await.unwrap().body_mut()).await.unwrap(), b"held");
        }
        let closed = harness.gateway.connections();
        harness.gateway.kill();
        harness.gateway.wait_for_closed(closed).await;
        harness.gateway.restart();
        let (response, _) = client.send_request(h2_request("GET /", &[]), true).unwrap();
        assert_eq!(timeout(SOON, response).await.expect("an answer").unwrap().status(), 200);
    }
}

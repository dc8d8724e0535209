//! Slow clients and a slow gateway: each phase has a time limit, and connections that are idle for
//! a good reason stay open.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{AGENT, Harness, OUTSIDER, PROTOCOLS, Protocol, h2_request, read_whole_body, request_text};
use loopgate::config::parse;
use loopgate_test_support::fake_gateway::pattern_byte;
use loopgate_test_support::raw_h2::*;
use loopgate_test_support::raw_http::RawHttp;

/// The timeout under test.
const SHORT: Duration = Duration::from_millis(400);
/// The time in which a short timeout has certainly passed. It is shorter than the default of
/// `limits.stall_timeout`.
const LONG_ENOUGH: Duration = Duration::from_secs(10);
/// More than all buffers on the way hold.
const MUCH: usize = 40_000_000;

#[tokio::test]
async fn a_slow_head_gets_408_also_on_a_kept_connection() {
    let harness = Harness::start_with(|config| config.limits.head_timeout = SHORT).await;
    for heads_before in [0, 1] {
        let mut client = harness.connect_h1(OUTSIDER).await;
        for _ in 0..heads_before {
            assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
        }
        let begun = Instant::now();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
        // Further bytes of the head do not extend the timeout.
        while begun.elapsed() < LONG_ENOUGH && client.send("X").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
        assert!(begun.elapsed() >= SHORT && begun.elapsed() < LONG_ENOUGH, "{:?}", begun.elapsed());

        let mut client = harness.connect_h1(OUTSIDER).await;
        for _ in 0..heads_before {
            assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
        }
        client.send("GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
        let response = client.read_response().await.unwrap();
        assert_eq!((response.status(), response.field("connection")), (408, Some("close")));
        assert!(client.read_rest().await.is_empty());
    }
    assert_eq!(harness.gateway.requests().len(), 2);
}

#[tokio::test]
async fn a_408_never_interrupts_another_response() {
    let harness = Harness::start_with(|config| {
        config.limits.head_timeout = SHORT;
        config.limits.stall_timeout = 4 * SHORT;
    })
    .await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text(&format!("GET /large?{MUCH}"), "") + "GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    // The head timeout does not run while the first response is on its way.
    sleep(2 * SHORT).await;
    let mut first = client.read_head().await.unwrap();
    assert!(client.read_body(&mut first, false).await);
    assert!(first.body.len() == MUCH && first.body.iter().enumerate().all(|(at, byte)| *byte == pattern_byte(at)));
    assert_eq!(client.read_response().await.unwrap().status(), 408);
    assert!(client.read_rest().await.is_empty());
}

#[tokio::test]
async fn a_body_that_stops_gets_408() {
    let harness = Harness::start_with(|config| config.limits.stall_timeout = SHORT).await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text("POST /echo", "Content-Length: 10\r\n") + "123").await.unwrap();
    assert_eq!(client.read_response().await.unwrap().status(), 408);
    // The rest of the body can't be distinguished from a request.
    assert!(client.read_rest().await.is_empty(), "the connection is closed without a further response");

    let mut client = harness.connect_h2(OUTSIDER).await;
    let (response, mut body) = client.send_request(h2_request("POST /echo", &[]), false).unwrap();
    body.send_data("123".into(), false).unwrap();
    assert_eq!(response.await.unwrap().status(), 408);
    let (response, _) = client.ready().await.unwrap().send_request(h2_request("GET /", &[]), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200, "the connection stays usable");
    harness.gateway.wait_for_closed(2).await;
}

#[tokio::test]
async fn a_gateway_that_stops_reading_a_body_gives_504() {
    let harness = Harness::start_with(|config| config.limits.request_timeout = SHORT).await;
    let (read, mut write) = tokio::io::split(harness.connect_h1(OUTSIDER).await.stream);
    let mut client = RawHttp::new(tokio::io::join(read, tokio::io::sink()));
    let head = request_text("POST /unread", &format!("Content-Length: {MUCH}\r\n"));
    let sending = async {
        let _ = write.write_all(&[head.as_bytes(), &vec![b'x'; MUCH]].concat()).await;
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = sending => {}
        response = client.read_response() => assert_eq!(response.unwrap().status(), 504),
    }

    let mut client = harness.connect_h2(OUTSIDER).await;
    let (response, mut body) = client.send_request(h2_request("POST /unread", &[]), false).unwrap();
    body.send_data(vec![b'x'; MUCH].into(), false).unwrap();
    assert_eq!(response.await.unwrap().status(), 504);
}

#[tokio::test]
async fn the_request_timeout_counts_from_the_last_byte_of_the_request() {
    let harness = Harness::start_with(|config| config.limits.request_timeout = 2 * SHORT).await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    let begun = Instant::now();
    assert_eq!(client.send_request(request_text("POST /stalls", "Content-Length: 4\r\n") + "body").await.status(), 504);
    let took = begun.elapsed();
    assert!(took >= 2 * SHORT && took < 4 * SHORT, "{took:?}: the timeout is not doubled for a request with a body");
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text("POST /stalls", "Content-Length: 4\r\n")).await.unwrap();
    for _ in 0..4 {
        sleep(SHORT).await;
        client.send("x").await.unwrap();
    }
    let sent = Instant::now();
    assert_eq!(client.read_response().await.unwrap().status(), 504);
    let took = sent.elapsed();
    assert!(took >= 3 * SHORT / 2 && took < 4 * SHORT, "{took:?} after the last byte");
}

#[tokio::test]
async fn a_path_has_its_own_request_timeout_on_both_lanes() {
    let harness = Harness::start_with(|config| {
        config.limits.request_timeout = SHORT;
        config.limits.stall_timeout = SHORT;
        config.limits.path_timeouts =
            ["/slow=60s", "/slow/er=600ms"].map(|text| parse::path_timeout(text).unwrap()).into();
    })
    .await;
    for client in [OUTSIDER, AGENT] {
        let answered = harness.send_request(Protocol::H1, client, "POST /slow/path?1500", &[]);
        assert_eq!(answered.await.0, 200, "an agent run outlives the timeout of other paths");
        let begun = Instant::now();
        assert_eq!(harness.send_request(Protocol::H1, client, "GET /slow/er?60000", &[]).await.0, 504);
        assert!(begun.elapsed() >= Duration::from_millis(600), "the longest prefix counts");
        assert_eq!(
            harness.send_request(Protocol::H1, client, "GET /slower?60000", &[]).await.0,
            504,
            "a prefix ends at a segment"
        );
        let other = harness.send_request(Protocol::H1, client, "GET /slow/../slow?60000", &[]);
        assert_eq!(other.await.0, 504, "a path that can be read as another one gets the timeout of other paths");
    }
}

#[tokio::test]
async fn each_request_has_the_full_timeout_on_a_reused_gateway_connection() {
    let harness = Harness::start_with(|config| config.limits.request_timeout = 2 * SHORT).await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    for pause in [Duration::ZERO, SHORT, 3 * SHORT / 2, 3 * SHORT] {
        assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
        sleep(pause).await;
        let begun = Instant::now();
        assert_eq!(client.send_request(request_text("GET /stalls", "")).await.status(), 504, "after {pause:?}");
        let took = begun.elapsed();
        assert!(took >= 2 * SHORT && took < LONG_ENOUGH, "{took:?} after {pause:?}");
    }
    assert_eq!(
        harness.gateway.connections(),
        4,
        "the second request of each pair went over the connection of the first"
    );
}

#[tokio::test]
async fn a_slow_but_steady_body_is_forwarded() {
    let harness = Harness::start_with(|config| config.limits.request_timeout = SHORT).await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text("POST /echo", "Content-Length: 10\r\n")).await.unwrap();
    for _ in 0..10 {
        sleep(SHORT / 4).await;
        client.send("x").await.unwrap();
    }
    assert_eq!(client.read_response().await.unwrap().text(), "xxxxxxxxxx");
}

#[tokio::test]
async fn a_client_that_never_reads_its_response_is_closed() {
    let harness = Harness::start_with(|config| config.limits.stall_timeout = SHORT).await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text(&format!("GET /large?{MUCH}"), "")).await.unwrap();
    harness.gateway.wait_for_closed(1).await;
    assert!(client.read_rest().await.len() < MUCH);

    for window in [0, 1] {
        let mut raw = RawH2::connect(&harness, OUTSIDER, &[(INITIAL_WINDOW, window)]).await;
        let head = request_block("GET", &format!("/large?{MUCH}"), &[]);
        let outcome = raw.send_until(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head), Outcome::is_over).await;
        assert!(outcome.closed, "{outcome:?}");
    }
    harness.gateway.wait_for_closed(3).await;
}

#[tokio::test]
async fn a_stream_that_is_never_read_is_reset_without_the_others() {
    let harness = Harness::start_with(|config| config.limits.stall_timeout = SHORT).await;
    let mut raw = RawH2::connect(&harness, OUTSIDER, &[(INITIAL_WINDOW, 0)]).await;
    let head = request_block("GET", &format!("/large?{MUCH}"), &[]);
    raw.send(&[1, 3].map(|id| frame(HEADERS, END_HEADERS | END_STREAM, id, &head)).concat()).await;
    let (begun, mut received) = (Instant::now(), 0);
    let reset = loop {
        sleep(SHORT / 20).await;
        raw.send(
            &[frame(WINDOW_UPDATE, 0, 3, &1000_u32.to_be_bytes()), frame(WINDOW_UPDATE, 0, 0, &1000_u32.to_be_bytes())]
                .concat(),
        )
        .await;
        let frame = raw.next().await.expect("the connection stays");
        match frame.kind {
            RST_STREAM => break frame,
            DATA => received += frame.payload.len(),
            _ => {}
        }
        assert!(begun.elapsed() < 30 * SHORT, "no stream was reset after {received} bytes of stream 3");
    };
    assert!(
        reset.stream == 1 && received > 0 && begun.elapsed() > 2 * SHORT,
        "{reset:?} after {received} bytes of stream 3"
    );
    harness.gateway.wait_for_closed(1).await;
    raw.send(&frame(WINDOW_UPDATE, 0, 3, &50_000_u32.to_be_bytes())).await;
    while raw.next().await.expect("stream 3 continues").kind != DATA {}
}

/// `limits.gateway_stall` holds for outsiders and for web pages on an agent's connection, and not
/// for the agent.
#[tokio::test]
async fn an_unread_response_holds_the_gateway_only_for_gateway_stall_unless_it_is_an_agents() {
    let harness = Harness::start_with(|config| config.limits.gateway_stall = SHORT).await;
    let (mut closed, target) = (0, format!("/large?{MUCH}"));
    for (source, origin) in [(OUTSIDER, None), (AGENT, Some("https://page.example")), (AGENT, None)] {
        let is_agent = source == AGENT && origin.is_none();
        let fields = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
        let mut client = harness.connect_h1(source).await;
        client.send(request_text(&format!("GET {target}"), &fields)).await.unwrap();
        if is_agent {
            assert!(timeout(5 * SHORT, harness.gateway.wait_for_closed(closed + 1)).await.is_err(), "h1 {source}");
            let mut response = client.read_head().await.unwrap();
            assert!(client.read_body(&mut response, false).await && response.body.len() == MUCH);
        } else {
            closed += 1;
            let end = timeout(LONG_ENOUGH, harness.gateway.wait_for_closed(closed)).await;
            assert!(end.is_ok(), "h1 {source} {origin:?}: still open");
            assert!(client.read_rest().await.len() < MUCH);
        }
    }

    // Over HTTP/2, only the external streams of a connection are reset.
    for (source, streams) in
        [(OUTSIDER, &[(1, None)][..]), (AGENT, &[(1, Some("https://page.example")), (3, None)][..])]
    {
        let mut raw = RawH2::connect(&harness, source, &[(INITIAL_WINDOW, 0)]).await;
        for &(id, origin) in streams {
            let fields: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().collect();
            raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, id, &request_block("GET", &target, &fields))).await;
        }
        let reset = async {
            loop {
                let frame = raw.next().await.expect("the connection stays");
                if frame.kind == RST_STREAM {
                    return frame.stream;
                }
            }
        };
        assert_eq!(timeout(LONG_ENOUGH, reset).await, Ok(1), "h2 {source}");
        sleep(3 * SHORT).await;
        raw.send(&frame(PING, 0, 0, &[7; 8])).await;
        loop {
            let frame = raw.next().await.expect("the connection stays");
            assert_ne!(frame.kind, RST_STREAM, "h2 {source}: stream {} is reset too", frame.stream);
            if frame.kind == PING && frame.payload == [7; 8] {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_but_steadily_gets_everything() {
    // Each pause is far shorter than the limit, and all pauses together are longer.
    let (size, stall, pause) = (4_000_000, Duration::from_secs(2), Duration::from_millis(10));
    let harness = Harness::start_with(|config| config.limits.stall_timeout = stall).await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text(&format!("GET /large?{size}"), "")).await.unwrap();
    client.read_head().await.unwrap();
    let (mut stream, mut received) = client.into_parts();
    let mut block = vec![0; 100_000];
    while received.len() < size {
        sleep(6 * pause).await;
        let read = stream.read(&mut block).await.unwrap();
        assert!(read > 0, "after {} bytes", received.len());
        received.extend_from_slice(&block[..read]);
    }
    assert!(received.iter().enumerate().all(|(at, byte)| *byte == pattern_byte(at)));

    let mut client = harness.connect_h2(OUTSIDER).await;
    let (response, _) = client.send_request(h2_request(&format!("GET /large?{size}"), &[]), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        // A DATA frame can be as small as one byte, so a pause comes after a number of bytes.
        if received / 16_384 != (received + data.len()) / 16_384 {
            sleep(pause).await;
        }
        received += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(received, size);
}

#[tokio::test]
async fn a_reader_that_becomes_slow_is_not_treated_as_stalled() {
    // The client reads fast until the kernel's buffers have grown, and then so slowly that a third
    // of the buffered bytes take longer than the limit.
    let (stall, piece, pause) = (Duration::from_secs(2), 20_000, Duration::from_millis(50));
    let harness = Harness::start_with(|config| config.limits.stall_timeout = stall).await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text(&format!("GET /large?{MUCH}"), "Connection: close\r\n")).await.unwrap();
    client.read_head().await.unwrap();
    let (mut stream, received) = client.into_parts();
    let (mut block, mut count) = (vec![0; 100_000], received.len());
    while count < MUCH / 4 {
        count += stream.read(&mut block).await.unwrap();
    }
    let begun = Instant::now();
    while begun.elapsed() < 4 * stall {
        count += stream.read_exact(&mut block[..piece]).await.unwrap();
        sleep(pause).await;
    }
    // Bytes in the kernel's buffers would arrive even if the sidecar had closed the connection, but
    // not the whole response.
    let mut remaining = Vec::new();
    stream.read_to_end(&mut remaining).await.unwrap();
    assert_eq!(count + remaining.len(), MUCH);
}

#[tokio::test]
async fn silent_event_streams_and_stalled_gateways_do_not_count_against_the_client() {
    let harness = Harness::start_with(|config| {
        config.limits.stall_timeout = SHORT;
        config.limits.request_timeout = SHORT;
        config.limits.idle_timeout = SHORT;
    })
    .await;
    for protocol in PROTOCOLS {
        let events = harness.send_request(protocol, OUTSIDER, "GET /events", &[]);
        let passing = async {
            for _ in 0..3 {
                sleep(2 * SHORT).await;
                harness.gateway.release_held(1);
            }
        };
        let ((status, body), ()) = tokio::join!(events, passing);
        assert_eq!((status, body.matches("event").count()), (200, 3), "{protocol:?}");
    }
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /stalls-halfway", "")).await.unwrap();
    assert_eq!(client.read_head().await.unwrap().status(), 200);
    assert_eq!(client.read_exactly(4).await.unwrap(), b"half");
    sleep(2 * SHORT).await;
    assert_eq!(harness.send_request(Protocol::H2, OUTSIDER, "GET /", &[]).await.0, 200, "other clients are served");
    let before = harness.gateway.connections();
    drop(client);
    harness.gateway.wait_for_closed(1).await;
    assert_eq!(harness.gateway.connections(), before, "no request was repeated");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_response() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h2(OUTSIDER).await;
    let (response, _) = client.send_request(h2_request("GET /stalls-halfway", &[]), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "half");
    drop(body);
    harness.gateway.wait_for_closed(1).await;
    let (response, _) = client.ready().await.unwrap().send_request(h2_request("GET /", &[]), true).unwrap();
    assert_eq!(read_whole_body(response.await.unwrap().body_mut()).await.unwrap(), b"hello");
}

#[tokio::test]
async fn idle_connections_are_closed_with_goaway_on_http_2() {
    let harness = Harness::start_with(|config| config.limits.idle_timeout = SHORT).await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
    assert!(client.read_rest().await.is_empty());
    let silent = harness.connect_h1(OUTSIDER).await.read_rest().await;
    assert!(silent.is_empty(), "a connection without a request is closed too");

    let head = request_block("GET", "/", &[]);
    for (name, bytes) in
        [("served", frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)), ("half a head", frame(HEADERS, 0, 1, &head))]
    {
        let outcome = RawH2::connect(&harness, OUTSIDER, &[]).await.send_until(&bytes, Outcome::is_over).await;
        assert!(outcome.graceful_goaway && outcome.closed && outcome.goaway.is_none(), "{name}: {outcome:?}");
    }
}

#[tokio::test]
async fn an_idle_http_2_client_has_time_to_close_after_goaway() {
    let harness = Harness::start_with(|config| config.limits.idle_timeout = SHORT).await;
    let mut raw = RawH2::connect(&harness, OUTSIDER, &[]).await;
    while raw.next().await.expect("a GOAWAY").kind != GOAWAY {}
    // The client does not answer the PING that came with the GOAWAY, but sends PING frames of its
    // own.
    let begun = Instant::now();
    let mut pongs = 0;
    while begun.elapsed() < 3 * SHORT {
        raw.send(&frame(PING, 0, 0, &[7; 8])).await;
        while raw.next().await.expect("the connection stays for a while").payload != [7; 8] {}
        pongs += 1;
        sleep(SHORT / 4).await;
    }
    assert!(pongs > 2, "{pongs}");
    let outcome = raw.send_until(&[], Outcome::is_over).await;
    assert!(outcome.closed && begun.elapsed() < LONG_ENOUGH, "{outcome:?} after {:?}", begun.elapsed());
}

#[tokio::test]
async fn an_http_2_client_that_never_ends_its_preface_or_settings_is_cut_at_the_head_timeout() {
    let harness = Harness::start_with(|config| config.limits.head_timeout = SHORT).await;
    let whole = [PREFACE, &settings(&[(INITIAL_WINDOW, 1)])].concat();
    for sent in [0, 5, PREFACE.len(), PREFACE.len() + 5, whole.len() - 1] {
        let mut stream = harness.handshake(harness.connect_tcp(OUTSIDER).await, "h2").await.unwrap();
        stream.write_all(&whole[..sent]).await.unwrap();
        let mut received = Vec::new();
        let end = timeout(LONG_ENOUGH, stream.read_to_end(&mut received)).await;
        assert!(end.is_ok(), "still open after {sent} of {} bytes", whole.len());
        assert!(!received.starts_with(b"HTTP/1.1"), "{sent}");
    }
    let mut stream = harness.handshake(harness.connect_tcp(OUTSIDER).await, "h2").await.unwrap();
    stream.write_all(&whole).await.unwrap();
    let mut received = Vec::new();
    // A client that has begun HTTP/2 is idle, and the idle timeout is longer.
    let end = timeout(4 * SHORT, stream.read_to_end(&mut received)).await;
    assert!(end.is_err(), "the connection was closed after a whole preface and SETTINGS");
}

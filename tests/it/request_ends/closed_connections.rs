//! The ends of the requests on an HTTP/2 connection that loopgate closes because of something that
//! the client sent, and heads that did not become requests.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::{Ends, access_log, assert_labels, count_logged, counts, wait_for_ends};
use crate::harness::{OUTSIDER, request_text};
use loopgate_test_support::raw_h2::*;
use loopgate_test_support::sidecar::SidecarWithGateway;

pub const ENDS_OF_CLOSED_CONNECTIONS: [&str; 4] = ["connection_closed", "bad_head", "too_many_streams", "client_gone"];

const ALL: u8 = END_STREAM | END_HEADERS;

fn get(path: &str, stream: u32) -> Vec<u8> {
    frame(HEADERS, ALL, stream, &request_block("GET", path, &[]))
}

/// A head without a path.
fn malformed_head(stream: u32) -> Vec<u8> {
    frame(HEADERS, ALL, stream, &header_block(&[(":method", "GET"), (":scheme", "https"), (":authority", "a")]))
}

/// A head whose block can't be decoded.
fn unreadable_head(stream: u32) -> Vec<u8> {
    frame(HEADERS, ALL, stream, &[kept_field(b"x", b"y"), vec![0xff; 12]].concat())
}

/// Connects and sends `head`, a request on stream 1. Waits until the gateway has received the
/// request, unless its body is not complete.
async fn connect_with_request(sidecar: &SidecarWithGateway, head: &[u8]) -> RawH2 {
    let before = sidecar.gateway.requests().len();
    let mut client = RawH2::connect(sidecar, OUTSIDER, &[]).await;
    client.send(head).await;
    if head[4] == ALL {
        sidecar.gateway.wait_for_requests(before + 1).await;
    } else {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    client
}

#[tokio::test]
async fn each_request_on_a_connection_that_loopgate_closes_has_one_label() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&["--h2-streams=30", "--gateway-requests=1000"], "").await;
    let upload = frame(HEADERS, END_HEADERS, 1, &request_block("POST", "/held", &[]));
    let connect = header_block(&[(":method", "CONNECT"), (":authority", "a:1"), ("content-length", "3")]);
    let many = |what: fn(u32) -> Vec<u8>, count| (0..count).flat_map(|at| what(2 * at + 3)).collect::<Vec<_>>();
    let large = [frame(HEADERS, END_STREAM, 1, b""), frame(CONTINUATION, 0, 1, &[0; 16_000]).repeat(2)].concat();
    let (mut wanted, mut spans, mut heads) = (Vec::new(), Vec::new(), 0);
    for (name, head, bytes, refused, dropped) in [
        ("an unreadable head", get("/held", 1), unreadable_head(3), vec!["bad_head"], 0),
        ("... after a head", get("/held", 1), [get("/", 3), unreadable_head(5)].concat(), vec!["bad_head"], 1),
        ("a flood", get("/held", 1), frame(PING, ACK, 0, &[0; 8]).repeat(10_001), vec![], 0),
        ("a CONNECT with a body", get("/held", 1), frame(HEADERS, END_HEADERS, 3, &connect), vec!["bad_head"], 0),
        // The resets of these streams are no longer written.
        ("too many malformed heads", get("/held", 1), many(malformed_head, 21), vec![], 21),
        (
            "too many streams",
            get("/held", 1),
            many(|stream| get("/held", stream), 50),
            // 30 streams may be open: the first request and 29 of these. 20 are refused, and the
            // next one closes the connection.
            vec!["too_many_streams"; 20],
            30,
        ),
        // These cases come last because the gateway may receive their requests later.
        ("an unreadable head while a body is sent", upload.clone(), unreadable_head(3), vec!["bad_head"], 0),
        ("trailers that are too large", upload, large, vec![], 0),
    ] {
        let mut client = connect_with_request(&sidecar, &head).await;
        let outcome = client.send_until(&bytes, Outcome::is_over).await;
        assert!(outcome.is_over(), "{name}: {outcome:?}");
        heads += refused.len() + dropped;
        spans.push("connection_closed");
        wanted.extend(vec!["connection_closed"; 1 + dropped]);
        wanted.extend(refused);
        let lines = wait_for_ends(&sidecar, wanted.len() as u64).await;
        assert_eq!(count_logged(&lines), counts(wanted.iter().copied()), "{name}");
    }

    // The client resets a stream with a malformed head before it is refused.
    let mut client = RawH2::connect(&sidecar, OUTSIDER, &[]).await;
    client.send(&[malformed_head(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), get("/", 3)].concat()).await;
    let outcome = client.send_until(b"", |outcome| !outcome.heads.is_empty()).await;
    assert_eq!((&outcome.resets[..], outcome.heads.len()), (&[][..], 1), "{outcome:?}");
    wanted.extend(["client_gone", "complete"]);
    spans.push("complete");

    let labels = counts(wanted.iter().copied());
    assert_labels(&labels, &[&ENDS_OF_CLOSED_CONNECTIONS[..], &["complete"]].concat());
    let lines = ends.check_counts(&sidecar, &labels).await;
    for line in lines.iter().filter(|line| line["end"] == "connection_closed") {
        assert_eq!((&line["status"], &line["bytes"]), (&Value::Null, &0.into()), "{line}");
    }
    let without = lines.iter().filter(|line| line["path"].is_null());
    assert_eq!(without.count(), heads + 1, "heads without a request");
    ends.check_spans(&sidecar, &counts(spans)).await;
}

#[tokio::test]
async fn a_stream_that_comes_after_the_goaway_of_a_drain_is_counted() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&["--drain-timeout=2s"], "").await;
    let mut client = connect_with_request(&sidecar, &get("/slow?700", 1)).await;
    sidecar.process().signal(Signal::SIGTERM);
    // The client answers the PING between the two GOAWAY frames, as a client must.
    let mut goaways = 0;
    while goaways < 2 {
        let received = client.next().await.expect("a frame");
        match received.kind {
            GOAWAY => goaways += 1,
            PING if received.flags & ACK == 0 => client.send(&frame(PING, ACK, 0, &received.payload)).await,
            _ => {}
        }
    }
    client.send(&get("/", 3)).await;
    let outcome = client.send_until(b"", Outcome::is_over).await;
    assert_eq!(outcome.heads.len(), 1, "{outcome:?}");
    assert!(sidecar.process().wait_for_exit().await.success());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(count_logged(&access_log(&sidecar)), counts(["complete", "connection_closed"]));
}

/// The request and the frame that closes its connection arrive in one read.
#[tokio::test]
async fn a_good_request_before_an_error_of_its_connection_is_not_refused() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&[], "").await;
    let mut count = 0;
    for fault in [
        frame(PING, 0, 0, &[0; 7]),
        frame(DATA, 0, 0, b"x"),
        frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
        frame(WINDOW_UPDATE, 0, 0, &i32::MAX.to_be_bytes()),
        frame(DATA, 0, 9, b"x"),
        settings(&[(INITIAL_WINDOW, u32::MAX)]),
    ] {
        let mut client = RawH2::connect(&sidecar, OUTSIDER, &[]).await;
        let outcome = client.send_until(&[get("/held", 1), fault].concat(), Outcome::is_over).await;
        assert!(outcome.is_over() && outcome.heads.is_empty(), "{outcome:?}");
        count += 1;
    }
    ends.check_counts(&sidecar, &counts(vec!["connection_closed"; count])).await;
}

/// A window beyond 2^31 - 1 resets its stream alone (RFC 9113 section 6.9.1).
#[tokio::test]
async fn a_stream_that_is_reset_for_its_clients_error_has_one_label() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&[], "").await;
    let mut client = connect_with_request(&sidecar, &get("/held", 1)).await;
    let update = frame(WINDOW_UPDATE, 0, 1, &i32::MAX.to_be_bytes());
    let outcome = client.send_until(&update, |outcome| !outcome.resets.is_empty() || outcome.is_over()).await;
    assert_eq!((&outcome.resets[..], outcome.is_over()), (&[(1, 3)][..], false), "{outcome:?}");
    for line in ends.check_counts(&sidecar, &counts(["bad_body"])).await {
        assert_eq!(line["status"], Value::Null, "{line}");
    }
}

#[tokio::test]
async fn a_header_block_that_does_not_end_in_time_is_a_head_timeout_and_closes_its_connection() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&["--head-timeout=1s"], "").await;
    let block = request_block("GET", "/", &[]);
    let whole = frame(HEADERS, ALL, 3, &block);
    for partial_head in [frame(HEADERS, END_STREAM, 3, &block), whole[..whole.len() - 1].to_vec(), whole[..9].to_vec()]
    {
        for first_request in [get("/held", 1), get("/", 1)] {
            let mut client = connect_with_request(&sidecar, &first_request).await;
            let began = std::time::Instant::now();
            let outcome = client.send_until(&partial_head, Outcome::is_over).await;
            assert_eq!(outcome.goaway, Some(11), "{outcome:?}");
            assert!((500..5000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        }
    }
    // A head that arrives slowly, but in time, is served.
    let mut client = RawH2::connect(&sidecar, OUTSIDER, &[]).await;
    for piece in whole.chunks(whole.len() / 3) {
        tokio::time::sleep(Duration::from_millis(150)).await;
        client.send(piece).await;
    }
    let outcome = client.send_until(b"", |outcome| !outcome.heads.is_empty() || outcome.is_over()).await;
    assert_eq!(outcome.heads.len(), 1, "{outcome:?}");
    let mut wanted = vec!["head_timeout"; 6];
    wanted.extend(["connection_closed"; 3]);
    wanted.extend(["complete"; 4]);
    ends.check_counts(&sidecar, &counts(wanted)).await;
}

/// hyper looks for the end of the connection as soon as it has read a request, before the request
/// is served.
#[tokio::test]
async fn each_pipelined_request_has_a_log_line_if_the_client_closes_after_them() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&[], "").await;
    let rounds = 10;
    for _ in 0..rounds {
        let mut client = sidecar.connect_h1(OUTSIDER).await;
        client.send(["GET /", "GET /", "GET /slow?50"].map(|line| request_text(line, "")).concat()).await.unwrap();
        client.stream.shutdown().await.unwrap();
        client.read_rest().await;
    }
    let lines = wait_for_ends(&sidecar, 3 * rounds).await;
    let found = count_logged(&lines);
    assert_eq!(found.values().sum::<u64>(), 3 * rounds, "{found:?}");
    assert!(found["complete"] >= 2 * rounds && found.len() <= 2, "{found:?}");
    assert_eq!(super::count_in_metrics(&sidecar), found);
}

//! Request heads that are refused before they become requests.

use serde_json::Value;

use super::{Ends, assert_labels, counts};
use crate::harness::{OUTSIDER, h2_request, request_text};
use loopgate_test_support::raw_h2::{
    CONTINUATION, END_HEADERS, END_STREAM, HEADERS, Outcome, RawH2, frame, header_block, kept_field, request_block,
};

pub const ENDS_OF_HEADS: [&str; 7] = [
    "bad_head",
    "ambiguous_length",
    "target_too_long",
    "head_too_large",
    "head_timeout",
    "too_many_streams",
    "complete",
];

#[tokio::test]
async fn a_head_that_is_refused_has_one_label() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&["--head-bytes=131072", "--head-timeout=1s", "--h2-streams=2"], "").await;
    let (mut wanted, mut bodies) = (Vec::new(), Vec::new());
    for (label, status, text) in [
        ("bad_head", 400, "nonsense\r\n\r\n".to_owned()),
        ("bad_head", 400, "GET / HTTP/1.1\r\nHost: a\r\nX A: b\r\n\r\n".to_owned()),
        ("bad_head", 400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("bad_head", 400, request_text("POST /", "Transfer-Encoding: gzip\r\n")),
        ("bad_head", 400, request_text("POST /", "Content-Length: 18446744073709551616\r\n")),
        ("ambiguous_length", 400, request_text("POST /", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n")),
        ("target_too_long", 414, request_text(&format!("GET /{}", "a".repeat(70_000)), "")),
        ("head_too_large", 431, request_text("GET /", &"X: y\r\n".repeat(200))),
        ("head_timeout", 408, "GET / HTTP/1.1\r\nHo".to_owned()),
    ] {
        let mut client = sidecar.connect_h1(OUTSIDER).await;
        client.send(&text).await.unwrap();
        let response = client.read_response().await.unwrap();
        let body: Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!((response.status(), &body["error"]["type"]), (status, &label.into()), "{text}");
        assert!(client.ends_cleanly().await, "{label}: without a close_notify");
        wanted.push((label, Some(status)));
        bodies.push((label, response.body.len()));
    }
    // A head that is refused after a request on the same connection.
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
    assert_eq!(client.send_request("nonsense\r\n\r\n").await.status(), 400);
    wanted.extend([("complete", Some(200)), ("bad_head", Some(400))]);

    // Over HTTP/2: a head without a path next to a request, and then a block that can't be decoded.
    let complete_head = END_STREAM | END_HEADERS;
    let mut client = RawH2::connect(&sidecar, OUTSIDER, &[]).await;
    let pathless = header_block(&[(":method", "GET"), (":scheme", "https"), (":authority", "a")]);
    let bytes = [
        frame(HEADERS, complete_head, 1, &pathless),
        frame(HEADERS, complete_head, 3, &request_block("GET", "/", &[])),
    ]
    .concat();
    let outcome = client.send_until(&bytes, |outcome| !outcome.resets.is_empty() && !outcome.heads.is_empty()).await;
    assert_eq!((&outcome.resets[..], &outcome.heads[..]), (&[(1, 1)][..], &[(3, 0x88)][..]), "{outcome:?}");
    let unreadable = [kept_field(b"x", b"y"), vec![0xff; 12]].concat();
    let outcome = client.send_until(&frame(HEADERS, complete_head, 5, &unreadable), Outcome::is_over).await;
    assert!(outcome.is_over(), "{outcome:?}");
    wanted.extend([("bad_head", None), ("complete", Some(200)), ("bad_head", None)]);
    // This head is twice as large as permitted, so h2 refuses it, without a body.
    let long = "y".repeat(280_000);
    let (response, _) =
        sidecar.connect_h2(OUTSIDER).await.send_request(h2_request("GET /", &[("x", &long)]), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
    wanted.push(("head_too_large", Some(431)));

    // Header blocks that continue in CONTINUATION frames, and are refused before their end.
    let plain = request_block("GET", "/", &[]);
    let malformed = [plain.clone(), header_block(&[("connection", "x")])].concat();
    let large = [plain.clone(), kept_field(b"x", &[b'y'; 4000])].concat();
    // Each byte repeats the field of `large`: in all, more than h2 is ready to ignore.
    let repeated = frame(CONTINUATION, 0, 1, &[0xbe; 16_000]);
    for (label, bytes) in [
        ("bad_head", frame(HEADERS, END_STREAM, 1, &unreadable)),
        ("bad_head", [frame(HEADERS, END_STREAM, 1, &malformed), frame(CONTINUATION, END_HEADERS, 1, b"")].concat()),
        ("head_too_large", [frame(HEADERS, END_STREAM, 1, &large), repeated].concat()),
        ("head_too_large", [frame(HEADERS, END_STREAM, 1, &plain), frame(CONTINUATION, 0, 1, b"").repeat(60)].concat()),
    ] {
        let mut client = RawH2::connect(&sidecar, OUTSIDER, &[]).await;
        let outcome = client.send_until(&bytes, Outcome::is_over).await;
        assert!(outcome.is_over(), "{label}: {outcome:?}");
        wanted.push((label, None));
    }
    // For a CONNECT with a body, hyper ends the connection without a frame.
    let mut client = RawH2::connect(&sidecar, OUTSIDER, &[]).await;
    let connect = header_block(&[(":method", "CONNECT"), (":authority", "a:1"), ("content-length", "3")]);
    let outcome = client.send_until(&frame(HEADERS, END_HEADERS, 1, &connect), Outcome::is_over).await;
    assert!(outcome.closed, "{outcome:?}");
    wanted.push(("bad_head", None));
    // The client opens three streams more than it may. Later responses without a body don't count
    // as refusals.
    let mut client = RawH2::connect(&sidecar, OUTSIDER, &[]).await;
    let get = |path: &str, stream| frame(HEADERS, complete_head, stream, &request_block("GET", path, &[]));
    let bytes: Vec<_> = [1, 3, 5, 7, 9].into_iter().flat_map(|stream| get("/slow?500", stream)).collect();
    let outcome = client.send_until(&bytes, |outcome| outcome.resets.len() == 3 && outcome.heads.len() == 2).await;
    assert_eq!(outcome.resets, [(5, 7), (7, 7), (9, 7)], "{outcome:?}");
    for stream in [11, 13, 15] {
        client.send_until(&get("/nothing", stream), |outcome| !outcome.heads.is_empty()).await;
    }
    wanted.extend([("complete", Some(200)); 2]);
    wanted.extend([("complete", Some(204)); 3]);
    wanted.extend([("too_many_streams", None); 3]);

    let labels = counts(wanted.iter().map(|(label, _)| *label));
    assert_labels(&labels, &ENDS_OF_HEADS);
    let lines = ends.check_counts(&sidecar, &labels).await;
    let count_lines = |label: &str, status: Option<u16>| {
        let matches = |line: &&Value| line["end"] == label && line["status"] == status.map_or(Value::Null, Value::from);
        lines.iter().filter(matches).count()
    };
    for (label, status) in &wanted {
        let count = wanted.iter().filter(|other| *other == &(*label, *status)).count();
        assert_eq!(count_lines(label, *status), count, "{label} {status:?}: {lines:#?}");
    }
    for (label, bytes) in bodies {
        assert!(lines.iter().any(|line| line["end"] == label && line["bytes"] == bytes), "{label} {bytes}: {lines:#?}");
    }
    for line in lines.iter().filter(|line| line["end"] != "complete") {
        assert_eq!(line["bytes"] == 0, line["protocol"] == "h2", "{line}");
        assert!(line["path"].is_null() && line["lane"] == "external" && line["request_id"].is_string(), "{line}");
    }
    // Refused heads are no requests, so they have no spans.
    ends.check_spans(&sidecar, &counts(["complete"; 7])).await;
}

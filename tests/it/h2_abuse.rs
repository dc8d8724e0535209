//! HTTP/2 frames that exhaust a server or are ambiguous: the sidecar closes the offender's
//! connection, its memory does not grow, and other clients are not affected.

use crate::harness::{OUTSIDER, Protocol, start_process};
use loopgate_test_support::raw_h2::*;
use loopgate_test_support::sidecar::SidecarWithGateway;

/// The address of the attacking client.
const OFFENDER: &str = "127.0.0.66";
/// By how many bytes the sidecar's memory may grow in an attack. Part of this is for a debug build
/// and its allocator.
const BOUND: u64 = 32 << 20;

const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Fails unless other clients are served, and the sidecar's memory has grown by less than
/// [`BOUND`].
async fn assert_unaffected(sidecar: &SidecarWithGateway, before: u64, name: &str) {
    for protocol in crate::harness::PROTOCOLS {
        assert_eq!(sidecar.send_request(protocol, OUTSIDER, "GET /", &[]).await, (200, "hello".into()), "{name}");
    }
    let grown = sidecar.process().memory().saturating_sub(before);
    assert!(grown < BOUND, "{name}: {grown} bytes more");
}

/// Starts a sidecar; returns it, and its memory after a first request.
async fn start() -> (SidecarWithGateway, u64) {
    // High enough that the limit on one client's requests at the gateway plays no part.
    let sidecar = start_process(&["--gateway-requests=1000"], "").await;
    assert_eq!(sidecar.send_request(Protocol::H2, OUTSIDER, "GET /", &[]).await.0, 200);
    let memory = sidecar.process().memory();
    (sidecar, memory)
}

/// The ids of a client's streams.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 2 * number + 1)
}

#[tokio::test]
async fn rapid_reset_ends_in_goaway() {
    let (sidecar, before) = start().await;
    let request = request_block("GET", "/stalls", &[]);
    let reset = CANCEL.to_be_bytes();
    let attack: Vec<u8> = streams(20_000)
        .flat_map(|id| {
            [frame(HEADERS, END_HEADERS | END_STREAM, id, &request), frame(RST_STREAM, 0, id, &reset)].concat()
        })
        .collect();
    let outcome = RawH2::connect(&sidecar, OFFENDER, &[]).await.send_until(&attack, Outcome::is_over).await;
    assert_eq!(outcome.goaway, Some(ENHANCE_YOUR_CALM), "{outcome:?}");
    assert!(sidecar.gateway.requests().len() < 2_000, "the gateway was spared: {}", sidecar.gateway.requests().len());
    assert_unaffected(&sidecar, before, "rapid reset").await;
}

/// The client's frames make loopgate itself reset the streams (CVE-2025-8671, "MadeYouReset").
#[tokio::test]
async fn provoked_server_resets_end_in_goaway() {
    let (sidecar, before) = start().await;
    let request = request_block("POST", "/stalls", &[]);
    // A WINDOW_UPDATE with an increment of 0 is a stream error (RFC 9113 section 6.9).
    let attack: Vec<u8> = streams(20_000)
        .flat_map(|id| [frame(HEADERS, END_HEADERS, id, &request), frame(WINDOW_UPDATE, 0, id, &[0; 4])].concat())
        .collect();
    let outcome = RawH2::connect(&sidecar, OFFENDER, &[]).await.send_until(&attack, Outcome::is_over).await;
    assert!(outcome.goaway.is_some(), "{outcome:?}");
    assert!(sidecar.gateway.requests().len() < 2_000, "the gateway was spared: {}", sidecar.gateway.requests().len());
    assert_unaffected(&sidecar, before, "made to reset").await;
}

#[tokio::test]
async fn an_endless_head_ends_in_goaway() {
    let (sidecar, before) = start().await;
    let more = frame(CONTINUATION, 0, 1, &header_block(&[("x-a", "b"); 100]));
    for (name, piece) in [("fields", more), ("nothing", frame(CONTINUATION, 0, 1, &[]))] {
        let attack = [frame(HEADERS, END_STREAM, 1, &request_block("GET", "/", &[])), piece.repeat(20_000)].concat();
        let outcome = RawH2::connect(&sidecar, OFFENDER, &[]).await.send_until(&attack, Outcome::is_over).await;
        assert!(outcome.is_over(), "{name}: {outcome:?}");
        assert_unaffected(&sidecar, before, name).await;
    }
}

#[tokio::test]
async fn unread_floods_of_settings_and_pings_use_no_memory() {
    let (sidecar, before) = start().await;
    for (name, piece) in [
        ("SETTINGS", settings(&[(INITIAL_WINDOW, 65_535)])),
        ("empty SETTINGS", settings(&[])),
        ("PING", frame(PING, 0, 0, &[1; 8])),
        ("PING that answers nothing", frame(PING, ACK, 0, &[1; 8])),
        ("WINDOW_UPDATE of closed streams", frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes())),
    ] {
        let mut raw = RawH2::connect(&sidecar, OFFENDER, &[]).await;
        raw.send_until(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &request_block("GET", "/", &[])), |outcome| {
            !outcome.heads.is_empty()
        })
        .await;
        // The client reads nothing, so the answers can't be sent. A server that continues to read
        // has to keep them.
        let flood = piece.repeat(200_000);
        let sent = tokio::time::timeout(std::time::Duration::from_secs(2), raw.send(&flood)).await;
        assert_unaffected(&sidecar, before, &format!("{name} ({sent:?})")).await;
    }
}

/// A stream stays open for the whole time, so the idle timeout does not end the connection.
#[tokio::test]
async fn floods_with_read_replies_end_in_goaway() {
    let (sidecar, before) = start().await;
    for (name, is_answered, piece) in [
        ("SETTINGS", true, settings(&[(INITIAL_WINDOW, 65_535)])),
        ("PING", true, frame(PING, 0, 0, &[1; 8])),
        ("PING that answers nothing", false, frame(PING, ACK, 0, &[1; 8])),
        ("WINDOW_UPDATE", false, frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes())),
        ("PRIORITY", false, frame(2, 0, 1, &[0, 0, 0, 3, 16])),
        ("a frame of an unknown type", false, frame(0x42, 0, 0, &[1; 8])),
    ] {
        let mut raw = RawH2::connect(&sidecar, OFFENDER, &[]).await;
        let events = frame(HEADERS, END_HEADERS | END_STREAM, 1, &request_block("GET", "/events", &[]));
        raw.send_until(&events, |outcome| !outcome.heads.is_empty()).await;
        let outcome = raw.send_until(&piece.repeat(1_000_000), Outcome::is_over).await;
        // The sidecar does not wait for a client that is slow to read its answers, so the GOAWAY
        // may be lost.
        let is_cut_off = is_answered && outcome.closed && outcome.goaway.is_none();
        assert!(is_cut_off || outcome.goaway == Some(ENHANCE_YOUR_CALM), "{name}: {outcome:?}");
        assert!(is_cut_off || outcome.goaway_stream >= 1, "the gateway has the first request: {outcome:?}");
        assert_unaffected(&sidecar, before, name).await;
    }
}

/// A client that reads a large response in small steps may send many WINDOW_UPDATE frames.
#[tokio::test]
async fn window_updates_are_no_flood_while_data_is_pending() {
    let sidecar = start_process(&[], "").await;
    let (size, step) = (20_000_000_usize, 1_000_u32);
    let mut raw = RawH2::connect(&sidecar, OUTSIDER, &[(INITIAL_WINDOW, 60_000)]).await;
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &request_block("GET", &format!("/large?{size}"), &[]))).await;
    let updates =
        [frame(WINDOW_UPDATE, 0, 0, &step.to_be_bytes()), frame(WINDOW_UPDATE, 0, 1, &step.to_be_bytes())].concat();
    let (mut received, mut credited) = (0, 0);
    while received < size {
        let frame = raw.next().await.expect("the response is served to its end");
        assert_ne!(frame.kind, GOAWAY, "after {received} bytes");
        if frame.kind == DATA {
            received += frame.payload.len();
            let steps = (received - credited) / step as usize;
            credited += steps * step as usize;
            raw.send(&updates.repeat(steps)).await;
        }
    }
}

#[tokio::test]
async fn a_head_that_decompresses_beyond_the_limit_is_refused() {
    let (sidecar, before) = start().await;
    let bomb = kept_field(b"x-bomb", &[b'a'; 3_900]);
    let mut raw = RawH2::connect(&sidecar, OFFENDER, &[]).await;
    for (number, id) in streams(50).enumerate() {
        let mut head = request_block("GET", "/", &[]);
        if number == 0 {
            head.extend(&bomb);
        }
        head.extend(indexed_field(62).repeat(8_000));
        let outcome = raw.send_until(&frame(HEADERS, END_HEADERS | END_STREAM, id, &head), Outcome::is_decided).await;
        assert!(outcome.heads.iter().all(|(_, status)| *status != 0x88), "{outcome:?}");
        if outcome.is_over() {
            break;
        }
    }
    assert_eq!(sidecar.gateway.requests().len(), 1, "only the request of `start` was received");
    assert_unaffected(&sidecar, before, "HPACK bomb").await;
}

#[tokio::test]
async fn zero_windows_apply_backpressure_to_the_gateway() {
    let (sidecar, before) = start().await;
    let mut raws = Vec::new();
    for window in [0, 1] {
        let mut raw = RawH2::connect(&sidecar, OFFENDER, &[(INITIAL_WINDOW, window)]).await;
        // The kernel's buffers hold only a small part of such a response.
        let request = request_block("GET", "/file?5000000", &[]);
        let attack: Vec<u8> =
            streams(100).flat_map(|id| frame(HEADERS, END_HEADERS | END_STREAM, id, &request)).collect();
        let outcome = raw.send_until(&attack, |outcome| outcome.heads.len() == 100 || outcome.is_over()).await;
        assert!(outcome.heads.iter().all(|(_, status)| *status == 0x88), "{outcome:?}");
        raws.push(raw);
    }
    assert_unaffected(&sidecar, before, "windows of zero").await;
    let held = sidecar.gateway.most_buffered();
    assert!(held >= 100 * 5_000_000, "the gateway could send its responses at once: {held} bytes");
}

#[tokio::test]
async fn window_overflows_and_invalid_table_sizes_end_in_goaway() {
    let (sidecar, before) = start().await;
    let largest = i32::MAX.to_be_bytes();
    let request = request_block("GET", "/", &[]);
    for (name, attack) in [
        ("the connection's window overflows", frame(WINDOW_UPDATE, 0, 0, &largest)),
        ("a window beyond 2^31", settings(&[(INITIAL_WINDOW, u32::MAX)])),
        ("an invalid frame size", settings(&[(5, 1)])),
        ("an index beyond the tables", frame(HEADERS, END_HEADERS | END_STREAM, 1, &indexed_field(4_000))),
        ("a number without end", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 64])),
        ("a string longer than its block", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0, 0x7f, 0xff, 0xff, 0x7f])),
        ("a table beyond its bound", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x3f, 0xff, 0xff, 0xff, 0x07])),
        ("DATA on stream 0", frame(DATA, 0, 0, b"x")),
        ("DATA on an idle stream", frame(DATA, 0, 5, b"x")),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, &request)),
        ("HEADERS on a server's stream", frame(HEADERS, END_HEADERS | END_STREAM, 2, &request)),
        ("CONTINUATION without HEADERS", frame(CONTINUATION, END_HEADERS, 1, &request)),
        ("another frame within a head", [frame(HEADERS, END_STREAM, 1, &request), frame(PING, 0, 0, &[0; 8])].concat()),
        ("a PUSH_PROMISE of a client", frame(5, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &request].concat())),
        ("a frame that is too long", frame(DATA, 0, 1, &vec![0; 100_000])),
        ("a PING that is too short", frame(PING, 0, 0, &[0; 7])),
        ("padding longer than its frame", frame(HEADERS, END_HEADERS | 8, 1, &[255, 0])),
        (
            "a stream id used again",
            [
                frame(HEADERS, END_HEADERS | END_STREAM, 3, &request),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &request),
            ]
            .concat(),
        ),
    ] {
        let outcome = RawH2::connect(&sidecar, OFFENDER, &[]).await.send_until(&attack, Outcome::is_over).await;
        assert!(outcome.is_over(), "{name}: {outcome:?}");
    }
    assert_unaffected(&sidecar, before, "invalid frames").await;
}

/// A malformed request (RFC 9113 section 8.1.1) ends its stream and never reaches the gateway.
#[tokio::test]
async fn ambiguous_h2_requests_are_not_forwarded() {
    let (sidecar, before) = start().await;
    let usual = [(":method", "GET"), (":scheme", "https"), (":authority", "gateway.example"), (":path", "/")];
    let with = |more: &[(&str, &str)]| header_block(&[&usual, more].concat());
    let replacing = |name: &str, value: &str| {
        header_block(
            &usual.iter().map(|field| if field.0 == name { (field.0, value) } else { *field }).collect::<Vec<_>>(),
        )
    };
    let without = |name: &str| header_block(&usual.iter().copied().filter(|field| field.0 != name).collect::<Vec<_>>());
    for (name, block) in [
        ("a method twice", with(&[(":method", "POST")])),
        ("a path twice", with(&[(":path", "/other")])),
        ("an authority twice", with(&[(":authority", "other")])),
        ("a scheme twice", with(&[(":scheme", "http")])),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("no authority and no host", without(":authority")),
        ("an empty path", replacing(":path", "")),
        ("a path without a slash", replacing(":path", "x")),
        ("a path with a blank", replacing(":path", "/ HTTP/1.1")),
        ("a path with CRLF", replacing(":path", "/ HTTP/1.1\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n")),
        ("a method with CRLF", replacing(":method", "GET / HTTP/1.1\r\nA: b\r\n\r\nGET")),
        ("a method with a blank", replacing(":method", "GET /admin")),
        ("an authority with CRLF", replacing(":authority", "a\r\nX-Forwarded-For: 127.0.0.1")),
        ("an authority with a user", replacing(":authority", "user@gateway.example")),
        ("an authority with a path", replacing(":authority", "gateway.example/x")),
        ("an empty authority", replacing(":authority", "")),
        ("an invalid scheme", replacing(":scheme", "https://x")),
        ("another host than the authority", with(&[("host", "other.example")])),
        ("two hosts", with(&[("host", "gateway.example"), ("host", "other.example")])),
        (
            "a pseudo-header after a field",
            [header_block(&usual[..3]), header_block(&[("a", "b"), (":path", "/")])].concat(),
        ),
        ("a pseudo-header of a response", with(&[(":status", "200")])),
        ("an unknown pseudo-header", with(&[(":client", "127.0.0.1")])),
        ("a protocol without CONNECT", with(&[(":protocol", "websocket")])),
        ("a name in capitals", with(&[("X-Forwarded-For", "127.0.0.1")])),
        ("a name with CRLF", with(&[("a: b\r\nx-forwarded-for", "127.0.0.1")])),
        ("a name with a colon", with(&[("x-forwarded-for:a", "127.0.0.1")])),
        ("a name with a blank", with(&[("x-forwarded-for ", "127.0.0.1")])),
        ("an empty name", with(&[("", "127.0.0.1")])),
        ("a value with CRLF", with(&[("a", "b\r\nX-Forwarded-For: 127.0.0.1")])),
        ("a value with LF", with(&[("a", "b\nX-Forwarded-For: 127.0.0.1")])),
        ("a value with CR", with(&[("a", "b\rc")])),
        ("a value with NUL", with(&[("a", "b\0c")])),
        ("connection", with(&[("connection", "close")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("keep-alive", with(&[("keep-alive", "timeout=5")])),
        ("proxy-connection", with(&[("proxy-connection", "keep-alive")])),
        ("TE other than trailers", with(&[("te", "gzip")])),
        ("a length without a body", with(&[("content-length", "4")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "4")])),
        ("an invalid length", with(&[("content-length", "+0")])),
        ("CONNECT", header_block(&[(":method", "CONNECT"), (":authority", "127.0.0.1:22")])),
    ] {
        let received = sidecar.gateway.requests().len();
        let mut raw = RawH2::connect(&sidecar, OFFENDER, &[]).await;
        let outcome = raw.send_until(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block), Outcome::is_decided).await;
        assert!(outcome.heads.iter().all(|(_, status)| *status != 0x88), "{name} was served: {outcome:?}");
        assert_eq!(sidecar.gateway.requests().len(), received, "{name}: {:#?}", sidecar.gateway.requests().last());
    }
    assert_unaffected(&sidecar, before, "malformed requests").await;
}

#[tokio::test]
async fn a_body_that_differs_from_its_content_length_is_not_forwarded_as_complete() {
    let (sidecar, before) = start().await;
    for (name, length, body) in [("shorter", "10", &b"body"[..]), ("longer", "2", b"body")] {
        let mut raw = RawH2::connect(&sidecar, OFFENDER, &[]).await;
        let head = request_block("POST", "/echo", &[("content-length", length)]);
        let bytes = [frame(HEADERS, END_HEADERS, 1, &head), frame(DATA, END_STREAM, 1, body)].concat();
        let outcome = raw.send_until(&bytes, Outcome::is_decided).await;
        assert!(outcome.heads.iter().all(|(_, status)| *status != 0x88), "{name} was served: {outcome:?}");
    }
    for received in sidecar.gateway.requests().iter().filter(|received| received.start_line().starts_with("POST")) {
        assert!(received.truncated, "{received:?}");
    }
    assert_unaffected(&sidecar, before, "wrong lengths").await;
}

//! Trailers of requests over HTTP/2, in every form that a header block can have.

use std::time::Duration;

use tokio::time::timeout;

use crate::harness::{Harness, OUTSIDER};
use loopgate_test_support::raw_h2::*;

const SOON: Duration = Duration::from_secs(20);
const PROTOCOL_ERROR: u32 = 1;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
/// Sets the size of the dynamic table to its current size (RFC 7541 section 6.3).
const SIZE_UPDATE: &[u8] = &[0x3f, 0xe1, 0x1f];

/// Returns the frames of trailers with this block on `stream`, in every form, each with a name.
fn forms(stream: u32, block: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let (complete, continued) = (END_STREAM | END_HEADERS, END_STREAM);
    let (start, end) = block.split_at(block.len() / 2);
    let padded = [&[7], block, &[0; 7]].concat();
    vec![
        ("one frame", frame(HEADERS, complete, stream, block)),
        ("a size update first", frame(HEADERS, complete, stream, &[SIZE_UPDATE, block].concat())),
        ("padded", frame(HEADERS, complete | PADDED, stream, &padded)),
        ("with a priority", frame(HEADERS, complete | PRIORITY, stream, &[&[0, 0, 0, 0, 9], block].concat())),
        (
            "padded, with a priority",
            frame(HEADERS, complete | PADDED | PRIORITY, stream, &[&[2, 0, 0, 0, 0, 9], block, &[0; 2]].concat()),
        ),
        (
            "continued",
            [frame(HEADERS, continued, stream, start), frame(CONTINUATION, END_HEADERS, stream, end)].concat(),
        ),
        (
            "a size update, and the block continued",
            [frame(HEADERS, continued, stream, SIZE_UPDATE), frame(CONTINUATION, END_HEADERS, stream, block)].concat(),
        ),
        (
            "nothing, and the block continued",
            [frame(HEADERS, continued, stream, &[]), frame(CONTINUATION, END_HEADERS, stream, block)].concat(),
        ),
    ]
}

/// Returns the frames of a request whose stream does not end after its body. Its head makes the
/// field `entry` with this value the first of the dynamic table (index 62).
fn request_with_entry(stream: u32, entry: &[u8], value: &[u8]) -> Vec<u8> {
    let fields = [(":method", "POST"), (":scheme", "https"), (":authority", "gateway.example:18789")];
    let head = match entry {
        b":path" => [header_block(&fields), kept_field(entry, value)].concat(),
        _ => [header_block(&fields), header_block(&[(":path", "/echo")]), kept_field(entry, value)].concat(),
    };
    [frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, 0, stream, b"hello")].concat()
}

#[tokio::test]
async fn pseudo_header_fields_in_trailers_are_refused_however_they_are_written() {
    let harness = Harness::start().await;
    let sum = literal_field(b"x-sum", b"7");
    let pseudo = [
        ("a literal", literal_field(b":path", b"/other")),
        ("with Huffman code", [&[0, 0x84, 0xb9, 0x58, 0xd3, 0x3f][..], &[1, b'/']].concat()),
        ("of the static table", indexed_field(4)),
        ("with a name of the static table", vec![4, 6, b'/', b'o', b't', b'h', b'e', b'r']),
        ("of the dynamic table", indexed_field(62)),
        ("a status", indexed_field(8)),
        ("before a regular field", [indexed_field(4), sum.clone()].concat()),
        ("after a regular field", [sum.clone(), indexed_field(4)].concat()),
    ];
    for (name, block) in &pseudo {
        for (form, frames) in forms(1, block) {
            let mut client = RawH2::connect(&harness, OUTSIDER, &[]).await;
            let bytes = [request_with_entry(1, b":path", b"/echo"), frames].concat();
            let outcome = timeout(SOON, client.send_until(&bytes, Outcome::is_decided)).await.expect("an end");
            assert_eq!(outcome.resets, [(1, PROTOCOL_ERROR)], "{name}, {form}: {outcome:?}");
            // The dynamic tables of both ends still agree: index 62 is the `:path` of the first
            // request.
            let head = self::header_block(&[(":method", "GET"), (":scheme", "https"), (":authority", "a")]);
            let next = frame(HEADERS, END_HEADERS | END_STREAM, 3, &[head, indexed_field(62)].concat());
            let outcome = timeout(SOON, client.send_until(&next, Outcome::is_decided)).await.expect("a response");
            assert_eq!(outcome.heads, [(3, 0x88)], "{name}, {form}: {outcome:?}");
        }
    }
    let received = harness.gateway.requests();
    assert!(
        received.iter().all(|request| request.truncated || request.start_line().starts_with("GET")),
        "{received:#?}"
    );
}

#[tokio::test]
async fn trailers_pass_however_they_are_written() {
    let harness = Harness::start().await;
    for (form, frames) in [forms(1, &literal_field(b"x-sum", b"7")), forms(1, &indexed_field(62))].concat() {
        let mut client = RawH2::connect(&harness, OUTSIDER, &[]).await;
        let bytes = [request_with_entry(1, b"x-sum", b"7"), frames].concat();
        let outcome = timeout(SOON, client.send_until(&bytes, Outcome::is_decided)).await.expect("a response");
        assert_eq!(outcome.heads, [(1, 0x88)], "{form}: {outcome:?}");
        let received = harness.gateway.requests().pop().unwrap();
        assert_eq!((received.body.as_slice(), received.trailers.as_str()), (&b"hello"[..], "x-sum: 7\r\n"), "{form}");
    }
    // A block of the greatest size that a frame may have, and an empty block.
    for block in [[vec![0, 1, b'x', 127, 0xfb, 0x7e], vec![b'y'; 16_378]].concat(), Vec::new()] {
        let mut client = RawH2::connect(&harness, OUTSIDER, &[]).await;
        let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block);
        let bytes = [request_with_entry(1, b"x-sum", b"7"), trailers].concat();
        let outcome = timeout(SOON, client.send_until(&bytes, Outcome::is_decided)).await.expect("a response");
        assert_eq!(outcome.heads, [(1, 0x88)], "{}: {outcome:?}", block.len());
        assert_eq!(
            harness.gateway.requests().pop().unwrap().trailers.len(),
            block.len().saturating_sub(1),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn trailers_without_end_close_the_connection() {
    let harness = Harness::start().await;
    for (name, piece) in [("fields", header_block(&[("x-a", "b"); 100])), ("nothing", Vec::new())] {
        let more = frame(CONTINUATION, 0, 1, &piece).repeat(100);
        let bytes = [
            request_with_entry(1, b"x-sum", b"7"),
            frame(HEADERS, END_STREAM, 1, &literal_field(b"x-sum", b"7")),
            more,
        ]
        .concat();
        let mut client = RawH2::connect(&harness, OUTSIDER, &[]).await;
        let outcome = timeout(SOON, client.send_until(&bytes, Outcome::is_over)).await.expect("an end");
        assert!(outcome.is_over(), "{name}: {outcome:?}");
    }
}

//! Interim responses between what hyper writes.

use std::task::Waker;

use http::HeaderValue;

use super::*;

const HINTS: StatusCode = StatusCode::EARLY_HINTS;

/// What is written at once.
fn written(interims: &Interims) -> Vec<u8> {
    let mut stream = Vec::new();
    let poll = interims.poll_write(&mut stream, &mut Context::from_waker(Waker::noop()), false);
    assert!(matches!(poll, Poll::Ready(Ok(()))));
    stream
}

fn link() -> HeaderMap {
    HeaderMap::from_iter([(http::header::LINK, HeaderValue::from_static("</a>"))])
}

#[test]
fn an_interim_response_has_the_form_of_its_protocol() {
    let h1 = Interims::new(Protocol::Http1);
    h1.request().send(HINTS, &link());
    assert_eq!(written(&h1), b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    let h2 = Interims::new(Protocol::Http2);
    h2.block_received(5);
    let sender = h2.request();
    h2.settle();
    sender.send(HINTS, &link());
    let block = [&b"\x08\x03103"[..], b"\0\x04link\x04</a>"].concat();
    assert_eq!(written(&h2), [&[0, 0, 16, 1, 4, 0, 0, 0, 5][..], &block].concat());
    let mut long = Vec::new();
    string(&mut long, &[b'a'; 1337]);
    assert_eq!(&long[..4], [127, 0xba, 9, b'a'], "127 + 58 + 9 * 128");
}

#[test]
fn header_blocks_that_become_no_requests_are_not_kept_without_bound() {
    let interims = Interims::new(Protocol::Http2);
    for number in 0..100_000 {
        interims.block_received(2 * number + 1);
        assert!(interims.state().streams.blocks.len() <= MAX_BLOCKS);
    }
    assert_eq!(interims.state().streams.blocks.capacity(), 0, "nothing stays allocated");
    let sender = interims.request();
    interims.settle();
    sender.send(HINTS, &link());
    assert!(written(&interims).is_empty(), "the stream is not known");
}

#[test]
fn streams_are_known_only_while_each_header_block_was_one_request() {
    let interims = Interims::new(Protocol::Http2);
    for stream in [1, 3] {
        interims.block_received(stream);
    }
    let (one, three) = (interims.request(), interims.request());
    one.send(HINTS, &link());
    assert_eq!(written(&interims), b"", "not settled");
    interims.settle();
    assert_eq!((one.stream(), three.stream()), (Some(1), Some(3)));
    // Of two header blocks, one was refused.
    for stream in [5, 7] {
        interims.block_received(stream);
    }
    let five_or_seven = interims.request();
    interims.settle();
    interims.block_received(9);
    let nine = interims.request();
    interims.settle();
    for unknown in [&five_or_seven, &nine] {
        unknown.send(HINTS, &link());
        assert_eq!((unknown.stream(), written(&interims)), (None, Vec::new()));
    }
    three.send(HINTS, &link());
    assert_ne!(written(&interims), b"", "what was known stays known");

    let interims = Interims::new(Protocol::Http2);
    let _without_a_block = interims.request();
    interims.block_received(1);
    let late = interims.request();
    interims.settle();
    assert_eq!(late.stream(), None);
}

#[test]
fn nothing_is_sent_after_the_end_of_a_stream_or_for_an_earlier_request() {
    let interims = Interims::new(Protocol::Http2);
    interims.block_received(1);
    let sender = interims.request();
    interims.settle();
    sender.send(HINTS, &link());
    interims.close(1);
    assert_eq!(written(&interims), b"", "its final response came first");
    sender.send(HINTS, &link());
    assert_eq!(written(&interims), b"");
    interims.block_received(3);
    interims.close(3);
    let reset_before = interims.request();
    interims.settle();
    reset_before.send(HINTS, &link());
    assert_eq!((reset_before.stream(), written(&interims)), (Some(3), Vec::new()), "reset before it was passed on");
    let h1 = Interims::new(Protocol::Http1);
    let earlier = h1.request();
    let _later = h1.request();
    earlier.send(HINTS, &link());
    assert_eq!(written(&h1), b"");
}

#[test]
fn what_waits_is_bounded() {
    let interims = Interims::new(Protocol::Http1);
    let sender = interims.request();
    let large = |length: usize| {
        HeaderMap::from_iter([(http::header::LINK, HeaderValue::from_str(&"a".repeat(length)).unwrap())])
    };
    sender.send(HINTS, &large(LARGEST));
    assert_eq!(written(&interims), b"", "too large for one frame");
    for _ in 0..100 {
        sender.send(HINTS, &large(LARGEST - 100));
    }
    let length = written(&interims).len();
    assert!(length > MOST - LARGEST && length <= MOST, "{length}");
}

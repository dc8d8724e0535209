//! Tests of the streams of requests, and of interim responses between the bytes that hyper writes.

use std::task::Waker;

use http::HeaderValue;

use super::*;
use crate::proxy::downstream::interim_queue::{MAX_QUEUED_BYTES, MAX_RESPONSE_BYTES, push_string};

const HINTS: StatusCode = StatusCode::EARLY_HINTS;

/// Returns the interim responses that wait, as one call writes them.
fn write_interims(head_tracker: &HeadTracker) -> Vec<u8> {
    let mut stream = Vec::new();
    let poll = head_tracker.interims().poll_write(&mut stream, &mut Context::from_waker(Waker::noop()), false);
    assert!(matches!(poll, Poll::Ready(Ok(()))));
    stream
}

fn link_header() -> HeaderMap {
    HeaderMap::from_iter([(http::header::LINK, HeaderValue::from_static("</a>"))])
}

#[test]
fn an_interim_response_has_the_form_of_its_protocol() {
    let h1 = HeadTracker::new(Protocol::H1);
    h1.begin_request().send_interim(HINTS, &link_header());
    assert_eq!(write_interims(&h1), b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    let h2 = HeadTracker::new(Protocol::H2);
    h2.record_header_block(5);
    let handle = h2.begin_request();
    h2.end_round_unless_blocked();
    handle.send_interim(HINTS, &link_header());
    let block = [&b"\x08\x03103"[..], b"\0\x04link\x04</a>"].concat();
    assert_eq!(write_interims(&h2), [&[0, 0, 16, 1, 4, 0, 0, 0, 5][..], &block].concat());
    let mut long = Vec::new();
    push_string(&mut long, &[b'a'; 1337]);
    assert_eq!(&long[..4], [127, 0xba, 9, b'a'], "1337 is 127 + 58 + 9 * 128");
}

#[test]
fn header_blocks_that_become_no_requests_are_not_kept_without_bound() {
    let head_tracker = HeadTracker::new(Protocol::H2);
    for number in 0..100_000 {
        head_tracker.record_header_block(2 * number + 1);
        assert!(head_tracker.state().streams.is_within_limits());
    }
    assert!(head_tracker.state().streams.has_released_blocks(), "nothing stays allocated");
    let handle = head_tracker.begin_request();
    head_tracker.end_round_unless_blocked();
    handle.send_interim(HINTS, &link_header());
    assert!(write_interims(&head_tracker).is_empty(), "the stream is not known");
}

#[test]
fn requests_are_not_kept_without_bound_while_the_client_does_not_read() {
    let head_tracker = HeadTracker::new(Protocol::H2);
    // A header block that becomes no request: while writes are blocked, the round does not end.
    head_tracker.record_header_block(1);
    for number in 1..10_000 {
        head_tracker.record_header_block(2 * number + 1);
        let _ = head_tracker.begin_request();
        head_tracker.set_write_blocked(true);
        head_tracker.end_round_unless_blocked();
        assert!(head_tracker.state().streams.is_within_limits());
    }
}

#[test]
fn streams_are_known_where_each_header_block_was_one_request() {
    let head_tracker = HeadTracker::new(Protocol::H2);
    for stream in [1, 3] {
        head_tracker.record_header_block(stream);
    }
    let (one, three) = (head_tracker.begin_request(), head_tracker.begin_request());
    one.send_interim(HINTS, &link_header());
    assert_eq!(write_interims(&head_tracker), b"", "the round has not ended");
    head_tracker.end_round_unless_blocked();
    assert_eq!((one.stream(), three.stream()), (Some(1), Some(3)));
    // Of two header blocks, one was refused.
    for stream in [5, 7] {
        head_tracker.record_header_block(stream);
    }
    let five_or_seven = head_tracker.begin_request();
    head_tracker.end_round_unless_blocked();
    five_or_seven.send_interim(HINTS, &link_header());
    assert_eq!((five_or_seven.stream(), write_interims(&head_tracker)), (None, Vec::new()));
    head_tracker.record_reset(5, PROTOCOL_ERROR);
    assert!(!five_or_seven.was_reset_for_client_error(), "the request may be on stream 7");
    three.send_interim(HINTS, &link_header());
    assert_ne!(write_interims(&head_tracker), b"", "the streams of earlier rounds stay known");
    head_tracker.record_header_block(9);
    let nine = head_tracker.begin_request();
    head_tracker.end_round_unless_blocked();
    nine.send_interim(HINTS, &link_header());
    assert_eq!(nine.stream(), Some(9), "the streams of later rounds are known again");
    assert_ne!(write_interims(&head_tracker), b"");

    let head_tracker = HeadTracker::new(Protocol::H2);
    // After a request without a header block, the streams of the round can't be known.
    let _without_a_block = head_tracker.begin_request();
    head_tracker.record_header_block(1);
    let late = head_tracker.begin_request();
    head_tracker.end_round_unless_blocked();
    assert_eq!(late.stream(), None);
}

#[test]
fn nothing_is_decided_while_something_waits_to_be_written() {
    let head_tracker = HeadTracker::new(Protocol::H2);
    for stream in [1, 3] {
        head_tracker.record_header_block(stream);
    }
    let one = head_tracker.begin_request();
    head_tracker.set_write_blocked(true);
    head_tracker.end_round_unless_blocked();
    assert_eq!((one.stream(), head_tracker.take_refused_and_dropped()), (None, Default::default()));
    let three = head_tracker.begin_request();
    head_tracker.set_write_blocked(true);
    head_tracker.end_round_unless_blocked();
    assert_eq!((one.stream(), three.stream()), (Some(1), Some(3)), "each block became a request");
    head_tracker.end_round_unless_blocked();
    assert_eq!(head_tracker.take_refused_and_dropped(), Default::default());
}

#[test]
fn requests_without_a_known_stream_are_not_kept_without_bound() {
    let head_tracker = HeadTracker::new(Protocol::H2);
    let mut handles = Vec::new();
    for round in 0..1000 {
        for number in 0..2 {
            head_tracker.record_header_block(4 * round + 2 * number + 1);
        }
        handles.push(head_tracker.begin_request());
        head_tracker.end_round_unless_blocked();
        assert!(head_tracker.state().streams.is_within_limits());
    }
    assert!(handles.iter().all(|handle| handle.stream().is_none()));
    head_tracker.record_header_block(5001);
    let known = head_tracker.begin_request();
    head_tracker.end_round_unless_blocked();
    assert_eq!(known.stream(), Some(5001));
}

#[test]
fn nothing_is_sent_after_the_end_of_a_stream_or_for_an_earlier_request() {
    let head_tracker = HeadTracker::new(Protocol::H2);
    head_tracker.record_header_block(1);
    let handle = head_tracker.begin_request();
    head_tracker.end_round_unless_blocked();
    handle.send_interim(HINTS, &link_header());
    head_tracker.close_stream(1);
    assert_eq!(write_interims(&head_tracker), b"", "the end of the stream drops its interim responses");
    handle.send_interim(HINTS, &link_header());
    assert_eq!(write_interims(&head_tracker), b"");
    head_tracker.record_header_block(3);
    head_tracker.close_stream(3);
    let reset_before = head_tracker.begin_request();
    head_tracker.end_round_unless_blocked();
    reset_before.send_interim(HINTS, &link_header());
    assert_eq!(
        (reset_before.stream(), write_interims(&head_tracker)),
        (Some(3), Vec::new()),
        "the stream was reset before hyper passed the request on"
    );
    let h1 = HeadTracker::new(Protocol::H1);
    let earlier = h1.begin_request();
    let _later = h1.begin_request();
    earlier.send_interim(HINTS, &link_header());
    assert_eq!(write_interims(&h1), b"");
}

#[test]
fn a_request_whose_stream_h2_reset_is_known() {
    let head_tracker = HeadTracker::new(Protocol::H2);
    for stream in [1, 3, 5] {
        head_tracker.record_header_block(stream);
    }
    let [one, three, five] = [1, 3, 5].map(|_| head_tracker.begin_request());
    head_tracker.record_reset(1, PROTOCOL_ERROR);
    // CANCEL, which shows no error of the client.
    head_tracker.record_reset(3, 8);
    assert!(!one.was_reset_for_client_error(), "the round has not ended");
    head_tracker.end_round_unless_blocked();
    assert_eq!([&one, &three, &five].map(RequestHandle::was_reset_for_client_error), [true, false, false]);
    for _ in 0..1000 {
        head_tracker.record_reset(5, PROTOCOL_ERROR);
    }
    assert!(five.was_reset_for_client_error() && head_tracker.state().streams.is_within_limits());
}

#[test]
fn the_queue_of_interim_responses_is_bounded() {
    let head_tracker = HeadTracker::new(Protocol::H1);
    let handle = head_tracker.begin_request();
    let large = |length: usize| {
        HeaderMap::from_iter([(http::header::LINK, HeaderValue::from_str(&"a".repeat(length)).unwrap())])
    };
    handle.send_interim(HINTS, &large(MAX_RESPONSE_BYTES));
    assert_eq!(write_interims(&head_tracker), b"", "too large for one frame");
    for _ in 0..100 {
        handle.send_interim(HINTS, &large(MAX_RESPONSE_BYTES - 100));
    }
    let length = write_interims(&head_tracker).len();
    assert!(length > MAX_QUEUED_BYTES - MAX_RESPONSE_BYTES && length <= MAX_QUEUED_BYTES, "{length}");
}

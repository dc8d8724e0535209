//! Which heads are refused.

use super::*;

const MALFORMED: Refused = Refused::reset(HeadRefusal::Malformed);
const TOO_LARGE: Refused = Refused::reset(HeadRefusal::TooLarge);
const SURPLUS: Refused = Refused::reset(HeadRefusal::TooManyStreams);

#[test]
fn a_reset_is_a_refused_head_only_where_a_block_became_no_request() {
    let mut heads = RefusedHeads::default();
    // A request whose body is malformed.
    heads.begun(1);
    heads.request();
    heads.reset(1, PROTOCOL_ERROR);
    heads.settle();
    heads.reset(1, PROTOCOL_ERROR);
    heads.settle();
    assert_eq!(heads.take(), []);
    // Of three blocks two became requests.
    for stream in [3, 5, 7] {
        heads.begun(stream);
    }
    heads.request();
    heads.reset(5, PROTOCOL_ERROR);
    heads.request();
    heads.settle();
    assert_eq!(heads.take(), [MALFORMED]);
    heads.reset(3, PROTOCOL_ERROR);
    heads.settle();
    assert_eq!(heads.take(), [], "each is counted once");
}

#[test]
fn refusals_that_are_written_later_are_counted_then() {
    let mut heads = RefusedHeads::default();
    for stream in [1, 3, 5] {
        heads.begun(stream);
    }
    heads.settle();
    heads.answered(1);
    heads.reset(1, PROTOCOL_ERROR);
    heads.reset(3, REFUSED_STREAM);
    heads.answered(7);
    heads.settle();
    assert_eq!(heads.take(), [SURPLUS, Refused::answered(HeadRefusal::TooLarge)]);
    heads.closed(COMPRESSION_ERROR, b"");
    heads.closed(0, b"");
    heads.settle();
    assert_eq!(heads.take(), [MALFORMED]);
}

#[test]
fn a_surplus_stream_explains_a_missing_request_even_where_it_was_not_kept() {
    let mut heads = RefusedHeads::default();
    let count = u32::try_from(MAX_STREAMS).unwrap();
    for round in 0..3 {
        for stream in 0..count {
            heads.begun(round * count + stream);
        }
        heads.settle();
    }
    for stream in 0..3 * count {
        heads.reset(stream, REFUSED_STREAM);
    }
    heads.settle();
    assert_eq!((heads.take(), heads.missing), (vec![SURPLUS; 3 * MAX_STREAMS], 0));
    // The response of an earlier request, and an error that is no head's.
    heads.answered(7 * count);
    heads.closed(PROTOCOL_ERROR, b"");
    assert!(!heads.settle());
}

#[test]
fn a_block_that_goes_on_is_counted_once_where_it_is_refused() {
    for (name, code, debug_data, wanted) in [
        ("unreadable", PROTOCOL_ERROR, &b""[..], Some(MALFORMED)),
        ("over the limit of what is ignored", COMPRESSION_ERROR, b"", Some(MALFORMED)),
        ("much too large", ENHANCE_YOUR_CALM, b"header_list_way_too_large", Some(TOO_LARGE)),
        ("too many frames", ENHANCE_YOUR_CALM, b"too_many_continuations", Some(TOO_LARGE)),
        ("no fault of the head", ENHANCE_YOUR_CALM, b"too_many_resets", None),
        ("a polite end", 0, b"", None),
    ] {
        for (is_whole, is_settled) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut heads = RefusedHeads::default();
            heads.partly_received(1);
            if is_whole {
                heads.begun(1);
            }
            if is_settled {
                heads.settle();
            }
            heads.closed(code, debug_data);
            heads.settle();
            let refused: Vec<_> = wanted.into_iter().collect();
            assert_eq!(heads.take(), refused, "{name}, {is_whole}, {is_settled}");
        }
    }
    // Reset before its end, which then leads to the end of the connection.
    let mut heads = RefusedHeads::default();
    heads.partly_received(1);
    heads.settle();
    heads.reset(1, PROTOCOL_ERROR);
    heads.settle();
    heads.begun(1);
    heads.closed(PROTOCOL_ERROR, b"");
    heads.settle();
    assert_eq!(heads.take(), [MALFORMED]);
    // What is no head.
    heads.closed(PROTOCOL_ERROR, b"");
    heads.settle();
    assert_eq!(heads.take(), []);
}

#[test]
fn a_head_for_which_hyper_ends_the_connection_is_counted() {
    let ended = |prepare: fn(&mut RefusedHeads)| {
        let mut heads = RefusedHeads::default();
        heads.begun(1);
        heads.request();
        prepare(&mut heads);
        (heads.ended(), heads.take())
    };
    assert_eq!(ended(|heads| heads.begun(3)), (true, vec![MALFORMED]));
    assert_eq!(ended(|_| {}), (false, vec![]), "each block became a request");
    for other in [RefusedHeads::client_ended, |heads: &mut RefusedHeads| heads.closed(0, b"")] {
        let mut heads = RefusedHeads::default();
        heads.begun(1);
        other(&mut heads);
        assert_eq!((heads.ended(), heads.take()), (false, vec![]), "the end has another cause");
    }
}

#[test]
fn streams_are_not_kept_without_bound() {
    let mut heads = RefusedHeads::default();
    for stream in 0..10_000 {
        heads.begun(stream);
        if stream % 100 == 0 {
            heads.settle();
        }
    }
    assert!(heads.begun.len() + heads.doubtful.len() <= 2 * MAX_STREAMS);
}

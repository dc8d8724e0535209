//! Tests of which heads count as refused, and which as dropped.

use super::*;

const MALFORMED: RefusedHead = RefusedHead::without_response(HeadRefusal::Malformed);
const TOO_LARGE: RefusedHead = RefusedHead::without_response(HeadRefusal::TooLarge);
const TOO_MANY_STREAMS: RefusedHead = RefusedHead::without_response(HeadRefusal::TooManyStreams);
const NONE: DroppedHeads = DroppedHeads { by_client: 0, by_closing: 0 };

#[test]
fn a_reset_is_a_refused_head_only_where_a_block_became_no_request() {
    let mut heads = RefusedHeads::default();
    // A request whose body is malformed.
    heads.record_header_block(1);
    heads.record_request();
    heads.record_reset(1, PROTOCOL_ERROR);
    heads.end_round();
    heads.record_reset(1, PROTOCOL_ERROR);
    heads.end_round();
    assert_eq!(heads.take_refused_and_dropped(), (vec![], NONE));
    // Of three header blocks, two become requests, and one is refused.
    for stream in [3, 5, 7] {
        heads.record_header_block(stream);
    }
    heads.record_request();
    heads.record_reset(5, PROTOCOL_ERROR);
    heads.record_request();
    heads.end_round();
    assert_eq!(heads.take_refused_and_dropped(), (vec![MALFORMED], NONE));
    heads.record_reset(3, PROTOCOL_ERROR);
    heads.end_round();
    assert_eq!(heads.take_refused_and_dropped(), (vec![], NONE), "a later reset of a request is not a refused head");
}

#[test]
fn what_only_a_head_can_get_is_counted_at_once() {
    let mut heads = RefusedHeads::default();
    for stream in [1, 3, 5] {
        heads.record_header_block(stream);
    }
    heads.record_response_head(1, true);
    heads.record_reset(1, PROTOCOL_ERROR);
    heads.record_reset(3, REFUSED_STREAM);
    assert_eq!(
        heads.take_refused_and_dropped(),
        (vec![RefusedHead::with_response(HeadRefusal::TooLarge), TOO_MANY_STREAMS], NONE)
    );
    heads.record_goaway(0, COMPRESSION_ERROR, b"");
    heads.record_goaway(0, 0, b"");
    heads.end_round();
    assert_eq!(heads.take_refused_and_dropped(), (vec![MALFORMED], NONE));
    // Trailers with a single field look like a response that has only `:status`.
    heads.record_header_block(7);
    heads.record_request();
    heads.record_response_head(7, false);
    heads.record_response_head(7, true);
    heads.end_round();
    heads.record_response_head(7, true);
    assert_eq!(heads.take_refused_and_dropped(), (vec![], NONE));
}

#[test]
fn a_reset_for_a_body_is_no_refusal_while_a_surplus_stream_waits_for_its_own() {
    let mut heads = RefusedHeads::default();
    for stream in [1, 3] {
        heads.record_header_block(stream);
    }
    heads.record_request();
    // Both resets are in the same round.
    heads.record_reset(1, PROTOCOL_ERROR);
    heads.record_reset(3, REFUSED_STREAM);
    heads.end_round();
    assert_eq!(heads.take_refused_and_dropped(), (vec![TOO_MANY_STREAMS], NONE));
}

#[test]
fn a_surplus_stream_is_counted_even_where_it_was_not_kept() {
    let mut heads = RefusedHeads::default();
    let count = u32::try_from(3 * MAX_STREAMS).unwrap();
    for stream in 0..count {
        heads.record_header_block(stream);
    }
    for stream in 0..count {
        heads.record_reset(stream, REFUSED_STREAM);
    }
    heads.end_round();
    assert_eq!(heads.take_refused_and_dropped(), (vec![TOO_MANY_STREAMS; 3 * MAX_STREAMS], NONE));
    // An error that concerns no head.
    heads.record_goaway(0, PROTOCOL_ERROR, b"");
    heads.end_round();
    assert!(heads.is_empty());
}

#[test]
fn heads_of_which_nothing_comes_are_counted_by_who_ended_them() {
    let mut heads = RefusedHeads::default();
    // The client reset the second stream before hyper passed its request on.
    for stream in [1, 3] {
        heads.record_header_block(stream);
    }
    heads.record_request();
    heads.end_round();
    assert_eq!(heads.take_refused_and_dropped(), (vec![], DroppedHeads { by_client: 1, by_closing: 0 }));
    for close in [|heads: &mut RefusedHeads| heads.record_goaway(0, 0, b""), RefusedHeads::mark_closing] {
        let mut heads = RefusedHeads::default();
        for stream in [1, 3, 5] {
            heads.record_header_block(stream);
        }
        heads.record_request();
        close(&mut heads);
        heads.end_round();
        assert!(!heads.is_empty());
        assert_eq!(heads.take_refused_and_dropped(), (vec![], DroppedHeads { by_client: 0, by_closing: 2 }));
        assert!(heads.is_empty());
        // A later reset is not counted as one of these heads.
        heads.record_header_block(7);
        heads.record_request();
        heads.record_reset(7, PROTOCOL_ERROR);
        heads.end_round();
        assert_eq!(heads.take_refused_and_dropped(), (vec![], NONE));
    }
}

#[test]
fn a_refused_header_block_is_counted_once_even_if_it_arrives_in_parts() {
    for (name, code, debug_data, wanted) in [
        ("malformed", PROTOCOL_ERROR, &b""[..], Some(MALFORMED)),
        ("larger than what h2 ignores", COMPRESSION_ERROR, b"", Some(MALFORMED)),
        ("much too large", ENHANCE_YOUR_CALM, b"header_list_way_too_large", Some(TOO_LARGE)),
        ("too many frames", ENHANCE_YOUR_CALM, b"too_many_continuations", Some(TOO_LARGE)),
        ("too many resets", ENHANCE_YOUR_CALM, b"too_many_resets", None),
        ("NO_ERROR", 0, b"", None),
    ] {
        for is_whole in [false, true] {
            let mut heads = RefusedHeads::default();
            heads.record_partial_header_block(1);
            if is_whole {
                heads.record_header_block(1);
            } else {
                heads.end_round();
            }
            heads.record_goaway(0, code, debug_data);
            heads.end_round();
            let refused: Vec<_> = wanted.into_iter().collect();
            let by_closing = usize::from(is_whole && refused.is_empty());
            assert_eq!(
                heads.take_refused_and_dropped(),
                (refused, DroppedHeads { by_client: 0, by_closing }),
                "{name}, whole: {is_whole}"
            );
        }
    }
    // The stream is reset before the end of its header block, and the rest of the block ends the
    // connection.
    let mut heads = RefusedHeads::default();
    heads.record_partial_header_block(1);
    heads.end_round();
    heads.record_reset(1, PROTOCOL_ERROR);
    heads.end_round();
    heads.record_header_block(1);
    heads.record_goaway(0, PROTOCOL_ERROR, b"");
    heads.end_round();
    assert_eq!(heads.take_refused_and_dropped(), (vec![MALFORMED], NONE));
    // A GOAWAY that concerns no head.
    heads.record_goaway(0, PROTOCOL_ERROR, b"");
    heads.end_round();
    assert_eq!(heads.take_refused_and_dropped(), (vec![], NONE));
}

#[test]
fn a_head_for_which_hyper_ends_the_connection_is_counted() {
    let ended = |prepare: fn(&mut RefusedHeads)| {
        let mut heads = RefusedHeads::default();
        heads.record_header_block(1);
        heads.record_request();
        prepare(&mut heads);
        (heads.record_clean_end(), heads.take_refused_and_dropped())
    };
    assert_eq!(ended(|heads| heads.record_header_block(3)), (CleanEnd::RefusedHead, (vec![MALFORMED], NONE)));
    let two = |heads: &mut RefusedHeads| [3, 5].into_iter().for_each(|stream| heads.record_header_block(stream));
    assert_eq!(ended(two), (CleanEnd::RefusedHead, (vec![MALFORMED], DroppedHeads { by_client: 0, by_closing: 1 })));
    assert_eq!(ended(|_| {}), (CleanEnd::Other, (vec![], NONE)), "each block became a request");
    let client_closed = |heads: &mut RefusedHeads| {
        heads.record_header_block(3);
        heads.record_client_end();
    };
    assert_eq!(ended(client_closed).0, CleanEnd::Other);
    let h2_closed = |heads: &mut RefusedHeads| {
        heads.record_header_block(3);
        heads.record_goaway(0, 0, b"");
    };
    assert_eq!(ended(h2_closed).0, CleanEnd::Other);
}

#[test]
fn streams_are_not_kept_without_bound() {
    let mut heads = RefusedHeads::default();
    for stream in 0..10_000 {
        heads.record_header_block(stream);
    }
    assert_eq!(heads.begun_streams.len(), MAX_STREAMS);
}

#[test]
fn an_error_of_the_connection_is_no_heads_where_all_blocks_were_read() {
    for (begun, reset, last_stream, refused) in [
        (&[1, 3][..], None, 3, 0),
        (&[1, 3], None, 1, 1),
        (&[1, 3], Some(3), 1, 1),
        (&[1], None, 0, 1),
        (&[], None, 0, 0),
    ] {
        let mut heads = RefusedHeads::default();
        begun.iter().for_each(|stream| heads.record_header_block(*stream));
        if let Some(stream) = reset {
            heads.record_reset(stream, PROTOCOL_ERROR);
        }
        heads.record_goaway(last_stream, PROTOCOL_ERROR, b"");
        heads.end_round();
        let dropped = DroppedHeads { by_client: 0, by_closing: begun.len() - refused };
        assert_eq!(
            heads.take_refused_and_dropped(),
            (vec![MALFORMED; refused], dropped),
            "{begun:?} {reset:?} {last_stream}"
        );
    }
}

//! Bodies over HTTP/2 that are malformed, whenever that is seen.

use std::time::Duration;

use serde_json::Value;

use super::{Ends, counts};
use crate::harness::OUTSIDER;
use loopgate_test_support::raw_h2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, RawH2, block, field, frame, request_block,
};

#[tokio::test]
async fn a_body_for_which_its_stream_is_reset_has_one_label_however_early_it_comes() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&[], "").await;
    let all = END_STREAM | END_HEADERS;
    let head = |more| frame(HEADERS, END_HEADERS, 1, &request_block("POST", "/echo", more));
    let (data, trailers) = (frame(DATA, 0, 1, b"x"), frame(HEADERS, all, 1, &field(b":path", b"/e")));
    let too_long = frame(DATA, END_STREAM, 1, b"more");
    let mut count = 0;
    for (head, rest) in [
        (head(&[]), [data.clone(), trailers].concat()),
        (head(&[("content-length", "2")]), [data.clone(), too_long].concat()),
        (head(&[]), frame(HEADERS, all, 1, &block(&[("connection", "x")]))),
    ] {
        for pause in [0, 2, 100] {
            let mut client = RawH2::open(&sidecar, OUTSIDER, &[]).await;
            let mut rest = rest.clone();
            if pause == 0 {
                rest = [head.clone(), rest].concat();
            } else {
                client.send(&head).await;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            let outcome = client.provoke(&rest, |outcome| !outcome.resets.is_empty()).await;
            assert_eq!((&outcome.resets[..], &outcome.heads[..]), (&[(1, 1)][..], &[][..]), "{pause}: {outcome:?}");
            count += 1;
        }
    }
    for line in ends.check(&sidecar, &counts(vec!["bad_body"; count])).await {
        assert_eq!((&line["status"], &line["path"]), (&Value::Null, &"/echo".into()), "{line}");
    }
}

//! Bodies over HTTP/2 that are malformed, at whatever time that is detected, and bodies that the
//! client does not finish.

use std::time::Duration;

use serde_json::Value;

use super::{Ends, counts};
use crate::harness::{OUTSIDER, request_text};
use loopgate_test_support::raw_h2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, RawH2, frame, header_block, literal_field, request_block,
};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn a_malformed_body_over_h2_has_one_label_however_early_it_comes() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&[], "").await;
    let complete_head = END_STREAM | END_HEADERS;
    let head = |more| frame(HEADERS, END_HEADERS, 1, &request_block("POST", "/echo", more));
    let (data, trailers) = (frame(DATA, 0, 1, b"x"), frame(HEADERS, complete_head, 1, &literal_field(b":path", b"/e")));
    let too_long = frame(DATA, END_STREAM, 1, b"more");
    let mut count = 0;
    for (head, body) in [
        (head(&[]), [data.clone(), trailers].concat()),
        (head(&[("content-length", "2")]), [data.clone(), too_long].concat()),
        (head(&[]), frame(HEADERS, complete_head, 1, &header_block(&[("connection", "x")]))),
    ] {
        for pause in [0, 2, 100] {
            let mut client = RawH2::connect(&sidecar, OUTSIDER, &[]).await;
            let mut body = body.clone();
            if pause == 0 {
                body = [head.clone(), body].concat();
            } else {
                client.send(&head).await;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            let outcome = client.send_until(&body, |outcome| !outcome.resets.is_empty()).await;
            assert_eq!((&outcome.resets[..], &outcome.heads[..]), (&[(1, 1)][..], &[][..]), "{pause}: {outcome:?}");
            count += 1;
        }
    }
    for line in ends.check_counts(&sidecar, &counts(vec!["bad_body"; count])).await {
        assert_eq!((&line["status"], &line["path"]), (&Value::Null, &"/echo".into()), "{line}");
    }
}

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// With a `close_notify` and a FIN; the client continues to read.
    Finishing,
    /// With a TCP reset.
    Resetting,
    /// With a FIN, without a `close_notify`.
    Dropping,
}

#[tokio::test]
async fn a_client_that_leaves_before_the_end_of_its_body_is_gone_and_gets_no_status() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&[], "").await;
    let chunked = "Transfer-Encoding: chunked\r\n";
    let mut count = 0;
    for (fields, body) in [
        ("Content-Length: 10\r\n", "hello"),
        (chunked, "5\r\nhello\r\n"),
        (chunked, "5\r\nhel"),
        (chunked, "5"),
        (chunked, "5\r\nhello\r\n0\r\n"),
        (chunked, "5\r\nhello\r\n0\r\nX-A: b\r\n"),
    ] {
        for leaves in [Leaves::Finishing, Leaves::Resetting, Leaves::Dropping] {
            let mut client = sidecar.connect_h1(OUTSIDER).await;
            client.send(request_text("POST /echo", fields) + body).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            match leaves {
                Leaves::Finishing => {
                    client.stream.shutdown().await.unwrap();
                    assert_eq!(client.read_rest().await, b"", "{fields} {body}");
                }
                Leaves::Resetting => client.stream.get_ref().0.set_zero_linger().unwrap(),
                Leaves::Dropping => client.stream.get_mut().0.shutdown().await.unwrap(),
            }
            drop(client);
            count += 1;
        }
    }
    let begun =
        [frame(HEADERS, END_HEADERS, 1, &request_block("POST", "/echo", &[])), frame(DATA, 0, 1, b"hello")].concat();
    // A reset without an error must not look like the end of the body either.
    for code in [None, Some(0_u32), Some(1), Some(2), Some(8)] {
        for pause in [0, 100] {
            let mut client = RawH2::connect(&sidecar, OUTSIDER, &[]).await;
            client.send(&begun).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if let Some(code) = code {
                client.send(&frame(RST_STREAM, 0, 1, &code.to_be_bytes())).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            count += 1;
        }
    }
    for line in ends.check_counts(&sidecar, &counts(vec!["client_gone"; count])).await {
        // A stream that is reset at once may not have become a request, so the path is not checked.
        assert_eq!((&line["status"], &line["bytes"]), (&Value::Null, &0.into()), "{line}");
    }
    let metrics = sidecar.admin_get("/metrics", "127.0.0.1");
    let counted: Vec<_> = metrics.lines().filter(|line| line.contains("status=\"400\"")).collect();
    assert!(counted.iter().all(|line| line.ends_with(" 0")), "{counted:?}");
    for received in sidecar.gateway.requests() {
        assert!(received.truncated, "the gateway received a complete body: {received:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_inside_the_response_is_not_blamed_on_the_gateway() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&[], "").await;
    for leaves in [None, Some(Leaves::Finishing), Some(Leaves::Resetting), Some(Leaves::Dropping)] {
        let mut client = sidecar.connect_h1(OUTSIDER).await;
        let head = request_text("POST /conversation", "Transfer-Encoding: chunked\r\n");
        client.send(head + "5\r\nhello\r\n").await.unwrap();
        assert_eq!(client.read_head().await.unwrap().status(), 200);
        assert_eq!(client.read_chunk().await.as_deref(), Some(&b"hello"[..]));
        match leaves {
            None => {
                client.send("zz\r\n").await.unwrap();
                assert_eq!(client.read_rest().await, b"", "the response must not look complete");
            }
            Some(Leaves::Finishing) => client.stream.shutdown().await.unwrap(),
            Some(Leaves::Resetting) => client.stream.get_ref().0.set_zero_linger().unwrap(),
            Some(Leaves::Dropping) => client.stream.get_mut().0.shutdown().await.unwrap(),
        }
    }
    let wanted = counts(["bad_body", "client_gone", "client_gone", "client_gone"]);
    for line in ends.check_counts(&sidecar, &wanted).await {
        assert_eq!((&line["status"], &line["bytes"]), (&200.into(), &5.into()), "{line}");
    }
}

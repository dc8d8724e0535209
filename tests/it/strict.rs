//! Ambiguous HTTP/1.1, which two parsers could read as different requests: the sidecar refuses it,
//! or forwards exactly one request.

use std::time::Duration;

use tokio::time::timeout;

use crate::harness::{Harness, OUTSIDER};

const SOON: Duration = Duration::from_secs(10);

/// What the sidecar does with a piece of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// 400 and a closed connection; the gateway receives nothing.
    Refused,
    /// As `Refused`, with another status.
    RefusedWith(u16),
    /// The gateway receives this many well-formed requests, and each is answered.
    ReceivedRequest(usize),
    /// The gateway receives one request, and the connection is closed after its answer.
    ReceivedAndClosed,
}

use Fate::{ReceivedAndClosed, ReceivedRequest, Refused, RefusedWith};

const HOST: &str = "Host: gateway.example\r\n";

/// Sends `bytes`; returns the statuses of the responses until the connection ends.
async fn send_and_read_statuses(harness: &Harness, bytes: &[u8]) -> Vec<u16> {
    let mut client = harness.connect_h1(OUTSIDER).await;
    // The write may fail, because the sidecar may refuse the request and close before all is sent.
    // Only the responses count.
    let _ = client.send(bytes).await;
    let mut statuses = Vec::new();
    loop {
        match timeout(SOON, client.read_response()).await.expect("an answer or the end of the connection") {
            Some(response) => statuses.push(response.status()),
            None => return statuses,
        }
    }
}

async fn assert_fate(harness: &Harness, name: &str, bytes: &[u8], fate: Fate) {
    let before = harness.gateway.requests().len();
    // The last request shows that everything before it was processed. It asks for the end of the
    // connection.
    let last = format!("GET /last HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n");
    let with_last = [bytes, last.as_bytes()].concat();
    let (sent, expected, received_count) = match fate {
        Refused => (&with_last[..], vec![400], 0),
        RefusedWith(status) => (&with_last[..], vec![status], 0),
        ReceivedRequest(count) => (&with_last[..], vec![200; count + 1], count + 1),
        ReceivedAndClosed => (&with_last[..], vec![200], 1),
    };
    let statuses = send_and_read_statuses(harness, sent).await;
    let received = harness.gateway.requests().split_off(before);
    assert_eq!((statuses, received.len()), (expected, received_count), "{name}: {received:#?}");
    for received in &received {
        assert_eq!(received.field_values("host").len(), 1, "{name}");
        assert_eq!(received.field_values("x-forwarded-for"), ["192.0.2.1"], "{name}");
        assert!(
            received.field_values("content-length").len() + received.field_values("transfer-encoding").len() <= 1,
            "{name}"
        );
        assert!(!received.head.replace("\r\n", "").contains(['\r', '\n', '\0']), "{name}");
    }
}

#[tokio::test]
async fn ambiguous_lengths_are_refused() {
    let harness = Harness::start().await;
    let cl = "Content-Length: 4\r\n";
    let te = "Transfer-Encoding: chunked\r\n";
    let chunked = "4\r\nbody\r\n0\r\n\r\n";
    for (name, fields, body, fate) in [
        ("a length", cl.to_owned(), "body", ReceivedRequest(1)),
        ("chunks", te.to_owned(), chunked, ReceivedRequest(1)),
        ("CL.TE", format!("{cl}{te}"), chunked, Refused),
        ("TE.CL", format!("{te}{cl}"), chunked, Refused),
        ("TE.CL of zero", format!("{te}Content-Length: 0\r\n"), chunked, Refused),
        ("TE.CL apart", format!("{te}X-A: b\r\n{cl}"), chunked, Refused),
        ("TE.CL in other letters", "transfer-ENCODING: chunked\r\ncontent-LENGTH: 4\r\n".into(), chunked, Refused),
        ("the same CL twice", format!("{cl}{cl}"), "body", Refused),
        ("the same CL twice, apart", format!("{cl}X-A: b\r\n{cl}"), "body", Refused),
        ("two CLs", format!("{cl}Content-Length: 5\r\n"), "body", Refused),
        ("a list of CLs", "Content-Length: 4, 4\r\n".into(), "body", Refused),
        ("a signed CL", "Content-Length: +4\r\n".into(), "body", Refused),
        ("a negative CL", "Content-Length: -4\r\n".into(), "body", Refused),
        ("a hexadecimal CL", "Content-Length: 0x4\r\n".into(), "body", Refused),
        ("an empty CL", "Content-Length: \r\n".into(), "", Refused),
        ("a CL with a blank inside", "Content-Length: 4 4\r\n".into(), "body", Refused),
        ("a CL beyond counting", "Content-Length: 99999999999999999999\r\n".into(), "body", Refused),
        ("a CL in quotes", "Content-Length: \"4\"\r\n".into(), "body", Refused),
        ("a CL with leading zeros", "Content-Length: 0004\r\n".into(), "body", ReceivedRequest(1)),
        ("TE twice", format!("{te}{te}"), chunked, Refused),
        ("TE identity", "Transfer-Encoding: identity\r\n".into(), "", Refused),
        ("TE chunked, identity", "Transfer-Encoding: chunked, identity\r\n".into(), chunked, Refused),
        ("TE identity, chunked", "Transfer-Encoding: identity, chunked\r\n".into(), chunked, Refused),
        ("TE gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n".into(), chunked, Refused),
        ("TE chunked, chunked", "Transfer-Encoding: chunked, chunked\r\n".into(), chunked, Refused),
        ("TE xchunked", "Transfer-Encoding: xchunked\r\n".into(), chunked, Refused),
        ("TE in quotes", "Transfer-Encoding: \"chunked\"\r\n".into(), chunked, Refused),
        ("TE with a parameter", "Transfer-Encoding: chunked;q=1\r\n".into(), chunked, Refused),
        ("TE with a vertical tab", "Transfer-Encoding: \x0bchunked\r\n".into(), chunked, Refused),
        ("TE with a bare CR", "Transfer-Encoding: \rchunked\r\n".into(), chunked, Refused),
        ("TE with a tab before its value", "Transfer-Encoding:\tchunked\r\n".into(), chunked, ReceivedRequest(1)),
        ("TE in capitals", "Transfer-Encoding: CHUNKED\r\n".into(), chunked, ReceivedRequest(1)),
        ("a CL of zero and chunks", format!("Content-Length: 0\r\n{te}"), chunked, Refused),
        ("TE that Connection lists", format!("Connection: transfer-encoding\r\n{te}"), chunked, ReceivedRequest(1)),
        ("CL that Connection lists", format!("Connection: content-length\r\n{cl}"), "body", ReceivedRequest(1)),
        ("TE by another name", format!("Transfer_Encoding: chunked\r\n{cl}"), "body", ReceivedRequest(1)),
        ("neither", String::new(), "", ReceivedRequest(1)),
    ] {
        let bytes = format!("POST /echo HTTP/1.1\r\n{HOST}{fields}\r\n{body}");
        assert_fate(&harness, name, bytes.as_bytes(), fate).await;
    }
}

#[tokio::test]
async fn ambiguity_is_refused_wherever_the_bytes_are_split() {
    let harness = Harness::start().await;
    let head = format!("POST /echo HTTP/1.1\r\n{HOST}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n");
    let before = [
        format!("GET / HTTP/1.1\r\n{HOST}\r\n"),
        format!("POST /echo HTTP/1.1\r\n{HOST}Content-Length: 3\r\n\r\nabc"),
        format!(
            "POST /echo HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0\r\nX-A: b\r\n\r\n"
        ),
    ];
    for first in &before {
        for cut in (1..head.len()).step_by(7) {
            let mut client = harness.connect_h1(OUTSIDER).await;
            client.send(format!("{first}{}", &head[..cut])).await.unwrap();
            assert_eq!(client.read_response().await.unwrap().status(), 200);
            // Whether the body has come already makes no difference.
            let body = if cut % 2 == 0 { "" } else { "4\r\nbody\r\n0\r\n\r\n" };
            client.send(format!("{}{body}", &head[cut..])).await.unwrap();
            assert_eq!(client.read_response().await.unwrap().status(), 400, "cut at {cut} after {first}");
            assert!(client.read_rest().await.is_empty());
        }
    }
    assert!(harness.gateway.requests().iter().all(|received| received.field_values("transfer-encoding").len()
        + received.field_values("content-length").len()
        < 2));
}

#[tokio::test]
async fn bodies_that_look_like_ambiguous_heads_pass() {
    let harness = Harness::start().await;
    let inner = format!("\r\nPOST / HTTP/1.1\r\n{HOST}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut client = harness.connect_h1(OUTSIDER).await;
    for _ in 0..2 {
        let sized = format!("POST /echo HTTP/1.1\r\n{HOST}Content-Length: {}\r\n\r\n{inner}", inner.len());
        assert_eq!(client.send_request(sized).await.text(), inner);
        let chunked = format!(
            "POST /echo HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n",
            inner.len()
        );
        assert_eq!(client.send_request(&chunked).await.text(), inner);
        // The same body, byte by byte.
        for byte in chunked.as_bytes() {
            client.send([*byte]).await.unwrap();
        }
        assert_eq!(client.read_response().await.unwrap().text(), inner);
    }
}

#[tokio::test]
async fn malformed_heads_are_refused() {
    let harness = Harness::start().await;
    for (name, head, fate) in [
        ("plain", format!("GET / HTTP/1.1\r\n{HOST}"), ReceivedRequest(1)),
        ("blank lines before it", format!("\r\n\r\nGET / HTTP/1.1\r\n{HOST}"), ReceivedRequest(1)),
        ("bare LF", format!("GET / HTTP/1.1\n{}", HOST.replace("\r\n", "\n")), ReceivedRequest(1)),
        ("a bare CR in a value", format!("GET / HTTP/1.1\r\n{HOST}X-A: b\rX-B: c\r\n"), Refused),
        ("a CR alone as line end", format!("GET / HTTP/1.1\r\n{HOST}X-A: b\rContent-Length: 5\r\n"), Refused),
        ("obs-fold with a blank", format!("GET / HTTP/1.1\r\n{HOST}X-A: b\r\n c\r\n"), Refused),
        ("obs-fold with a tab", format!("GET / HTTP/1.1\r\n{HOST}X-A: b\r\n\tc\r\n"), Refused),
        ("obs-fold of the first field", format!("GET / HTTP/1.1\r\n X-A: b\r\n{HOST}"), Refused),
        ("a blank before the colon", format!("GET / HTTP/1.1\r\n{HOST}X-A : b\r\n"), Refused),
        ("a tab before the colon", format!("GET / HTTP/1.1\r\n{HOST}X-A\t: b\r\n"), Refused),
        ("a blank before TE's colon", format!("GET / HTTP/1.1\r\n{HOST}Transfer-Encoding : chunked\r\n"), Refused),
        ("no name", format!("GET / HTTP/1.1\r\n{HOST}: b\r\n"), Refused),
        ("no colon", format!("GET / HTTP/1.1\r\n{HOST}X-A\r\n"), Refused),
        ("NUL in a value", format!("GET / HTTP/1.1\r\n{HOST}X-A: b\0c\r\n"), Refused),
        ("NUL in a name", format!("GET / HTTP/1.1\r\n{HOST}X-\0A: b\r\n"), Refused),
        ("NUL in the target", format!("GET /\0 HTTP/1.1\r\n{HOST}"), Refused),
        ("a blank in the target", format!("GET /a b HTTP/1.1\r\n{HOST}"), Refused),
        ("two blanks after the method", format!("GET  / HTTP/1.1\r\n{HOST}"), Refused),
        ("a tab after the method", format!("GET\t/ HTTP/1.1\r\n{HOST}"), Refused),
        ("no target", format!("GET HTTP/1.1\r\n{HOST}"), Refused),
        ("a fragment", format!("GET /a#b HTTP/1.1\r\n{HOST}"), ReceivedRequest(1)),
        ("a target without a slash", format!("GET a HTTP/1.1\r\n{HOST}"), Refused),
        ("an asterisk", format!("GET * HTTP/1.1\r\n{HOST}"), Refused),
        ("HTTP/0.9", "GET /".to_owned(), Refused),
        ("HTTP/1.2", format!("GET / HTTP/1.2\r\n{HOST}"), Refused),
        ("HTTP/2.0", format!("GET / HTTP/2.0\r\n{HOST}"), Refused),
        ("http/1.1", format!("GET / http/1.1\r\n{HOST}"), Refused),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n".to_owned(), Refused),
        ("no host", "GET / HTTP/1.1\r\n".to_owned(), Refused),
        ("two hosts", format!("GET / HTTP/1.1\r\n{HOST}Host: other.example\r\n"), Refused),
        ("the same host twice", format!("GET / HTTP/1.1\r\n{HOST}{HOST}"), Refused),
        ("a list of hosts", "GET / HTTP/1.1\r\nHost: a.example, b.example\r\n".to_owned(), Refused),
        ("an empty host", "GET / HTTP/1.1\r\nHost: \r\n".to_owned(), Refused),
        ("a host with a path", "GET / HTTP/1.1\r\nHost: a.example/x\r\n".to_owned(), Refused),
        ("a host with a user", "GET / HTTP/1.1\r\nHost: root@a.example\r\n".to_owned(), Refused),
        (
            "absolute-form of the same host",
            format!("GET http://gateway.example/a HTTP/1.1\r\n{HOST}"),
            ReceivedRequest(1),
        ),
        ("absolute-form of another host", format!("GET http://127.0.0.1/a HTTP/1.1\r\n{HOST}"), Refused),
        ("absolute-form with a user", format!("GET http://a@gateway.example/ HTTP/1.1\r\n{HOST}"), Refused),
        (
            "Upgrade to h2c",
            format!(
                "GET / HTTP/1.1\r\n{HOST}Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAA\r\n"
            ),
            ReceivedRequest(1),
        ),
        (
            "Upgrade to two protocols",
            format!("GET / HTTP/1.1\r\n{HOST}Upgrade: h2c, websocket\r\nConnection: upgrade\r\n"),
            Refused,
        ),
        (
            "an Upgrade with a body",
            format!("GET / HTTP/1.1\r\n{HOST}Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 4\r\n"),
            Refused,
        ),
        (
            "Upgrade in HTTP/1.0",
            format!("GET / HTTP/1.0\r\n{HOST}Upgrade: websocket\r\nConnection: upgrade\r\n"),
            ReceivedAndClosed,
        ),
        ("Upgrade without Connection", format!("GET / HTTP/1.1\r\n{HOST}Upgrade: websocket\r\n"), ReceivedRequest(1)),
        (
            "close among keep-alives",
            format!(
                "GET / HTTP/1.1\r\n{HOST}Connection: keep-alive\r\nConnection: close\r\nConnection: keep-alive\r\n"
            ),
            ReceivedAndClosed,
        ),
        ("129 fields", format!("GET / HTTP/1.1\r\n{HOST}{}", "X-A: b\r\n".repeat(128)), RefusedWith(431)),
        ("a head of 70 kB", format!("GET / HTTP/1.1\r\n{HOST}X-A: {}\r\n", "b".repeat(70_000)), RefusedWith(431)),
        ("a target of 70 kB", format!("GET /{} HTTP/1.1\r\n{HOST}", "b".repeat(70_000)), RefusedWith(431)),
        (
            "CONNECT",
            "CONNECT gateway.example:18789 HTTP/1.1\r\nHost: gateway.example:18789\r\n".to_owned(),
            RefusedWith(405),
        ),
    ] {
        let end = if name == "bare LF" { "\n" } else { "\r\n" };
        assert_fate(&harness, name, format!("{head}{end}").as_bytes(), fate).await;
    }
}

#[tokio::test]
async fn malformed_chunks_are_refused() {
    let harness = Harness::start().await;
    for (name, body, accepted) in [
        ("plain", "4\r\nbody\r\n0\r\n\r\n".to_owned(), true),
        ("an extension", "4;a=b\r\nbody\r\n0\r\n\r\n".into(), true),
        ("leading zeros", "0004\r\nbody\r\n0\r\n\r\n".into(), true),
        ("a size with 0x", "0x4\r\nbody\r\n0\r\n\r\n".into(), false),
        ("a signed size", "+4\r\nbody\r\n0\r\n\r\n".into(), false),
        ("a negative size", "-4\r\nbody\r\n0\r\n\r\n".into(), false),
        ("no size", "\r\nbody\r\n0\r\n\r\n".into(), false),
        ("a size that is no number", "g\r\nbody\r\n0\r\n\r\n".into(), false),
        ("a blank before the size", " 4\r\nbody\r\n0\r\n\r\n".into(), false),
        ("a size beyond counting", "10000000000000004\r\nbody\r\n0\r\n\r\n".into(), false),
        ("a size line that ends in LF", "4\nbody\r\n0\r\n\r\n".into(), false),
        ("a size line that ends in CR", "4\rbody\r\n0\r\n\r\n".into(), false),
        ("an extension with a bare LF", "4;a\nb\r\nbody\r\n0\r\n\r\n".into(), false),
        ("an extension with a bare CR", "4;a\rb\r\nbody\r\n0\r\n\r\n".into(), false),
        ("an extension without end", format!("4;{}\r\nbody\r\n0\r\n\r\n", "a".repeat(100_000)), false),
        ("more data than its size", "3\r\nbody\r\n0\r\n\r\n".into(), false),
        ("less data than its size", "5\r\nbody\r\n0\r\n\r\n".into(), false),
        ("data that ends in LF", "4\r\nbody\n0\r\n\r\n".into(), false),
        ("data that ends in two blanks", "4\r\nbody  0\r\n\r\n".into(), false),
        ("trailers without end", format!("4\r\nbody\r\n0\r\n{}\r\n", "X-A: b\r\n".repeat(20_000)), false),
    ] {
        let before = harness.gateway.requests().len();
        let head = format!("POST /echo HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n");
        let last = format!("GET /last HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n");
        let statuses = send_and_read_statuses(&harness, format!("{head}{body}{last}").as_bytes()).await;
        let received = harness.gateway.requests().split_off(before);
        if accepted {
            assert_eq!((statuses, received.len()), (vec![200, 200], 2), "{name}");
            assert_eq!(received[0].text(), "body");
        } else {
            // The head may have been forwarded before the fault in the body was found. Then the
            // gateway sees that the body is incomplete.
            assert_eq!(statuses, [400], "{name}");
            assert!(received.iter().all(|received| received.truncated), "{name}: {received:?}");
        }
    }
}

//! Messages that hyper can't send: interim responses, trailers without a `Trailer` field, targets
//! with raw bytes, and refusals with a reason.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use serde_json::Value;
use tokio::time::timeout;

use crate::harness::{AGENT, Harness, OUTSIDER, PROTOCOLS, Protocol, h2_request, read_whole_body, request_text};

const SOON: Duration = Duration::from_secs(20);

/// Reads a response over HTTP/2; returns the interim responses before it, and the response.
async fn read_with_interims(mut response: h2::client::ResponseFuture) -> (Vec<Response<()>>, Response<h2::RecvStream>) {
    let mut interims = Vec::new();
    let response = poll_fn(|cx| {
        while let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            interims.push(interim.unwrap());
        }
        Pin::new(&mut response).poll(cx)
    });
    let response = timeout(SOON, response).await.expect("a response").unwrap();
    (interims, response)
}

#[tokio::test]
async fn interim_responses_reach_the_client_before_the_final_one() {
    let harness = Harness::start().await;
    for source in [OUTSIDER, AGENT] {
        let mut client = harness.connect_h1(source).await;
        client.send(request_text("GET /hints", "")).await.unwrap();
        let (first, second, last) = (
            client.read_response().await.unwrap(),
            client.read_response().await.unwrap(),
            client.read_response().await.unwrap(),
        );
        assert_eq!((first.status(), second.status(), last.status(), last.text().as_str()), (102, 103, 200, "ok"));
        assert_eq!(second.field_names(), ["link", "x-for"], "hop-by-hop fields are removed");

        let mut client = harness.connect_h2(source).await;
        let (interims, response) =
            read_with_interims(client.send_request(h2_request("GET /hints", &[]), true).unwrap().0).await;
        assert_eq!(interims.iter().map(|interim| interim.status().as_u16()).collect::<Vec<_>>(), [102, 103]);
        assert_eq!(interims[1].headers()["link"], "</a.css>; rel=preload");
        assert_eq!(interims[1].headers().len(), 2, "{:?}", interims[1].headers());
        assert_eq!(read_whole_body(&mut response.into_body()).await.unwrap(), b"ok");
    }
    let mut old = harness.connect_h1(OUTSIDER).await;
    old.send("GET /hints HTTP/1.0\r\nHost: gateway.example\r\n\r\n").await.unwrap();
    assert_eq!(old.read_response().await.unwrap().status(), 200, "HTTP/1.0 has no interim responses");
}

#[tokio::test]
async fn an_interim_response_does_not_wait_for_the_final_one() {
    let harness = Harness::start().await;
    let mut h1 = harness.connect_h1(OUTSIDER).await;
    h1.send(request_text("GET /hints?held", "")).await.unwrap();
    assert_eq!(timeout(SOON, h1.read_response()).await.unwrap().unwrap().status(), 102);
    assert_eq!(timeout(SOON, h1.read_response()).await.unwrap().unwrap().status(), 103);
    let (mut response, _) =
        harness.connect_h2(OUTSIDER).await.send_request(h2_request("GET /hints?held", &[]), true).unwrap();
    for status in [102, 103] {
        let interim =
            timeout(SOON, poll_fn(|cx| response.poll_informational(cx))).await.expect("soon").unwrap().unwrap();
        assert_eq!(interim.status(), status);
    }
    harness.gateway.release_held(2);
    assert_eq!(h1.read_response().await.unwrap().text(), "ok");
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test]
async fn responses_to_pipelined_requests_stay_in_order() {
    let harness = Harness::start().await;
    let lines = [
        "GET /large?300000",
        "GET /hints?1",
        "GET /unnamed-trailers",
        "GET /hints?2",
        "GET /large?70000",
        "GET /hints?3",
        "GET /nothing",
    ];
    for _ in 0..20 {
        let mut client = harness.connect_h1(OUTSIDER).await;
        client.send(lines.map(|line| request_text(line, "")).concat()).await.unwrap();
        let mut responses = Vec::new();
        while responses.len() < lines.len() + 6 {
            let response = timeout(SOON, client.read_response()).await.unwrap().unwrap();
            responses.push((
                response.status(),
                response.body.len(),
                response.field("x-for").unwrap_or_default().to_owned() + &response.trailers,
            ));
        }
        let responses: Vec<_> =
            responses.iter().map(|(status, length, text)| format!("{status} {length} {text}")).collect();
        let expected = [
            "200 300000 ",
            "102 0 ",
            "103 0 /hints?1",
            "200 2 ",
            "200 4 x-sum: 4\r\n",
            "102 0 ",
            "103 0 /hints?2",
            "200 2 ",
            "200 70000 ",
            "102 0 ",
            "103 0 /hints?3",
            "200 2 ",
            "204 0 ",
        ];
        assert_eq!(responses, expected);
    }
}

#[tokio::test]
async fn each_stream_gets_its_own_interim_responses() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h2(OUTSIDER).await;
    for round in 0..5 {
        let mut requests = Vec::new();
        for number in 0..60 {
            client = client.ready().await.unwrap();
            // Between these requests come large responses and streams that are reset.
            let (mut large, mut dropped) = (None, None);
            if number % 3 == 0 {
                large = Some(client.send_request(h2_request("GET /large?50000", &[]), true).unwrap().0);
            }
            if number % 4 == 0 {
                client = client.ready().await.unwrap();
                let (_, mut stream) = client.send_request(h2_request("POST /hints?held", &[]), false).unwrap();
                stream.send_reset(h2::Reason::CANCEL);
                dropped = Some(stream);
            }
            client = client.ready().await.unwrap();
            let path = format!("/hints?{round}-{number}");
            let (response, _) = client.send_request(h2_request(&format!("GET {path}"), &[]), true).unwrap();
            requests.push(async move {
                let (interims, response) = read_with_interims(response).await;
                assert_eq!(response.status(), 200);
                let named: Vec<_> = interims.iter().filter_map(|interim| interim.headers().get("x-for")).collect();
                assert_eq!((interims.len(), named), (2, vec![&HeaderValue::from_str(&path).unwrap()]), "{path}");
                if let Some(large) = large {
                    assert_eq!(read_whole_body(&mut large.await.unwrap().into_body()).await.unwrap().len(), 50_000);
                }
                drop(dropped);
            });
        }
        futures_util::future::join_all(requests).await;
    }
}

#[tokio::test]
async fn a_client_over_h2_gets_100_continue() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h2(OUTSIDER).await;
    let (mut response, mut body) =
        client.send_request(h2_request("POST /echo", &[("expect", "100-continue")]), false).unwrap();
    let interim = timeout(SOON, poll_fn(|cx| response.poll_informational(cx))).await.expect("100").unwrap().unwrap();
    assert_eq!(interim.status(), 100);
    body.send_data(Bytes::from_static(b"body"), true).unwrap();
    assert_eq!(read_whole_body(&mut response.await.unwrap().into_body()).await.unwrap(), b"body");
}

#[tokio::test]
async fn trailers_pass_without_being_named_and_connections_stay_usable() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    for _ in 0..5 {
        let response = client.send_request(request_text("GET /unnamed-trailers", "")).await;
        assert_eq!((response.text().as_str(), response.trailers.as_str()), ("body", "x-sum: 4\r\n"));
        let chunks = "4\r\nbody\r\n0\r\nX-Sum: 5\r\n\r\n";
        assert_eq!(
            client.send_request(request_text("POST /echo", "Transfer-Encoding: chunked\r\n") + chunks).await.text(),
            "body"
        );
        assert_eq!(harness.gateway.requests().pop().unwrap().trailers, "x-sum: 5\r\n");
    }
    assert_eq!(harness.gateway.connections(), 1, "one connection to the gateway carries all of it");
    let harness = Harness::start().await;
    let mut client = harness.connect_h2(OUTSIDER).await;
    for _ in 0..5 {
        let mut body =
            client.send_request(h2_request("GET /unnamed-trailers", &[]), true).unwrap().0.await.unwrap().into_body();
        assert_eq!(read_whole_body(&mut body).await.unwrap(), b"body");
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &HeaderValue::from_static("4")));
        let (response, mut stream) = client.send_request(h2_request("POST /echo", &[]), false).unwrap();
        stream.send_data(Bytes::from_static(b"body"), false).unwrap();
        stream
            .send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("6"))]))
            .unwrap();
        assert_eq!(read_whole_body(&mut response.await.unwrap().into_body()).await.unwrap(), b"body");
        assert_eq!(harness.gateway.requests().pop().unwrap().trailers, "x-sum: 6\r\n");
    }
    assert_eq!(harness.gateway.connections(), 1, "one connection to the gateway carries all of it");
    // HTTP/1.0 has no chunked coding, so trailers can't be sent.
    let mut old = harness.connect_h1(OUTSIDER).await;
    old.send("GET /unnamed-trailers HTTP/1.0\r\nHost: gateway.example\r\n\r\n").await.unwrap();
    let response = String::from_utf8(timeout(SOON, old.read_rest()).await.unwrap()).unwrap();
    assert!(response.ends_with("\r\n\r\nbody"), "{response}");
}

#[tokio::test]
async fn raw_bytes_in_a_target_are_encoded_on_their_way() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    let body = "GET /<> HTTP/1.1\r\n\r\n";
    let fields = format!("X-A: \"<>`\r\nContent-Length: {}\r\n", body.len());
    for _ in 0..3 {
        assert_eq!(client.send_request(request_text("POST /a`<\"b\">?q=\"<>`", &fields) + body).await.status(), 200);
        let received = harness.gateway.requests().pop().unwrap();
        assert_eq!(received.start_line(), "POST /a%60%3C%22b%22%3E?q=%22%3C%3E%60 HTTP/1.1");
        assert_eq!((received.field("x-a"), received.text().as_str()), (Some("\"<>`"), body));
    }
    // This target is longer than what hyper reads at once.
    let target = format!("/{}", "<".repeat(20_000));
    assert_eq!(client.send_request(request_text(&format!("GET {target}"), "")).await.status(), 200);
    assert_eq!(
        harness.gateway.requests().pop().unwrap().start_line(),
        format!("GET {} HTTP/1.1", target.replace('<', "%3C"))
    );
}

#[tokio::test]
async fn messages_that_follow_an_upgrade_at_once_are_not_touched() {
    let harness = Harness::start().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: bG9vcGdhdGUgdGVzdCAxNg==\r\n";
    let text = "GET /<`\"> HTTP/1.1\r\n\r\n";
    let message = [&[0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0][..], text.as_bytes()].concat();
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send([request_text("GET /ws", upgrade).as_bytes(), &message].concat()).await.unwrap();
    assert_eq!(client.read_head().await.unwrap().status(), 101);
    let echo = timeout(SOON, client.read_exactly(2 + text.len())).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&echo[2..]), text);
}

#[tokio::test]
async fn every_refusal_states_its_reason() {
    let harness = Harness::start().await;
    let long = "a".repeat(70_000);
    let cases = [
        ("GET / HTTP/1.1\r\nHost: a\r\nX A: b\r\n\r\n".to_owned(), 400, "bad_head"),
        ("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400, "bad_head"),
        ("nonsense\r\n\r\n".to_owned(), 400, "bad_head"),
        (request_text("POST /", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"), 400, "ambiguous_length"),
        (request_text("GET /", &format!("X-Long: {long}\r\n")), 431, "head_too_large"),
        (request_text("GET /", &"X: y\r\n".repeat(200)), 431, "head_too_large"),
    ];
    for (text, status, kind) in &cases {
        for earlier_requests in [0, 1] {
            let mut client = harness.connect_h1(OUTSIDER).await;
            for _ in 0..earlier_requests {
                assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
            }
            let response = client.send_request(text).await;
            assert_eq!(response.status(), *status, "{text:.80}");
            let body: Value = serde_json::from_slice(&response.body)
                .unwrap_or_else(|error| panic!("{text:.80}: {error}: {}", response.text()));
            assert_eq!(body["error"]["type"], *kind, "{text:.80}");
            assert_eq!(response.field("connection"), Some("close"));
            assert_eq!(timeout(SOON, client.read_rest()).await.unwrap(), b"", "nothing follows");
        }
    }
    for protocol in PROTOCOLS {
        let (status, body) = harness.send_request(protocol, OUTSIDER, "TRACE /", &[]).await;
        assert_eq!((status, body.is_empty()), (405, false));
    }
    let slow = Harness::start_with(|config| config.limits.head_timeout = Duration::from_millis(300)).await;
    let mut client = slow.connect_h1(OUTSIDER).await;
    client.send("GET / HTTP/1.1\r\n").await.unwrap();
    let response = timeout(SOON, client.read_response()).await.unwrap().unwrap();
    assert_eq!((response.status(), response.text().contains("head_timeout")), (408, true));
    assert_eq!(slow.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
}

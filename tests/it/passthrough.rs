//! Nothing is lost or hidden between a client and the gateway.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::{AGENT, Harness, OUTSIDER, PROTOCOLS, Protocol, h2_request, read_whole_body, request_text};
use loopgate_test_support::raw_h2::{HEADERS, PREFACE, frame, settings};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_body_of_unstated_length_arrives_whatever_the_method() {
    let harness = Harness::start().await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST"] {
        let mut h1 = harness.connect_h1(OUTSIDER).await;
        h1.send(request_text(&format!("{method} /"), "Transfer-Encoding: chunked\r\n") + "4\r\nbody\r\n0\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(h1.read_head().await.unwrap().status(), 200, "{method}");
        assert_eq!(harness.gateway.requests().last().unwrap().body, b"body", "{method} over HTTP/1.1");

        let (response, mut body) =
            harness.connect_h2(OUTSIDER).await.send_request(h2_request(&format!("{method} /"), &[]), false).unwrap();
        body.send_data(Bytes::from_static(b"h2 body"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200, "{method}");
        assert_eq!(harness.gateway.requests().last().unwrap().body, b"h2 body", "{method} over HTTP/2");
    }
}

#[tokio::test]
async fn bytes_that_arrived_before_the_gateway_broke_off_precede_the_error() {
    let harness = Harness::start().await;
    for round in 0..100 {
        for path in ["/dies-halfway", "/dies-between-chunks"] {
            let mut h1 = harness.connect_h1(OUTSIDER).await;
            h1.send(request_text(&format!("GET {path}"), "")).await.unwrap();
            let head = h1.read_head().await.unwrap_or_else(|| panic!("round {round}: no head of {path} over HTTP/1.1"));
            assert_eq!(head.status(), 200);
            let received = String::from_utf8(timeout(SOON, h1.read_rest()).await.unwrap()).unwrap();
            assert!(received == "half" || received == "4\r\nhalf\r\n", "round {round}, {path}: {received:?}");

            let (response, _) =
                harness.connect_h2(OUTSIDER).await.send_request(h2_request(&format!("GET {path}"), &[]), true).unwrap();
            let mut body =
                response.await.unwrap_or_else(|error| panic!("round {round}: {path} over HTTP/2: {error}")).into_body();
            assert_eq!(
                timeout(SOON, body.data()).await.unwrap().expect("a piece").expect("no error yet"),
                "half",
                "round {round}, {path}"
            );
            let error = loop {
                match timeout(SOON, body.data()).await.unwrap().expect("no clean end") {
                    Ok(data) => assert!(data.is_empty()),
                    Err(error) => break error,
                }
            };
            assert!(error.is_reset(), "round {round}, {path}: {error}");
        }
    }
}

#[tokio::test]
async fn a_websocket_over_h2_is_reset_when_the_gateway_resets_it() {
    let harness = Harness::start().await;
    for (path, clean) in [("/ws-dies", true), ("/ws-resets", false)] {
        let mut client = harness.connect_h2(OUTSIDER).await;
        let mut connect = h2_request(&format!("CONNECT {path}"), &[("sec-websocket-version", "13")]);
        connect.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, mut up) = client.send_request(connect, false).unwrap();
        let mut down = response.await.unwrap().into_body();
        up.send_data(Bytes::from_static(&[0x81, 0x81, 0, 0, 0, 0, b'a']), false).unwrap();
        match timeout(SOON, read_whole_body(&mut down)).await.unwrap() {
            Ok(data) => assert!(clean && data.is_empty(), "{path}: {data:?}"),
            Err(error) => assert!(!clean && error.reason() == Some(h2::Reason::CANCEL), "{path}: {error}"),
        }
    }
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_a_shutdown_whatever_the_client_does() {
    let harness = Harness::start().await;
    let mut idle_h1 = harness.connect_h1(OUTSIDER).await;
    assert_eq!(idle_h1.send_request(request_text("GET /", "")).await.status(), 200);
    let unused_h1 = harness.connect_h1(AGENT).await;
    let mut half_head = harness.connect_h1(OUTSIDER).await;
    half_head.send("GET / HTTP/1.1\r\nHost: ").await.unwrap();
    let idle_h2 = harness.connect_h2(OUTSIDER).await;
    // This client answers neither the PING nor the GOAWAY.
    let mut deaf_h2 = harness.handshake(harness.connect_tcp(OUTSIDER).await, "h2").await.unwrap();
    deaf_h2.write_all(&[PREFACE, &settings(&[])].concat()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    harness.sidecar.stop().await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop((unused_h1, idle_h2, deaf_h2));
}

#[tokio::test]
async fn websocket_messages_under_way_are_answered_before_a_shutdown_closes_them() {
    const SOCKETS: usize = 50;
    const MESSAGES: usize = 20;
    let harness = Harness::start().await;
    let mut sockets = Vec::new();
    for number in 0..SOCKETS {
        sockets.push(
            harness.open_websocket(PROTOCOLS[number % 2], if number % 3 == 0 { AGENT } else { OUTSIDER }, "/ws").await,
        );
    }
    let mut clients = Vec::new();
    for mut socket in sockets {
        for number in 0..MESSAGES {
            socket.feed(Message::text(format!("{number} {}", "x".repeat(500)))).await.unwrap();
        }
        socket.flush().await.unwrap();
        clients.push(async move {
            let mut echoes = 0;
            loop {
                match socket.next().await {
                    Some(Ok(Message::Text(_))) => echoes += 1,
                    Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Away => return echoes,
                    other => panic!("{other:?} after {echoes} echoes"),
                }
            }
        });
    }
    let (echoes, ()) = tokio::join!(futures_util::future::join_all(clients), harness.sidecar.stop());
    assert_eq!(echoes.iter().sum::<usize>(), SOCKETS * MESSAGES);
}

#[tokio::test]
async fn trace_is_refused_on_both_lanes() {
    let harness = Harness::start().await;
    for source in [AGENT, OUTSIDER] {
        for protocol in PROTOCOLS {
            let (status, body) = harness.send_request(protocol, source, "TRACE /", &[("cookie", "secret=1")]).await;
            assert_eq!(status, 405);
            assert!(body.contains("TRACE") && !body.contains("secret"), "{body}");
        }
    }
    assert!(harness.gateway.requests().is_empty());
}

#[tokio::test]
async fn an_http_1_0_request_without_a_host_gets_the_listeners_address() {
    let harness = Harness::start().await;
    let address = harness.sidecar.tls_addresses()[0].to_string();
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send("OPTIONS / HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(client.read_response().await.unwrap().status(), 200);
    let received = harness.gateway.requests();
    assert_eq!(received[0].field_values("host"), [address.as_str()]);
    assert_eq!(received[0].field("x-forwarded-host"), Some(address.as_str()));
    let mut client = harness.connect_h1(OUTSIDER).await;
    assert_eq!(client.send_request("OPTIONS / HTTP/1.1\r\n\r\n").await.status(), 400, "HTTP/1.1 must name its host");
}

#[tokio::test]
async fn many_cookie_fields_over_h2_count_as_one() {
    let harness = Harness::start().await;
    let crumbs: Vec<_> = (0..140).map(|number| format!("name{number}=value")).collect();
    let fields: Vec<_> = crumbs.iter().map(|crumb| ("cookie", crumb.as_str())).collect();
    assert_eq!(harness.send_request(Protocol::H2, OUTSIDER, "GET /", &fields).await.0, 200);
    assert_eq!(harness.gateway.requests()[0].field_values("cookie"), [crumbs.join("; ")]);
}

#[tokio::test]
async fn only_upgrades_that_are_configured_are_passed_on() {
    for configured in [false, true] {
        let harness = Harness::start_with(|config| {
            if configured {
                config.http.upgrades = vec!["example/1".into()];
            }
        })
        .await;
        let mut client = harness.connect_h1(OUTSIDER).await;
        client.send(request_text("GET /", "Upgrade: Example/1\r\nConnection: Upgrade\r\n")).await.unwrap();
        assert_eq!(client.read_head().await.unwrap().status(), 200);
        let received = harness.gateway.requests().remove(0);
        assert_eq!(received.field("upgrade"), configured.then_some("Example/1"));
        assert_eq!(received.field("connection").is_some(), configured);
        let mut connect = h2_request("CONNECT /ws", &[("sec-websocket-version", "13")]);
        connect.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, _body) = harness.connect_h2(OUTSIDER).await.send_request(connect, false).unwrap();
        assert_eq!(response.await.unwrap().status().as_u16(), if configured { 400 } else { 200 });
    }
}

#[tokio::test]
async fn large_response_heads_pass_up_to_the_limits() {
    let harness = Harness::start().await;
    for protocol in PROTOCOLS {
        assert_eq!(harness.send_request(protocol, OUTSIDER, "GET /many-fields?200", &[]).await.0, 200, "{protocol:?}");
    }
    assert_eq!(harness.send_request(Protocol::H1, OUTSIDER, "GET /large-head?100000", &[]).await.0, 200);
    let strict = Harness::start_with(|config| {
        config.limits.response_fields = 20;
        config.limits.response_head = 8192;
    })
    .await;
    for path in ["/many-fields?30", "/large-head?10000"] {
        let (status, body) = strict.send_request(Protocol::H1, OUTSIDER, &format!("GET {path}"), &[]).await;
        assert_eq!(status, 502);
        assert!(body.contains("gateway_head_too_large"), "{body}");
    }
}

#[tokio::test]
async fn a_reason_phrase_is_passed_on() {
    let harness = Harness::start().await;
    let response = harness.connect_h1(OUTSIDER).await.send_request(request_text("GET /renamed", "")).await;
    assert_eq!((response.start_line(), response.text().as_str()), ("HTTP/1.1 200 Quite Fine", "body"));
}

#[tokio::test]
async fn a_response_with_two_lengths_is_passed_on_with_its_chunks_alone() {
    let harness = Harness::start().await;
    let response = harness.connect_h1(OUTSIDER).await.send_request(request_text("GET /both-lengths", "")).await;
    assert_eq!((response.field("content-length"), response.text().as_str()), (None, "hello"));
    let (response, _) =
        harness.connect_h2(OUTSIDER).await.send_request(h2_request("GET /both-lengths", &[]), true).unwrap();
    let mut response = response.await.unwrap();
    assert!(!response.headers().contains_key("content-length"));
    assert_eq!(read_whole_body(response.body_mut()).await.unwrap(), b"hello");
}

#[tokio::test]
async fn an_h2_connection_begins_with_settings() {
    let harness = Harness::start().await;
    let stream = harness.handshake(harness.connect_tcp(OUTSIDER).await, "h2").await.unwrap();
    let mut raw = crate::harness::raw_http(stream);
    raw.send([PREFACE, &frame(HEADERS, 5, 1, &[0x82, 0x87, 0x84, 0x41, 1, b'a'])].concat()).await.unwrap();
    let bytes = timeout(SOON, raw.read_rest()).await.unwrap();
    assert!(bytes.ends_with(&[0, 0, 0, 1]), "GOAWAY with PROTOCOL_ERROR: {bytes:?}");
    assert!(harness.gateway.requests().is_empty());
}

/// The gateway answers and closes while the client is still sending.
#[tokio::test]
async fn an_early_response_reaches_a_client_that_is_still_sending() {
    let harness = Harness::start().await;
    let body = Bytes::from(vec![b'x'; 20_000_000]);
    for round in 0..10 {
        let mut client = harness.connect_h1(OUTSIDER).await;
        client.send(request_text("POST /unwanted", &format!("Content-Length: {}\r\n", body.len()))).await.unwrap();
        client.send(&body).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let response = client.read_response().await.expect("a response");
        assert_eq!((response.status(), response.text().as_str()), (413, "too much"), "{round}");

        let mut client = harness.connect_h2(OUTSIDER).await;
        let (response, mut stream) = client.send_request(h2_request("POST /unwanted", &[]), false).unwrap();
        stream.send_data(body.clone(), true).unwrap();
        let mut response = response.await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(response.status(), 413, "{round}");
        assert_eq!(read_whole_body(response.body_mut()).await.unwrap(), b"too much");
    }
}

/// A recipient that ignores the other coding would forward a wrong body (RFC 9112 section 6.1).
#[tokio::test]
async fn a_response_in_a_coding_other_than_chunked_is_refused() {
    let harness = Harness::start().await;
    for protocol in PROTOCOLS {
        for codings in ["chunked", "CHUNKED", "+chunked+"] {
            let path = format!("GET /coded/200?{codings}");
            assert_eq!(harness.send_request(protocol, OUTSIDER, &path, &[]).await, (200, "hello".into()), "{path}");
        }
        for codings in [
            "gzip,+chunked",
            "gzip",
            "gzip;chunked",
            "chunked;gzip",
            "identity",
            "Identity;chunked",
            "chunked;chunked",
            "chunked,+chunked",
            "chunked,",
            "",
            "xchunked",
            "chunked;+",
        ] {
            for request in ["GET /coded/200", "POST /coded/200", "GET /coded/204", "GET /coded/304"] {
                let request = format!("{request}?{codings}");
                let (status, body) =
                    harness.send_request(protocol, OUTSIDER, &request, &[("content-length", "0")]).await;
                assert_eq!(status, 502, "{protocol:?} {request}: {body}");
                assert!(body.contains("\"gateway_transfer_encoding\""), "{request}: {body}");
            }
        }
    }
    // Node.js answers a HEAD like this if the response to a GET would be chunked.
    let mut client = harness.connect_h1(OUTSIDER).await;
    let before = harness.gateway.connections();
    for _ in 0..2 {
        client.send(request_text("HEAD /coded/200?chunked", "")).await.unwrap();
        let head = client.read_head().await.unwrap();
        assert_eq!((head.status(), head.field("transfer-encoding")), (200, None));
    }
    assert_eq!(harness.gateway.connections() - before, 1);
}

/// RFC 9110 section 8.6: a response to HEAD and a 304 may state the length that a GET would get; a
/// 204 may not.
#[tokio::test]
async fn the_stated_length_of_a_response_is_the_same_over_both_protocols() {
    let harness = Harness::start().await;
    let mut h1 = harness.connect_h1(OUTSIDER).await;
    let mut h2 = harness.connect_h2(OUTSIDER).await;
    for (line, status, length) in [
        ("HEAD /", 200, Some("5")),
        ("GET /same", 304, Some("5")),
        ("HEAD /same", 304, Some("5")),
        ("GET /same-sized-wrongly", 304, None),
        ("GET /nothing-sized", 204, None),
        ("HEAD /nothing-sized", 204, None),
        ("GET /sized-twice", 200, Some("5")),
        ("GET /sized-in-a-list", 200, Some("5")),
        ("GET /", 200, Some("5")),
    ] {
        h1.send(request_text(line, "")).await.unwrap();
        let mut head = h1.read_head().await.unwrap();
        assert_eq!((head.status(), head.field_values("content-length")), (status, Vec::from_iter(length)), "{line}");
        if status == 200 && !line.starts_with("HEAD") {
            assert!(h1.read_body(&mut head, false).await);
            assert_eq!(head.text(), "hello", "{line}");
        }
        h2 = h2.ready().await.unwrap();
        let response = h2.send_request(h2_request(line, &[]), true).unwrap().0.await.unwrap();
        let found: Vec<_> = response.headers().get_all("content-length").iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!((response.status().as_u16(), found), (status, Vec::from_iter(length)), "{line} over HTTP/2");
        let body = read_whole_body(&mut response.into_body()).await.unwrap();
        assert_eq!(body.is_empty(), status != 200 || line.starts_with("HEAD"), "{line}");
    }
    assert_eq!(h1.send_request(request_text("GET /", "Connection: close\r\n")).await.text(), "hello");
    assert!(h1.read_rest().await.is_empty());
}

/// RFC 9110 section 9.3.2: a response to HEAD has no content, not even an error response.
#[tokio::test]
async fn a_refused_head_request_gets_no_content() {
    let harness = Harness::start().await;
    let mut h1 = harness.connect_h1(OUTSIDER).await;
    for path in ["/dies", "/nonsense"] {
        let (response, _) =
            harness.connect_h2(OUTSIDER).await.send_request(h2_request(&format!("HEAD {path}"), &[]), true).unwrap();
        let response = response.await.unwrap();
        let length = response.headers()["content-length"].to_str().unwrap().parse::<usize>().unwrap();
        assert_eq!((response.status().as_u16(), length > 10), (502, true), "{path}");
        assert_eq!(read_whole_body(&mut response.into_body()).await.unwrap(), b"", "{path}");

        h1.send(request_text(&format!("HEAD {path}"), "")).await.unwrap();
        let head = h1.read_head().await.unwrap();
        assert_eq!((head.status(), head.field("content-length").unwrap().parse()), (502, Ok(length)), "{path}");
    }
    assert_eq!(h1.send_request(request_text("GET /", "")).await.text(), "hello");
}

/// RFC 8446 section 6.1: without a `close_notify` a client can't tell the end of a connection from
/// an attack.
#[tokio::test]
async fn a_connection_on_which_an_upgrade_was_refused_ends_with_a_close_notify() {
    let harness = Harness::start_with(|config| {
        config.limits.stall_timeout = Duration::from_secs(1);
        config.limits.head_timeout = Duration::from_secs(1);
    })
    .await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let cases = [
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(), 405),
        (request_text("GET /ws", &format!("{upgrade}Content-Length: 2\r\n")) + "xx", 400),
        (request_text("GET /ws", &upgrade.replace("websocket", "websocket, h2c")), 400),
        (request_text("GET /upgrade-required", upgrade), 426),
        (request_text("GET /dies", upgrade), 502),
        (request_text("POST /echo", "Content-Length: 10\r\n"), 408),
        (request_text("POST /echo", "Content-Length: 10\r\nExpect: 100-continue\r\n"), 408),
        (request_text("POST /unread", &format!("{upgrade}Content-Length: 10\r\n")), 400),
        ("GET / HTTP/1.1\r\nHos".to_owned(), 408),
        (request_text("POST /echo", "Transfer-Encoding: chunked\r\n") + "5\r\nhel", 408),
    ];
    let asked = cases.map(|(refused, status)| {
        let harness = &harness;
        Box::pin(async move {
            let mut client = harness.connect_h1(OUTSIDER).await;
            client.send(&refused).await.unwrap();
            let mut response = client.read_response().await.unwrap();
            if response.status() == 100 {
                response = client.read_response().await.unwrap();
            }
            assert_eq!(response.status(), status, "{refused}");
            if response.field("connection").is_none_or(|value| value != "close") && status != 408 {
                let last = client.send_request(request_text("GET /", "Connection: close\r\n")).await;
                assert_eq!(last.text(), "hello", "{refused}");
            }
            assert!(client.ends_cleanly().await, "{refused}");
        })
    });
    futures_util::future::join_all(asked).await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    assert_eq!(client.send_request(request_text("GET /upgrade-required", upgrade)).await.status(), 426);
    assert_eq!(client.send_request("GET / HTTP/1.1\r\nHos").await.status(), 408);
    assert!(client.ends_cleanly().await);
}

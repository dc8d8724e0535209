//! WebSockets over HTTP/1.1 and HTTP/2.

use std::io::Write;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::{AGENT, Harness, OUTSIDER, PROTOCOLS, UNKNOWN_CLIENT, request_text};
use crate::lanes::{assert_external, assert_is_agents_request};
use loopgate_test_support::raw_h2::*;
use loopgate_test_support::raw_http::RawHttp;

#[tokio::test]
async fn a_websocket_uses_its_lane_and_echoes() {
    let harness = Harness::start().await;
    for protocol in PROTOCOLS {
        for source in [OUTSIDER, AGENT] {
            let mut socket = harness.open_websocket(protocol, source, "/ws").await;
            let received = harness.gateway.requests().pop().unwrap();
            if source == AGENT {
                assert_is_agents_request(&received, &harness)
            } else {
                assert_external(&received, UNKNOWN_CLIENT)
            }
            assert_eq!(received.start_line(), "GET /ws HTTP/1.1");
            assert_eq!(received.field("upgrade"), Some("websocket"));
            assert_eq!(received.field("sec-websocket-version"), Some("13"));
            for size in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
                let message = Message::binary(vec![u8::try_from(size % 251).unwrap(); size]);
                socket.send(message.clone()).await.unwrap();
                assert_eq!(socket.next().await.unwrap().unwrap(), message, "{protocol:?} {size}");
            }
            socket.close(None).await.unwrap();
            assert!(socket.next().await.unwrap().unwrap().is_close());
            assert!(socket.next().await.is_none(), "{protocol:?}: the stream ends after the close frame");
        }
    }
}

/// A 2xx response to an extended CONNECT would mean that the WebSocket is open (RFC 8441 section
/// 5).
#[tokio::test]
async fn only_a_101_opens_a_websocket_over_h2() {
    let harness = Harness::start().await;
    for (path, status) in [("/", 502), ("/nothing", 502), ("/same", 304), ("/upgrade-required", 426)] {
        let mut client = harness.connect_h2(OUTSIDER).await;
        let mut request = crate::harness::h2_request(&format!("CONNECT {path}"), &[("sec-websocket-version", "13")]);
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, _) = client.send_request(request, false).unwrap();
        assert_eq!(response.await.unwrap().status(), status, "{path}");
    }
}

/// The gateway pairs a device silently for all scopes that it asks for, whatever the cap of its
/// connection.
#[tokio::test]
async fn a_connect_that_asks_for_more_than_the_cap_never_reaches_the_gateway() {
    let connect = |scopes: &[&str]| {
        Message::text(
            serde_json::json!({ "type": "req", "id": "1", "method": "connect", "params": { "scopes": scopes } })
                .to_string(),
        )
    };
    let harness = Harness::start_with(|config| {
        config.agents.scopes = vec!["operator.read".into()];
        config.external.scopes = vec!["operator.write".into()];
    })
    .await;
    for protocol in PROTOCOLS {
        for (source, own, other) in
            [(AGENT, "operator.read", "operator.admin"), (OUTSIDER, "operator.write", "operator.read")]
        {
            let mut socket = harness.open_websocket(protocol, source, "/gateway").await;
            let received = harness.gateway.requests().pop().unwrap();
            assert_eq!(
                (received.field("x-openclaw-scopes"), received.field("sec-websocket-extensions")),
                (Some(own), None)
            );
            // Both messages are sent in one segment. The gateway would handle both if it got the
            // second one before it has accepted the first one.
            socket.feed(connect(&[own])).await.unwrap();
            socket.feed(connect(&[other])).await.unwrap();
            socket.flush().await.unwrap();
            assert!(socket.next().await.unwrap().unwrap().to_text().unwrap().contains("challenge"));
            let accepted = Message::text(r#"{"type":"res","id":"1","ok":true}"#);
            let received = [socket.next().await.unwrap().unwrap(), socket.next().await.unwrap().unwrap()];
            assert_eq!(json(&received[0]), json(&accepted), "{protocol:?} {source}");
            assert_eq!(
                received[1],
                connect(&[other]),
                "{protocol:?} {source}: after the first one it is an ordinary request"
            );
            for message in [connect(&[own, other]), Message::text("{}"), Message::text("hello")] {
                let mut socket = harness.open_websocket(protocol, source, "/ws").await;
                socket.send(message.clone()).await.unwrap();
                let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else {
                    panic!("no close frame: {message}")
                };
                assert_eq!(close.code, CloseCode::Policy, "{protocol:?} {source} {message}");
                assert!(close.reason.contains("cap"), "{}", close.reason);
                if message == connect(&[own, other]) {
                    assert_eq!(close.reason, format!("loopgate: {other} exceeds this client's scope cap ({own})"));
                }
            }
        }
        for source in [AGENT, OUTSIDER] {
            let mut client = harness.connect_h1(source).await;
            let response = client
                .send_request(crate::harness::request_text(
                    "POST /tools/invoke",
                    "Content-Length: 0\r\nAuthorization: Bearer t\r\n",
                ))
                .await;
            assert_eq!(response.status(), 403);
        }
    }
}

fn json(message: &Message) -> serde_json::Value {
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

/// The gateway accepts a device's own token from any address, also after its container is gone.
#[tokio::test]
async fn a_device_that_an_agent_used_first_is_refused_to_external_clients() {
    let connect = |device: &str, answer: &str| {
        let params = serde_json::json!({ "scopes": [], "device": { "id": device }, "answer": answer });
        Message::text(
            serde_json::json!({ "type": "req", "id": "1", "method": "connect", "params": params }).to_string(),
        )
    };
    let harness = Harness::start().await;
    let file = harness.state.path().join("devices.json");
    // Connects from `source` as `device`; the error is loopgate's reason for a refusal.
    let use_device = async |source, device: &str, answer: &str| {
        let mut socket = harness.open_websocket(PROTOCOLS[0], source, "/gateway").await;
        assert!(socket.next().await.unwrap().unwrap().to_text().unwrap().contains("challenge"));
        socket.send(connect(device, answer)).await.unwrap();
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Close(Some(close)) if close.reason == "the gateway's reason" => return Ok(()),
                Message::Close(close) => {
                    let close = close.unwrap();
                    assert_eq!(close.code, CloseCode::Policy);
                    return Err(close.reason.to_string());
                }
                message if json(&message)["ok"] == true => return Ok(()),
                // The gateway's close frame follows.
                message => assert_eq!(json(&message)["ok"], false, "a message that is no answer to the connect"),
            }
        }
    };
    let is_saved = |device: &str| std::fs::read_to_string(&file).is_ok_and(|text| text.contains(device));
    let [agents, silent, outsiders, refused] = ["a", "5", "b", "c"].map(|digit| digit.repeat(64));
    use_device(OUTSIDER, &outsiders, "ok").await.unwrap();
    use_device(AGENT, &agents, "ok").await.unwrap();
    assert!(is_saved(&agents), "the device is saved before the gateway gets the connect");
    // The gateway pairs this device, but sends no response.
    use_device(AGENT, &silent, "silent").await.unwrap();
    use_device(AGENT, &refused, "refuse").await.unwrap();
    let started = std::time::Instant::now();
    while !is_saved(&outsiders) || is_saved(&refused) {
        assert!(started.elapsed() < Duration::from_secs(10), "the devices are not saved");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    use_device(AGENT, &outsiders, "ok").await.unwrap();
    for device in [&agents, &silent] {
        let refusal = use_device(OUTSIDER, device, "ok").await.unwrap_err();
        assert!(
            refusal.contains(AGENT) && refusal.contains(&format!("loopgate devices release {}", &device[..12])),
            "{refusal}"
        );
    }
    use_device(AGENT, &agents, "ok").await.unwrap();
    use_device(OUTSIDER, &outsiders, "ok").await.unwrap();
    use_device(OUTSIDER, &refused, "ok").await.expect("a connect that the gateway refuses binds nothing");
    for (source, message, reason) in [
        // Two parsers could read this differently.
        (OUTSIDER, r#"{"id":"1","method":"connect","params":{"device":{"id":"x","id":"y"}}}"#, "malformed"),
        // The gateway would handle a `connect` right after this message.
        (OUTSIDER, r#"{"type":"req","id":"1","method":"health"}"#, "must be a connect"),
        (AGENT, "hello", "must be a connect"),
        (AGENT, r#"{"id":"1","method":"connect","params":{"device":{"id":"x","publicKey":"AAAA"}}}"#, "public key"),
    ] {
        let mut socket = harness.open_websocket(PROTOCOLS[0], source, "/gateway").await;
        socket.next().await.unwrap().unwrap();
        socket.send(Message::text(message)).await.unwrap();
        let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else {
            panic!("no close frame: {message}")
        };
        assert!(close.code == CloseCode::Policy && close.reason.contains(reason), "{close:?}");
    }
}

#[tokio::test]
async fn the_connection_of_a_refused_upgrade_takes_no_further_request() {
    const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    for (fields, reused) in [("", true), (UPGRADE, false)] {
        assert_eq!(
            client.send_request(crate::harness::request_text("GET /upgrade-required", fields)).await.status(),
            426
        );
        assert_eq!(client.send_request(crate::harness::request_text("GET /", "")).await.status(), 200);
        let requests = harness.gateway.requests();
        let [.., refused, next] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!(refused.connection == next.connection, reused, "{fields:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_dies_ends_its_websockets() {
    let harness = Harness::start().await;
    for protocol in PROTOCOLS {
        let mut socket = harness.open_websocket(protocol, OUTSIDER, "/ws-dies").await;
        socket.send(Message::text("last message")).await.unwrap();
        let end = socket.next().await;
        assert!(!matches!(end, Some(Ok(_))), "{protocol:?}: {end:?}");
    }
}

/// A part of a message and the broken record arrive together, so the record is read after data.
/// Neither side sends more.
#[tokio::test]
async fn a_broken_tls_record_ends_a_websocket() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(client.ask_head(request_text("GET /ws", fields)).await.status(), 101);
    let (mut client, _) = client.into_parts();
    let (socket, session) = client.get_mut();
    let mut bytes = Vec::new();
    session.writer().write_all(&[0x82, 0xfe]).unwrap();
    session.write_tls(&mut bytes).unwrap();
    // The record does not fit into the first read by rustls.
    bytes.extend([&[23, 3, 3][..], &8192_u16.to_be_bytes(), &[7; 8192]].concat());
    socket.write_all(&bytes).await.unwrap();
    // The sidecar sends an alert and ends the connection.
    let end = timeout(Duration::from_secs(10), RawHttp::new(socket).until_end()).await;
    end.expect("the connection ends");
}

/// The client disconnects in the middle of a frame: with a reset, and with the end of its stream.
#[tokio::test]
async fn a_client_that_disconnects_ends_its_websocket() {
    let harness = Harness::start().await;
    let fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let half_a_frame = [0x82, 0xfe, 1, 0, 0, 0, 0, 0, 1, 2, 3];
    let mut closed = 0;
    for reset in [true, false] {
        let mut client = harness.connect_h1(OUTSIDER).await;
        client.send(crate::harness::request_text("GET /ws", fields)).await.unwrap();
        assert_eq!(client.read_head().await.unwrap().status(), 101);
        client.send(half_a_frame).await.unwrap();
        if reset {
            client.stream.get_ref().0.set_zero_linger().unwrap();
            drop(client);
        } else {
            client.stream.shutdown().await.unwrap();
            assert!(client.read_rest().await.is_empty());
        }
        closed += 1;
        harness.gateway.wait_for_closed(closed).await;
    }
    let head = header_block(&[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":authority", "gateway.example"),
        (":path", "/ws"),
        ("sec-websocket-version", "13"),
    ]);
    for end in [frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()), frame(DATA, END_STREAM, 1, &[])] {
        let mut raw = RawH2::connect(&harness, OUTSIDER, &[]).await;
        let served = raw.send_until(&frame(HEADERS, END_HEADERS, 1, &head), Outcome::is_decided).await;
        assert_eq!(served.heads, [(1, 0x88)]);
        raw.send(&[frame(DATA, 0, 1, &half_a_frame), end].concat()).await;
        closed += 1;
        harness.gateway.wait_for_closed(closed).await;
        let request = frame(HEADERS, END_HEADERS | END_STREAM, 3, &request_block("GET", "/", &[]));
        let next = raw
            .send_until(&request, |outcome| outcome.heads.iter().any(|(stream, _)| *stream == 3) || outcome.is_over())
            .await;
        assert_eq!(next.heads.last(), Some(&(3, 0x88)), "the HTTP/2 connection stays usable: {next:?}");
    }
}

#[tokio::test]
async fn frames_sent_before_the_answer_are_not_lost() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    let fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut bytes = crate::harness::request_text("GET /ws", fields).into_bytes();
    // A masked text frame that says "hi"; the mask is zero.
    bytes.extend([0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
    client.send(bytes).await.unwrap();
    let response = client.read_head().await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(client.read_exactly(4).await.unwrap(), [0x81, 0x02, b'h', b'i']);
}

/// Stops the sidecar; returns how long that took.
async fn time_to_stop(harness: &Harness) -> Duration {
    let begun = tokio::time::Instant::now();
    harness.sidecar.stop().await;
    begun.elapsed()
}

#[tokio::test]
async fn a_drain_sends_a_close_frame_to_every_websocket() {
    let harness = Harness::start().await;
    let mut sockets = Vec::new();
    for number in 0..40 {
        sockets.push(
            harness.open_websocket(PROTOCOLS[number % 2], if number % 3 == 0 { AGENT } else { OUTSIDER }, "/ws").await,
        );
    }
    let clients =
        futures_util::future::join_all(sockets.into_iter().enumerate().map(|(number, mut socket)| async move {
            let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("{number}: no close frame") };
            assert_eq!(frame.code, CloseCode::Away, "{number}");
            // tungstenite answers the close; then the stream ends.
            while let Some(Ok(_)) = socket.next().await {}
        }));
    let (took, _) = tokio::join!(time_to_stop(&harness), clients);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_client_that_does_not_close_does_not_delay_the_drain() {
    let harness = Harness::start().await;
    let mut sockets = Vec::new();
    for protocol in PROTOCOLS {
        let mut socket = harness.open_websocket(protocol, OUTSIDER, "/ws").await;
        socket.send(Message::text("hello")).await.unwrap();
        socket.next().await.unwrap().unwrap();
        sockets.push(socket);
    }
    let clients = futures_util::future::join_all(
        sockets.iter_mut().map(|socket| async { while let Some(Ok(_)) = socket.next().await {} }),
    );
    let (took, _) = tokio::join!(time_to_stop(&harness), clients);
    assert!(took < Duration::from_secs(8), "{took:?}");
}

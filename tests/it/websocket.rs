//! WebSockets over HTTP/1.1 and HTTP/2.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::house::{AGENT, BOTH, Door, House, Protocol, STRANGER, UNKNOWN};
use crate::lanes::{assert_agents, assert_external};
use crate::raw_h2::*;

/// Any byte stream.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub type Socket = WebSocketStream<Box<dyn Io>>;

impl Door {
    /// A WebSocket of `source` to `path`.
    pub async fn websocket(&self, protocol: Protocol, source: &str, path: &str) -> Socket {
        match protocol {
            Protocol::H1 => {
                let stream = self.handshake(self.tcp(source).await, "http/1.1").await.unwrap();
                let stream: Box<dyn Io> = Box::new(stream);
                client_async(format!("wss://gateway.example:18789{path}"), stream).await.unwrap().0
            }
            Protocol::H2 => self.websockets(source, path, &[&[]]).await.pop().unwrap(),
        }
    }

    /// WebSockets of `source` to `path` on one HTTP/2 connection, one for each list of what else is said.
    pub async fn websockets(&self, source: &str, path: &str, each: &[&[(&'static str, &str)]]) -> Vec<Socket> {
        let stream = TokioIo::new(self.handshake(self.tcp(source).await, "h2").await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake::<_, _, Empty<bytes::Bytes>>(TokioExecutor::new(), stream).await.unwrap();
        self.tasks.spawn(async move {
            let _ = connection.await;
        });
        let mut sockets = Vec::new();
        for fields in each {
            let mut request = http::Request::connect(format!("https://gateway.example:18789{path}")).body(Empty::new()).unwrap();
            request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
            request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
            for (name, value) in *fields {
                request.headers_mut().insert(*name, value.parse().unwrap());
            }
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let stream: Box<dyn Io> = Box::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
            sockets.push(WebSocketStream::from_raw_socket(stream, Role::Client, None).await);
        }
        sockets
    }
}

#[tokio::test]
async fn a_websocket_is_heard_on_its_lane_and_echoes() {
    let house = House::open().await;
    for protocol in BOTH {
        for source in [STRANGER, AGENT] {
            let mut socket = house.websocket(protocol, source, "/ws").await;
            let heard = house.gateway.heard().pop().unwrap();
            if source == AGENT {
                assert_agents(&heard, &house)
            } else {
                assert_external(&heard, UNKNOWN)
            }
            assert_eq!(heard.start(), "GET /ws HTTP/1.1");
            assert_eq!(heard.field("upgrade"), Some("websocket"));
            assert_eq!(heard.field("sec-websocket-version"), Some("13"));
            for size in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
                let message = Message::binary(vec![u8::try_from(size % 251).unwrap(); size]);
                socket.send(message.clone()).await.unwrap();
                assert_eq!(socket.next().await.unwrap().unwrap(), message, "{protocol:?} {size}");
            }
            socket.close(None).await.unwrap();
            assert!(socket.next().await.unwrap().unwrap().is_close());
            assert!(socket.next().await.is_none(), "{protocol:?}: and then the end of the stream");
        }
    }
}

/// In answer to an extended CONNECT, each of these would say that the WebSocket is open.
#[tokio::test]
async fn what_is_no_101_opens_no_websocket_over_h2() {
    let house = House::open().await;
    for (path, status) in [("/", 502), ("/nothing", 502), ("/same", 304), ("/upgrade-required", 426)] {
        let mut client = house.h2(STRANGER).await;
        let mut request = crate::house::h2_request(&format!("CONNECT {path}"), &[("sec-websocket-version", "13")]);
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, _) = client.send_request(request, false).unwrap();
        assert_eq!(response.await.unwrap().status(), status, "{path}");
    }
}

#[tokio::test]
async fn a_gateway_that_dies_ends_its_websockets() {
    let house = House::open().await;
    for protocol in BOTH {
        let mut socket = house.websocket(protocol, STRANGER, "/ws-dies").await;
        socket.send(Message::text("the last words")).await.unwrap();
        let end = socket.next().await;
        assert!(!matches!(end, Some(Ok(_))), "{protocol:?}: {end:?}");
    }
}

/// In the middle of a frame, by a reset and by a mere end of what it sends.
#[tokio::test]
async fn a_client_that_breaks_off_takes_its_websocket_along() {
    let house = House::open().await;
    let fields =
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let half_a_frame = [0x82, 0xfe, 1, 0, 0, 0, 0, 0, 1, 2, 3];
    let mut lost = 0;
    for reset in [true, false] {
        let mut client = house.h1(STRANGER).await;
        client.send(crate::house::request("GET /ws", fields)).await.unwrap();
        assert_eq!(client.head().await.unwrap().status(), 101);
        client.send(half_a_frame).await.unwrap();
        if reset {
            client.stream.get_ref().0.set_zero_linger().unwrap();
            drop(client);
        } else {
            client.stream.shutdown().await.unwrap();
            assert!(client.rest().await.is_empty());
        }
        lost += 1;
        house.gateway.has_lost(lost).await;
    }
    let head = block(&[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":authority", "gateway.example"),
        (":path", "/ws"),
        ("sec-websocket-version", "13"),
    ]);
    for end in [frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()), frame(DATA, END_STREAM, 1, &[])] {
        let mut raw = RawH2::open(&house, STRANGER, &[]).await;
        let served = raw.provoke(&frame(HEADERS, END_HEADERS, 1, &head), Outcome::is_decided).await;
        assert_eq!(served.heads, [(1, 0x88)]);
        raw.send(&[frame(DATA, 0, 1, &half_a_frame), end].concat()).await;
        lost += 1;
        house.gateway.has_lost(lost).await;
        let request = frame(HEADERS, END_HEADERS | END_STREAM, 3, &request_block("GET", "/", &[]));
        let next = raw.provoke(&request, |outcome| outcome.heads.iter().any(|(stream, _)| *stream == 3) || outcome.is_over()).await;
        assert_eq!(next.heads.last(), Some(&(3, 0x88)), "its connection is as good as ever: {next:?}");
    }
}

#[tokio::test]
async fn frames_sent_before_the_answer_are_not_lost() {
    let house = House::open().await;
    let mut client = house.h1(STRANGER).await;
    let fields =
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut bytes = crate::house::request("GET /ws", fields).into_bytes();
    // A masked text frame that says "hi"; the mask is zero.
    bytes.extend([0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
    client.send(bytes).await.unwrap();
    let response = client.head().await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(client.exactly(4).await.unwrap(), [0x81, 0x02, b'h', b'i']);
}

/// Stops the sidecar; returns how long that took.
async fn stop(house: &House) -> Duration {
    let begun = tokio::time::Instant::now();
    house.sidecar.stop().await;
    begun.elapsed()
}

#[tokio::test]
async fn a_drain_says_goodbye_to_every_websocket() {
    let house = House::open().await;
    let mut sockets = Vec::new();
    for number in 0..40 {
        sockets.push(house.websocket(BOTH[number % 2], if number % 3 == 0 { AGENT } else { STRANGER }, "/ws").await);
    }
    let clients = futures_util::future::join_all(sockets.into_iter().enumerate().map(|(number, mut socket)| async move {
        let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("{number}: no close frame") };
        assert_eq!(frame.code, CloseCode::Away, "{number}");
        // tungstenite answers the close; then the stream ends.
        while let Some(Ok(_)) = socket.next().await {}
    }));
    let (took, _) = tokio::join!(stop(&house), clients);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_client_that_does_not_hang_up_does_not_hold_up_the_end() {
    let house = House::open().await;
    let mut sockets = Vec::new();
    for protocol in BOTH {
        let mut socket = house.websocket(protocol, STRANGER, "/ws").await;
        socket.send(Message::text("hello")).await.unwrap();
        socket.next().await.unwrap().unwrap();
        sockets.push(socket);
    }
    let clients = futures_util::future::join_all(sockets.iter_mut().map(|socket| async { while let Some(Ok(_)) = socket.next().await {} }));
    let (took, _) = tokio::join!(stop(&house), clients);
    assert!(took < Duration::from_secs(8), "{took:?}");
}

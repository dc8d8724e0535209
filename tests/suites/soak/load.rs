//! The clients of the soak. Each one verifies every byte that it receives. A failure is excused
//! only if the gateway was down meanwhile; a wrong byte is never excused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::{TokioExecutor, TokioIo};
use loopgate::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::docker::Life;
use loopgate_test_support::backend::{event, pattern_bytes};
use loopgate_test_support::tls_client::TlsClient;

/// The time allowed for anything that a client does, including a wait for the gateway.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the container's client uses a connection: less than the container runs, and longer than
/// a connection may stay open after the container has stopped.
const CONNECTION_TIME: Duration = Duration::from_secs(6);

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Counts of what the clients did, and their failures.
#[derive(Default)]
pub struct Load {
    /// The number of times that the gateway stopped or started; odd while it is down.
    gateway_changes: AtomicU64,
    number: AtomicU64,
    pub requests: AtomicU64,
    pub messages: AtomicU64,
    pub streams: AtomicU64,
    pub resets: AtomicU64,
    pub as_agent: AtomicU64,
    pub as_external: AtomicU64,
    pub excused: AtomicU64,
    pub failures: Mutex<Vec<String>>,
}

/// Why a client did not get the expected response.
enum Failure {
    /// A failure that the client can recognize: a status code, or a connection that ended.
    Reported(String),
    /// A wrong response that looks like a success, or a hang.
    Wrong(String),
}

type Outcome = Result<(), Failure>;

fn reported(error: impl std::fmt::Debug) -> Failure {
    Failure::Reported(format!("{error:?}"))
}

fn check_equal(what: &str, received: &[u8], expected: &[u8]) -> Outcome {
    if received == expected {
        return Ok(());
    }
    let at = received.iter().zip(expected).position(|(received, expected)| received != expected);
    Err(Failure::Wrong(format!("{what}: {} bytes for {}, different from {at:?}", received.len(), expected.len())))
}

impl Load {
    /// Records that the gateway is about to stop.
    pub fn gateway_stops(&self) {
        self.gateway_changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Records that the gateway runs again.
    pub fn gateway_has_started(&self) {
        self.gateway_changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Runs `work`, and counts it in `done` or records its failure; returns whether it succeeded.
    async fn verify(&self, what: &str, done: &AtomicU64, work: impl Future<Output = Outcome>) -> bool {
        let before = self.gateway_changes.load(Ordering::SeqCst);
        let outcome =
            tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(Failure::Wrong("a hang".into())));
        let undisturbed = before.is_multiple_of(2) && before == self.gateway_changes.load(Ordering::SeqCst);
        match outcome {
            Ok(()) => {
                done.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Err(Failure::Reported(_)) if !undisturbed => {
                self.excused.fetch_add(1, Ordering::Relaxed);
            }
            Err(Failure::Reported(why) | Failure::Wrong(why)) => {
                self.failures.lock().unwrap().push(format!("{what}: {why}"))
            }
        }
        false
    }

    /// Returns the next number for a request or message.
    fn next_number(&self) -> usize {
        usize::try_from(self.number.fetch_add(1, Ordering::Relaxed)).unwrap()
    }
}

/// Sends requests with and without a body, of many sizes: 40 on each connection, over HTTP/2 four
/// at once.
pub async fn run_http_client(load: Arc<Load>, client: TlsClient, alpn: &'static str, ending: Shutdown) {
    while !ending.has_begun() {
        let stream = TokioIo::new(client.connect(alpn).await.expect("the sidecar always accepts"));
        if alpn == "h2" {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP/2");
            let driven = tokio::select! {
                _ = connection => false,
                () = async {
                    for _ in 0..10 {
                        let requests = (0..4).map(|_| {
                            let (load, mut sender) = (&load, sender.clone());
                            async move {
                                let (number, request) = next_request(load, "https://localhost");
                                let response = check_response(number, sender.send_request(request));
                                load.verify("h2", &load.requests, response).await
                            }
                        });
                        join_all(requests).await;
                    }
                } => true,
            };
            if !driven {
                load.failures.lock().unwrap().push("an HTTP/2 connection ended before its client did".into());
            }
        } else {
            let (mut sender, connection) = http1::handshake(stream).await.expect("HTTP/1.1");
            let asking = async {
                for _ in 0..40 {
                    if sender.ready().await.is_err() {
                        return;
                    }
                    let (number, request) = next_request(&load, "");
                    if !load.verify("h1", &load.requests, check_response(number, sender.send_request(request))).await {
                        return;
                    }
                }
            };
            // Poll the connection until all requests are done.
            tokio::pin!(connection, asking);
            tokio::select! {
                () = &mut asking => {}
                _ = &mut connection => asking.await,
            }
        }
    }
}

/// Makes the next request and its number. Every third request is a GET; the others have a body of
/// up to 96 KiB.
fn next_request(load: &Load, origin: &str) -> (usize, Request<Full<Bytes>>) {
    let number = load.next_number();
    let request = Request::builder().header("host", "localhost");
    let request = if number.is_multiple_of(3) {
        request.uri(format!("{origin}/count/{}", size(number))).body(Full::default())
    } else {
        request.method("POST").uri(format!("{origin}/echo")).body(Full::new(body(number)))
    };
    (number, request.unwrap())
}

fn size(number: usize) -> usize {
    number.wrapping_mul(7919) % 98_304
}

/// The body of request or message `number`, which differs from that of any other.
fn body(number: usize) -> Bytes {
    [format!("{number};").as_bytes(), &pattern_bytes(size(number))].concat().into()
}

/// Checks that the response to request `number` is the expected one.
async fn check_response(
    number: usize,
    response: impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>,
) -> Outcome {
    let response = response.await.map_err(reported)?;
    let status = response.status();
    let received = response.into_body().collect().await.map_err(reported)?.to_bytes();
    if status != StatusCode::OK {
        return Err(Failure::Reported(format!("{status}: {}", String::from_utf8_lossy(&received))));
    }
    let expected = if number.is_multiple_of(3) { pattern_bytes(size(number)) } else { body(number) };
    check_equal("a body", &received, &expected)
}

/// Opens WebSockets, verifies twenty echoes on each, and closes them.
pub async fn run_websocket_client(load: Arc<Load>, client: TlsClient, alpn: &'static str, ending: Shutdown) {
    while !ending.has_begun() {
        let stream = client.connect(alpn).await.expect("the sidecar always accepts");
        let conversation = async {
            let mut socket = socket(stream, alpn).await?;
            for _ in 0..20 {
                let message = body(load.next_number());
                socket.send(Message::Binary(message.clone())).await.map_err(reported)?;
                match socket.next().await {
                    Some(Ok(Message::Binary(echo))) => check_equal("a message", &echo, &message)?,
                    other => return Err(reported(other)),
                }
                load.messages.fetch_add(1, Ordering::Relaxed);
            }
            socket.close(None).await.map_err(reported)?;
            match socket.next().await {
                Some(Ok(Message::Close(_))) => Ok(()),
                other => Err(reported(other)),
            }
        };
        load.verify(&format!("a WebSocket over {alpn}"), &load.requests, conversation).await;
    }
}

/// Opens a WebSocket on `stream`.
async fn socket(stream: TlsStream<TcpStream>, alpn: &str) -> Result<WebSocketStream<Box<dyn Io>>, Failure> {
    if alpn != "h2" {
        let stream: Box<dyn Io> = Box::new(stream);
        return Ok(tokio_tungstenite::client_async("wss://localhost/ws", stream).await.map_err(reported)?.0);
    }
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(reported)?;
    let mut request = Request::connect("https://localhost/ws").body(Empty::<Bytes>::new()).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    // The connection ends with its only stream.
    TokioExecutor::new().execute(connection);
    let response = sender.send_request(request).await.map_err(reported)?;
    if response.status() != StatusCode::OK {
        return Err(Failure::Reported(response.status().to_string()));
    }
    let stream: Box<dyn Io> = Box::new(TokioIo::new(hyper::upgrade::on(response).await.map_err(reported)?));
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
}

/// Sends requests from the address of the container that starts and stops. Each response names the
/// lane of its request, which is checked. Opens a new connection every few seconds.
pub async fn run_container_client(
    load: Arc<Load>,
    client: TlsClient,
    alpn: &'static str,
    life: Arc<Life>,
    ending: Shutdown,
) {
    while !ending.has_begun() {
        let (changes_before, opened) = (life.changes(), Instant::now());
        let stream = TokioIo::new(client.connect(alpn).await.expect("the sidecar always accepts"));
        let asking = async {
            if alpn == "h2" {
                let (mut sender, connection) =
                    http2::handshake(TokioExecutor::new(), stream).await.map_err(reported)?;
                TokioExecutor::new().execute(connection);
                while opened.elapsed() < CONNECTION_TIME {
                    let request = Request::get("https://localhost/lane").body(Full::<Bytes>::default()).unwrap();
                    check_lane(&load, &life, opened, sender.send_request(request).await).await?;
                }
            } else {
                let (mut sender, connection) = http1::handshake(stream).await.map_err(reported)?;
                TokioExecutor::new().execute(connection);
                while opened.elapsed() < CONNECTION_TIME {
                    sender.ready().await.map_err(reported)?;
                    let request =
                        Request::get("/lane").header("host", "localhost").body(Full::<Bytes>::default()).unwrap();
                    check_lane(&load, &life, opened, sender.send_request(request).await).await?;
                }
            }
            Ok(())
        };
        // If the container started or stopped meanwhile, the sidecar had to close its connections.
        let outcome = asking.await;
        load.verify("a container", &load.requests, async {
            match outcome {
                Err(Failure::Reported(_)) if changes_before != life.changes() => Ok(()),
                outcome => outcome,
            }
        })
        .await;
    }
}

/// Checks that the lane in the response is possible for a connection opened at `opened`.
async fn check_lane(
    load: &Load,
    life: &Life,
    opened: Instant,
    response: hyper::Result<http::Response<hyper::body::Incoming>>,
) -> Outcome {
    let response = response.map_err(reported)?;
    let status = response.status();
    let lane = response.into_body().collect().await.map_err(reported)?.to_bytes();
    if status != StatusCode::OK {
        return Err(Failure::Reported(status.to_string()));
    }
    let counter = match &*lane {
        b"agent" if life.may_be_agent() => &load.as_agent,
        b"external" if life.may_be_external(opened) => &load.as_external,
        other => return Err(Failure::Wrong(format!("came by {:?}, {life:?}", String::from_utf8_lossy(other)))),
    };
    counter.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(25)).await;
    Ok(())
}

/// Requests streams of server-sent events, and verifies them.
pub async fn run_event_client(load: Arc<Load>, client: TlsClient, ending: Shutdown) {
    let expected: String = (0..30).map(event).collect();
    while !ending.has_begun() {
        let stream = TokioIo::new(client.connect("http/1.1").await.expect("the sidecar always accepts"));
        let (mut sender, connection) = http1::handshake(stream).await.expect("HTTP/1.1");
        let listening = async {
            let request =
                Request::get("/events/30").header("host", "localhost").body(Full::<Bytes>::default()).unwrap();
            let response = sender.send_request(request).await.map_err(reported)?;
            let status = response.status();
            let received = response.into_body().collect().await.map_err(reported)?.to_bytes();
            if status != StatusCode::OK {
                return Err(Failure::Reported(status.to_string()));
            }
            check_equal("events", &received, expected.as_bytes())
        };
        let listening = load.verify("events", &load.streams, listening);
        tokio::pin!(connection, listening);
        tokio::select! {
            _ = &mut listening => {}
            _ = &mut connection => { listening.await; }
        }
    }
}

/// Opens connections and resets them: without a request, in a head, in a body, in a response, in a
/// WebSocket.
pub async fn run_resetting_client(load: Arc<Load>, client: TlsClient, ending: Shutdown) {
    const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let starts = [
        "",
        "GET / HTTP/1.1\r\nHost: loc",
        "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nhalf",
        "GET /count/10000000 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /events/1000 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        UPGRADE,
    ];
    for start in starts.iter().cycle() {
        if ending.has_begun() {
            return;
        }
        let mut stream = client.connect("http/1.1").await.expect("the sidecar always accepts");
        stream.write_all(start.as_bytes()).await.expect("an open connection");
        // Wait 20 ms for the first bytes of a response; not every request gets one.
        let _ = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut [0; 512])).await;
        stream.get_ref().0.set_zero_linger().unwrap();
        drop(stream);
        load.resets.fetch_add(1, Ordering::Relaxed);
    }
}

//! A gateway for load: it streams every body, its answers can be verified byte by byte, and it can
//! be restarted.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt, stream};
use http::header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::content::{self, Checksum};
use crate::tasks::Tasks;

/// A gateway for load. By path: `/` returns `hello`, `/echo` returns the body, `/count/N` returns
/// [`pattern_bytes`], `/events/N` sends N times [`event`], `/events` sends the texts that a test
/// sends to [`Backend::events`], `/ws` echoes WebSocket messages of any size, `/upload` returns the
/// checksum of the body, `/download` returns [`content::blocks`], and `/lane` returns the lane of
/// the request.
pub struct Backend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    tasks: Tasks,
    /// The events of the next request for `/events`.
    events: Mutex<Option<mpsc::UnboundedReceiver<String>>>,
}

impl Backend {
    /// Starts the gateway on a free port of loopback.
    pub async fn start() -> Self {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts the gateway on `address`, in the current runtime.
    pub fn start_on(address: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let address = listen(address, &shared);
        Self { address, shared }
    }

    /// Stops listening and drops every connection, as if the gateway's process were killed.
    pub async fn kill(&self) {
        self.shared.tasks.abort_all().await;
    }

    /// Listens again on the same address.
    pub fn restart(&self) {
        listen(self.address, &self.shared);
    }

    /// Returns the sender of the events that the next request for `/events` receives.
    pub fn events(&self) -> mpsc::UnboundedSender<String> {
        let (sender, events) = mpsc::unbounded_channel();
        *self.shared.events.lock().unwrap() = Some(events);
        sender
    }
}

/// Returns `size` bytes that depend on their offset, so that a lost or repeated block is detected.
pub fn pattern_bytes(size: usize) -> Bytes {
    (0..size).map(|at| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap()).collect()
}

/// Returns the server-sent event with this number.
pub fn event(number: usize) -> String {
    format!("id: {number}\ndata: event {number}\n\n")
}

fn listen(address: SocketAddr, shared: &Arc<Shared>) -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(1024).unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = shared.tasks.clone();
    let shared = Arc::clone(shared);
    tasks.spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            shared.tasks.spawn(serve(stream, peer.ip(), Arc::clone(&shared)));
        }
    });
    address
}

async fn serve(stream: TcpStream, peer: IpAddr, shared: Arc<Shared>) {
    stream.set_nodelay(true).unwrap();
    let service = service_fn(|request| answer(request, peer, &shared));
    // An error means that the client has closed its connection.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

type Body = BoxBody<Bytes, hyper::Error>;

async fn answer(mut request: Request<Incoming>, peer: IpAddr, shared: &Shared) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let (_, what, number) = {
        let mut parts = path.split('/');
        (parts.next(), parts.next().unwrap_or_default(), parts.next().and_then(|number| number.parse().ok()))
    };
    Ok(match what {
        "" => Response::new(full("hello".into())),
        "echo" => Response::new(request.into_body().boxed()),
        "upload" => Response::new(full(checksum(request.into_body()).await.into())),
        "download" => Response::new(stream_of(stream::iter(content::blocks()))),
        "events" => {
            let mut response = Response::new(match number {
                Some(number) => stream_of(stream::iter(0..number).then(|number| async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Bytes::from(event(number))
                })),
                None => {
                    let events = shared.events.lock().unwrap().take().expect("the test called Backend::events first");
                    stream_of(stream::unfold(events, async |mut events| {
                        Some((Bytes::from(format!("data: {}\n\n", events.recv().await?)), events))
                    }))
                }
            });
            response.headers_mut().insert(CONTENT_TYPE, "text/event-stream".parse().unwrap());
            response
        }
        "ws" => {
            let upgrade = hyper::upgrade::on(&mut request);
            shared.tasks.spawn(echo(upgrade));
            let key = derive_accept_key(request.headers()[SEC_WEBSOCKET_KEY].as_bytes());
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header(CONNECTION, "upgrade");
            response.header(UPGRADE, "websocket").header(SEC_WEBSOCKET_ACCEPT, key).body(full(Bytes::new())).unwrap()
        }
        "lane" => Response::new(full(lane(peer, request.headers()).into())),
        _ => Response::new(full(pattern_bytes(number.unwrap_or(0)))),
    })
}

async fn checksum(mut body: Incoming) -> String {
    let mut sum = Checksum::default();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frame.data_ref().into_iter().for_each(|data| sum.update(data)),
            Err(error) => return error.to_string(),
        }
    }
    sum.hex()
}

/// Returns the lane on which loopgate sent a request, or `neither` if it fits no lane.
fn lane(peer: IpAddr, headers: &HeaderMap) -> &'static str {
    let of_agents = "127.77.0.0/16".parse::<ipnet::IpNet>().unwrap().contains(&peer);
    let forwarded = headers.keys().filter(|name| name.as_str().contains("forward")).count();
    match (of_agents, peer.to_string().as_str(), forwarded) {
        (true, _, 0) => "agent",
        (false, "127.0.0.2", 3) => "external",
        _ => "neither",
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn stream_of(chunks: impl Stream<Item = Bytes> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))))
}

async fn echo(upgrade: OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

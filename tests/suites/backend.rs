//! A gateway whose every answer can be verified, and which can be restarted.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use loopgate::shutdown::Shutdown;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// `POST /echo` gives the body back, `GET /count/N` gives [`pattern`], `GET /events/N` gives [`event`] by event, `GET /ws` echoes messages,
/// and `GET /lane` tells on which lane it was heard.
pub struct Backend {
    pub address: SocketAddr,
    /// The tasks of its present life.
    life: Mutex<Shutdown>,
}

impl Backend {
    pub async fn start() -> Self {
        let life = Shutdown::new();
        let address = listen(SocketAddr::from(([127, 0, 0, 1], 0)), life.clone());
        Self { address, life: Mutex::new(life) }
    }

    /// Closes its door and drops every connection, as a process that is killed does.
    pub async fn kill(&self) {
        let life = self.life.lock().unwrap().clone();
        life.begin();
        assert_eq!(life.finished(Duration::from_secs(10)).await, 0, "the gateway's tasks end");
    }

    /// Listens again on the same address.
    pub fn restart(&self) {
        let life = Shutdown::new();
        listen(self.address, life.clone());
        *self.life.lock().unwrap() = life;
    }
}

/// Bytes that tell where they stand, so that a lost or doubled block shows.
pub fn pattern(size: usize) -> Bytes {
    (0..size).map(|at| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap()).collect()
}

/// A server-sent event.
pub fn event(number: usize) -> String {
    format!("id: {number}\ndata: event {number}\n\n")
}

fn listen(address: SocketAddr, life: Shutdown) -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(1024).unwrap();
    let address = listener.local_addr().unwrap();
    let each = life.clone();
    life.spawn(async move {
        loop {
            let (stream, peer) = tokio::select! {
                () = each.begun() => return,
                accepted = listener.accept() => accepted.unwrap(),
            };
            each.spawn(serve(stream, peer.ip(), each.clone()));
        }
    });
    address
}

async fn serve(stream: TcpStream, peer: IpAddr, life: Shutdown) {
    stream.set_nodelay(true).unwrap();
    let answer = |request| {
        let response = answer(request, peer, &life);
        async { Ok::<_, Infallible>(response) }
    };
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).with_upgrades();
    tokio::select! {
        () = life.begun() => {}
        // A client that goes is the client's business.
        _ = connection => {}
    }
}

type Body = BoxBody<Bytes, hyper::Error>;

fn answer(mut request: Request<Incoming>, peer: IpAddr, life: &Shutdown) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let (_, what, number) = {
        let mut parts = path.split('/');
        (parts.next(), parts.next().unwrap_or_default(), parts.next().and_then(|number| number.parse().ok()).unwrap_or(0))
    };
    match what {
        "echo" => Response::new(request.into_body().boxed()),
        "events" => {
            let events = stream::iter(0..number).then(|number| async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(Frame::data(Bytes::from(event(number))))
            });
            let response = Response::builder().header(CONTENT_TYPE, "text/event-stream");
            response.body(BodyExt::boxed(StreamBody::new(events))).unwrap()
        }
        "ws" => {
            let upgrade = hyper::upgrade::on(&mut request);
            let ending = life.clone();
            life.spawn(async move {
                tokio::select! {
                    () = ending.begun() => {}
                    () = echo(upgrade) => {}
                }
            });
            let key = derive_accept_key(request.headers()[SEC_WEBSOCKET_KEY].as_bytes());
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header(CONNECTION, "upgrade");
            response.header(UPGRADE, "websocket").header(SEC_WEBSOCKET_ACCEPT, key).body(full(Bytes::new())).unwrap()
        }
        "lane" => Response::new(full(lane(peer, request.headers()).into())),
        _ => Response::new(full(pattern(number))),
    }
}

/// The lane on which this can be heard, and "neither" for what must not be.
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

async fn echo(upgrade: OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

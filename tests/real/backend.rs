//! A small gateway for traffic: it takes and gives a gibibyte, sends events when it is told to, and echoes WebSocket messages.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::content::{self, Checksum};
use crate::network::{Host, Network};
use crate::websocket;

type Body = BoxBody<Bytes, Infallible>;
/// The events of the next request for `/events`.
type Events = Arc<Mutex<Option<mpsc::UnboundedReceiver<String>>>>;

/// The backend on the gateway's host, on 127.0.0.1:18789; it ends on drop.
pub struct Backend {
    events: Events,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Starts it; it listens when this returns.
    pub fn start(network: &Network) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (listens, ready) = std::sync::mpsc::channel();
        let events = Events::default();
        let own = Arc::clone(&events);
        let thread = network.inside(Host::Gateway, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:18789").await.expect("a free port");
                listens.send(()).expect("the test waits");
                let tasks = LocalSet::new();
                tokio::select! { () = tasks.run_until(accept(listener, own)) => {} _ = stopped => {} }
            });
        });
        ready.recv().expect("the backend listens");
        Self { events, stop: Some(stop), thread: Some(thread) }
    }

    /// The tap from which the next request for `/events` is fed.
    pub fn events(&self) -> mpsc::UnboundedSender<String> {
        let (tap, events) = mpsc::unbounded_channel();
        *self.events.lock().expect("a lock") = Some(events);
        tap
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, events: Events) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("enough file descriptors");
        let events = Arc::clone(&events);
        let service = service_fn(move |request| answer(request, Arc::clone(&events)));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
        connections.spawn_local(async move {
            // A client that goes away is the client's affair.
            let _ = connection.await;
        });
    }
}

async fn answer(request: Request<Incoming>, events: Events) -> Result<Response<Body>, Infallible> {
    let body = match request.uri().path() {
        "/upload" => return Ok(Response::new(text(take(request.into_body()).await))),
        "/download" => stream_of(stream::iter(content::blocks())),
        "/events" => {
            let events = events.lock().expect("a lock").take().expect("the story made a tap first");
            let events =
                stream::unfold(events, async |mut events| Some((Bytes::from(format!("data: {}\n\n", events.recv().await?)), events)));
            let mut response = Response::new(stream_of(events));
            response.headers_mut().insert(CONTENT_TYPE, "text/event-stream".parse().expect("a value"));
            return Ok(response);
        }
        "/echo" => return Ok(echo(request)),
        _ => text("hello".into()),
    };
    Ok(Response::new(body))
}

async fn take(mut body: Incoming) -> String {
    let mut sum = Checksum::default();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frame.data_ref().into_iter().for_each(|data| sum.update(data)),
            Err(error) => return error.to_string(),
        }
    }
    sum.hex()
}

fn echo(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY) else {
        let mut response = Response::new(text("not a WebSocket".into()));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()))
        .body(Empty::new().boxed())
        .expect("a response");
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::task::spawn_local(async move {
        let Ok(stream) = upgraded.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, Some(websocket::config())).await;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(_) | Message::Binary(_) = message
                && socket.send(message).await.is_err()
            {
                return;
            }
        }
    });
    response
}

fn text(text: String) -> Body {
    Full::from(text).boxed()
}

fn stream_of(chunks: impl stream::Stream<Item = Bytes> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))))
}

//! A fake Docker Engine on a Unix socket: it serves lists, inspections and events, and responses
//! that a test sets.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The engine. When it is dropped, it ends and its socket is removed.
pub struct FakeDocker {
    directory: tempfile::TempDir,
    shared: Arc<Mutex<Shared>>,
    running: Option<AbortHandle>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    containers: BTreeMap<String, Value>,
    details: BTreeMap<String, Value>,
    images: BTreeMap<String, Value>,
    answers: BTreeMap<String, (StatusCode, Bytes)>,
    silent: BTreeSet<String>,
    requests: Vec<String>,
    subscribers: Vec<mpsc::UnboundedSender<Bytes>>,
}

impl FakeDocker {
    /// Starts an engine without a container.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the socket");
        let mut docker = Self { directory, shared: Arc::default(), running: None, tasks: JoinSet::new() };
        docker.start_again();
        docker
    }

    /// Returns the path of the engine's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// Starts the engine again, on a new socket with the same path.
    pub fn start_again(&mut self) {
        let listener = UnixListener::bind(self.socket()).expect("nothing else is on the socket");
        self.running = Some(self.tasks.spawn(accept(listener, Arc::clone(&self.shared))));
    }

    /// Stops the engine and aborts its responses. Removes the socket file only if `removes_socket`.
    pub async fn stop_engine(&mut self, removes_socket: bool) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        while self.tasks.join_next().await.is_some() {}
        self.state().subscribers.clear();
        if removes_socket {
            std::fs::remove_file(self.socket()).expect("the socket was there");
        }
    }

    /// Ends every event stream, as the socket filter does when a response takes too long.
    pub fn cut_events(&self) {
        self.state().subscribers.clear();
    }

    /// Starts a container, as [`container`] returns it, and sends the event.
    pub fn run_container(&self, container: Value) {
        let id = self.add_silently(container);
        self.send_event("container", "start", &id, json!({}));
    }

    /// Starts a container without an event, and returns its id.
    pub fn add_silently(&self, container: Value) -> String {
        let id = container["Id"].as_str().expect("a container has an id").to_owned();
        self.state().containers.insert(id.clone(), container);
        id
    }

    /// Stops a container and sends the event.
    pub fn stop_container(&self, id: &str) {
        self.remove_silently(id);
        self.send_event("container", "die", id, json!({}));
    }

    /// Stops a container without an event.
    pub fn remove_silently(&self, id: &str) {
        self.state().containers.remove(id);
    }

    /// Sets the response to inspecting `id`. Without it the response is 404.
    pub fn set_inspection(&self, id: &str, details: Value) {
        self.state().details.insert(id.to_owned(), details);
    }

    /// Removes a stopped container, so that inspecting it returns 404 again.
    pub fn remove_container(&self, id: &str) {
        self.state().details.remove(id);
        self.send_event("container", "destroy", id, json!({}));
    }

    /// Sets the labels of the image `id`. Every image exists, and has no labels unless they are
    /// set.
    pub fn set_image_labels(&self, id: &str, labels: Value) {
        self.state().images.insert(id.to_owned(), labels);
    }

    /// Sends an event to every subscriber.
    pub fn send_event(&self, kind: &str, action: &str, actor: &str, attributes: Value) {
        let event = json!({"Type": kind, "Action": action, "Actor": {"ID": actor, "Attributes": attributes},
            "timeNano": 1_766_000_000_123_456_789_i64});
        let line = Bytes::from(format!("{event}\n"));
        self.state().subscribers.retain(|subscriber| subscriber.send(line.clone()).is_ok());
    }

    /// Sets the response to GET and HEAD on `path` (without the query). It replaces any other
    /// response.
    pub fn set_response(&self, path: &str, status: u16, body: impl Into<Bytes>) {
        let status = StatusCode::from_u16(status).expect("a status");
        self.state().answers.insert(path.to_owned(), (status, body.into()));
    }

    /// Reverts [`FakeDocker::set_response`] and [`FakeDocker::stop_responding_on`] for `path`.
    pub fn clear_response(&self, path: &str) {
        self.state().answers.remove(path);
        self.state().silent.remove(path);
    }

    /// Stops responding on `path`, without closing the connection.
    pub fn stop_responding_on(&self, path: &str) {
        self.state().silent.insert(path.to_owned());
    }

    /// Returns the number of requests on `path`.
    pub fn request_count(&self, path: &str) -> usize {
        self.state().requests.iter().filter(|asked| *asked == path).count()
    }

    /// Returns every path that was requested.
    pub fn requested_paths(&self) -> BTreeSet<String> {
        self.state().requests.iter().cloned().collect()
    }

    /// Returns the number of subscribers to events.
    pub fn subscriber_count(&self) -> usize {
        self.state().subscribers.iter().filter(|subscriber| !subscriber.is_closed()).count()
    }

    fn state(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("never poisoned")
    }
}

/// The image of every container that [`container`] returns.
pub const IMAGE: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Returns a running container as `GET /containers/json` lists it: `{"Id", "Names", "Labels",
/// ...}`, with an address on each network. The container's compose project is `claws`, unless
/// `labels` has another one or null.
pub fn container(id: &str, mut labels: Value, addresses: &[(&str, &str)]) -> Value {
    if labels.get("com.docker.compose.project").is_none() {
        labels["com.docker.compose.project"] = "claws".into();
    }
    let networks: serde_json::Map<String, Value> = addresses
        .iter()
        .map(|(network, ip)| {
            (
                (*network).to_owned(),
                json!({"NetworkID": network, "IPAddress": ip, "Gateway": "192.0.2.254", "Aliases": null}),
            )
        })
        .collect();
    json!({
        "Id": id, "Names": [format!("/{id}")], "ImageID": IMAGE, "State": "running", "Labels": labels, "Mounts": [],
        "Ports": [],
        "HostConfig": {"NetworkMode": "default"}, "NetworkSettings": {"Networks": networks},
    })
}

async fn accept(listener: UnixListener, shared: Arc<Mutex<Shared>>) {
    // When this task is aborted, the set is dropped, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: UnixStream, shared: Arc<Mutex<Shared>>) {
    let service = service_fn(|request| answer(request, Arc::clone(&shared)));
    // An error means that the client has closed its connection.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, shared: Arc<Mutex<Shared>>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let (method, upgrade) = (request.method().clone(), request.headers().contains_key("upgrade"));
    let silent = {
        let mut shared = shared.lock().expect("never poisoned");
        shared.requests.push(path.clone());
        shared.silent.contains(&path)
    };
    if silent {
        std::future::pending::<()>().await;
    }
    let mut shared = shared.lock().expect("never poisoned");
    if (method != Method::GET && method != Method::HEAD) || upgrade {
        return Ok(full(StatusCode::METHOD_NOT_ALLOWED, message("loopgate only reads")));
    }
    if let Some((status, body)) = shared.answers.get(&path) {
        return Ok(full(*status, body.clone()));
    }
    Ok(match path.as_str() {
        "/events" => {
            let (subscriber, events) = mpsc::unbounded_channel();
            shared.subscribers.push(subscriber);
            let frames = futures_util::stream::unfold(events, async |mut events| {
                let event = events.recv().await?;
                Some((Ok(Frame::data(event)), events))
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
        "/containers/json" => {
            full(StatusCode::OK, Value::from_iter(shared.containers.values().cloned()).to_string().into())
        }
        other if other.starts_with("/images/") => {
            let labels = other
                .strip_prefix("/images/")
                .and_then(|rest| rest.strip_suffix("/json"))
                .and_then(|id| shared.images.get(id));
            full(StatusCode::OK, json!({"Config": {"Labels": labels}}).to_string().into())
        }
        other => {
            let id = other.strip_prefix("/containers/").and_then(|rest| rest.strip_suffix("/json"));
            match (id, id.and_then(|id| shared.details.get(id))) {
                (_, Some(details)) => full(StatusCode::OK, details.to_string().into()),
                (Some(id), None) => full(StatusCode::NOT_FOUND, message(&format!("No such container: {id}"))),
                (None, None) => full(StatusCode::NOT_FOUND, message("page not found")),
            }
        }
    })
}

fn message(text: &str) -> Bytes {
    json!({ "message": text }).to_string().into()
}

fn full(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    response
}

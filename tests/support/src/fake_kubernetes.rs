//! A Kubernetes API server over real TLS: lists with pages, watches with bookmarks, token reviews,
//! and the faults that a test causes.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The sidecar's own token, until a test rotates it.
const OWN_TOKEN: &str = "own-token-1";
/// The namespace of every pod.
pub const NAMESPACE: &str = "claws";

/// The API server. It ends when it is dropped.
pub struct FakeKubernetes {
    address: SocketAddr,
    acceptor: TlsAcceptor,
    credentials: tempfile::TempDir,
    shared: Arc<Mutex<Shared>>,
    running: Option<AbortHandle>,
    tasks: JoinSet<()>,
}

/// What a token proves: its pod's name and uid, its service account, and its audience.
struct Token {
    pod: String,
    uid: String,
    account: String,
    audience: String,
}

#[derive(Default)]
struct Shared {
    version: u64,
    pods: BTreeMap<String, Value>,
    /// Every event so far, so that a watch may begin anywhere after `forgotten`.
    events: Vec<(u64, Value)>,
    forgotten: u64,
    tokens: BTreeMap<String, Token>,
    own_token: String,
    forbidden: BTreeSet<&'static str>,
    /// The number of pods in a page, which ignores the requested limit.
    page: Option<usize>,
    requests: Vec<String>,
    watchers: Vec<mpsc::UnboundedSender<Bytes>>,
    frozen: bool,
}

impl FakeKubernetes {
    /// Starts a server without pods, which accepts the credentials in
    /// [`FakeKubernetes::credentials`].
    pub fn start() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("a CA");
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let leaf =
            CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name").signed_by(&key, &issuer).expect("a leaf");
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![CertificateDer::from(leaf)], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
                .expect("a key that goes with the certificate");
        let credentials = tempfile::tempdir().expect("a directory for the credentials");
        std::fs::write(credentials.path().join("ca.crt"), ca.pem()).expect("written");
        std::fs::write(credentials.path().join("namespace"), NAMESPACE).expect("written");
        let shared = Shared { version: 1, ..Shared::default() };
        let mut kubernetes = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            acceptor: TlsAcceptor::from(Arc::new(config)),
            credentials,
            shared: Arc::new(Mutex::new(shared)),
            running: None,
            tasks: JoinSet::new(),
        };
        kubernetes.rotate_token(OWN_TOKEN);
        kubernetes.start_again();
        kubernetes
    }

    /// Returns the server's address, as `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Returns a directory with the files of a service account, as a pod has it.
    pub fn credentials(&self) -> PathBuf {
        self.credentials.path().to_owned()
    }

    /// Accepts only `token` from the sidecar from now on, and writes it where the kubelet does.
    pub fn rotate_token(&self, token: &str) {
        self.accept_only_token(token);
        std::fs::write(self.credentials.path().join("token"), format!("{token}\n")).expect("written");
    }

    /// Accepts only `token` from the sidecar, before the kubelet has written it.
    pub fn accept_only_token(&self, token: &str) {
        self.state().own_token = token.to_owned();
    }

    /// Starts the server again, on the same port.
    pub fn start_again(&mut self) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("set");
        socket.bind(self.address).expect("the port is free");
        let listener = socket.listen(64).expect("listens");
        self.address = listener.local_addr().expect("an address");
        self.running = Some(self.tasks.spawn(accept(listener, self.acceptor.clone(), Arc::clone(&self.shared))));
    }

    /// Stops the server, and aborts its responses.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        while self.tasks.join_next().await.is_some() {}
        self.state().watchers.clear();
    }

    /// Ends every watch, as the server does when the time of a watch is up.
    pub fn end_watches(&self) {
        self.state().watchers.clear();
    }

    /// Creates or changes a pod, made by [`pod`], and notifies watchers.
    pub fn put_pod(&self, pod: Value) {
        let mut state = self.state();
        let name = pod["metadata"]["name"].as_str().expect("a pod has a name").to_owned();
        let before = state.pods.get(&name).is_some_and(is_labelled);
        let now = is_labelled(&pod);
        let pod = state.store(&name, pod);
        match (before, now) {
            (false, true) => state.notify("ADDED", pod),
            (true, true) => state.notify("MODIFIED", pod),
            // A watch of labelled pods reports a pod that lost its label as deleted.
            (true, false) => state.notify("DELETED", pod),
            (false, false) => {}
        }
    }

    /// Changes an existing pod.
    pub fn change_pod(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.state().pods[name].clone();
        change(&mut pod);
        self.put_pod(pod);
    }

    /// Removes a pod and notifies watchers.
    pub fn delete_pod(&self, name: &str) {
        let mut state = self.state();
        let pod = state.pods.remove(name).expect("there is such a pod");
        state.version += 1;
        state.notify("DELETED", pod);
    }

    /// Removes a pod without an event.
    pub fn delete_silently(&self, name: &str) {
        let mut state = self.state();
        state.pods.remove(name).expect("there is such a pod");
        state.version += 1;
    }

    /// Sends a bookmark.
    pub fn send_bookmark(&self) {
        let mut state = self.state();
        state.version += 1;
        let bookmark =
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": state.version.to_string()}});
        state.notify("BOOKMARK", bookmark);
    }

    /// Drops the history of events: a new watch that begins earlier gets the status 410, and an
    /// open watch gets it as an event.
    pub fn drop_history(&self) {
        let mut state = self.state();
        state.version += 1;
        state.forgotten = state.version;
        let status = json!({"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410,
            "message": "too old resource version"});
        let line = Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status})));
        for watcher in state.watchers.drain(..) {
            let _ = watcher.send(line.clone());
        }
    }

    /// Drops the history of events, and ends every watch without an event.
    pub fn forget_silently(&self) {
        let mut state = self.state();
        state.version += 1;
        state.forgotten = state.version;
        state.watchers.clear();
    }

    /// Forbids `list pods`, `watch pods` or `create tokenreviews`.
    pub fn forbid(&self, what: &'static str) {
        self.state().forbidden.insert(what);
    }

    /// Permits `what` again.
    pub fn permit(&self, what: &str) {
        self.state().forbidden.remove(what);
    }

    /// Sets the number of pods in each page of a list.
    pub fn set_page_size(&self, size: usize) {
        self.state().page = Some(size);
    }

    /// Makes a token of an existing pod, for `audience`.
    pub fn add_token(&self, token: &str, pod: &str, audience: &str) {
        let mut state = self.state();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let stored = &state.pods[pod];
        let (uid, account) = (text(&stored["metadata"]["uid"]), text(&stored["spec"]["serviceAccountName"]));
        state
            .tokens
            .insert(token.to_owned(), Token { pod: pod.to_owned(), uid, account, audience: audience.to_owned() });
    }

    /// Returns the number of requests so far for `what`, such as `list pods`.
    pub fn request_count(&self, what: &str) -> usize {
        self.state().requests.iter().filter(|asked| *asked == what).count()
    }

    /// Leaves new connections open without a response, as a stopped process does.
    pub fn stop_responding(&self) {
        self.state().frozen = true;
    }

    /// Returns the number of open watches.
    pub fn watcher_count(&self) -> usize {
        self.state().watchers.iter().filter(|watcher| !watcher.is_closed()).count()
    }

    fn state(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("never poisoned")
    }
}

/// A running pod with this value of the label, if any, and these addresses.
pub fn pod(name: &str, label: Option<&str>, addresses: &[&str]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    let labels = label.map_or_else(|| json!({"app": "x"}), |label| json!({"app": "x", "loopgate.dev/agent": label}));
    json!({
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"), "labels": labels,
            "managedFields": [{}]},
        "spec": {"serviceAccountName": "builder", "containers": [{"name": "agent", "image": "x"}]},
        "status": {"phase": "Running", "podIP": addresses.first(), "podIPs": ips, "hostIP": "192.0.2.99",
            "conditions": []},
    })
}

fn is_labelled(pod: &Value) -> bool {
    pod["metadata"]["labels"].get("loopgate.dev/agent").is_some()
}

impl Shared {
    fn store(&mut self, name: &str, mut pod: Value) -> Value {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.pods.insert(name.to_owned(), pod.clone());
        pod
    }

    fn notify(&mut self, kind: &str, mut object: Value) {
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let event = json!({"type": kind, "object": object});
        let line = Bytes::from(format!("{event}\n"));
        self.events.push((self.version, event));
        self.watchers.retain(|watcher| watcher.send(line.clone()).is_ok());
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Mutex<Shared>>) {
    // When this task is aborted, the set is dropped, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(serve(stream, acceptor.clone(), Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Mutex<Shared>>) {
    if shared.lock().expect("never poisoned").frozen {
        std::future::pending::<()>().await;
    }
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(|request| answer(request, Arc::clone(&shared)));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, shared: Arc<Mutex<Shared>>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let query: BTreeMap<String, String> = head.uri.query().unwrap_or_default().split('&').filter_map(pair).collect();
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let what = match (&head.method, head.uri.path()) {
        (&Method::GET, path) if path == pods && query.contains_key("watch") => "watch pods",
        (&Method::GET, path) if path == pods => "list pods",
        (&Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews") => "create tokenreviews",
        _ => return Ok(status(StatusCode::NOT_FOUND, "the server could not find the requested resource")),
    };
    let mut shared = shared.lock().expect("never poisoned");
    shared.requests.push(what.to_owned());
    let bearer = head
        .headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    if bearer != Some(shared.own_token.as_str()) {
        return Ok(status(StatusCode::UNAUTHORIZED, "Unauthorized"));
    }
    if shared.forbidden.contains(what) {
        return Ok(status(
            StatusCode::FORBIDDEN,
            &format!("User \"system:serviceaccount:claws:gateway\" cannot {what}"),
        ));
    }
    let labelled_only = query.get("labelSelector").map(String::as_str) == Some("loopgate.dev/agent");
    Ok(match what {
        "create tokenreviews" => review(&shared, &serde_json::from_slice(&body).unwrap_or_default()),
        _ if !labelled_only => status(StatusCode::BAD_REQUEST, "only labelled pods may be listed"),
        "list pods" => list(&shared, &query),
        _ => watch(&mut shared, &query),
    })
}

fn pair(pair: &str) -> Option<(String, String)> {
    let (name, value) = pair.split_once('=')?;
    Some((name.to_owned(), value.replace("%2F", "/").replace("%3A", ":")))
}

fn list(shared: &Shared, query: &BTreeMap<String, String>) -> Response<Body> {
    // A list from the cache may return pods that are gone.
    if query.contains_key("resourceVersion") {
        return status(StatusCode::BAD_REQUEST, "a list from the cache");
    }
    let asked = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let limit = shared.page.unwrap_or(asked);
    let after = query.get("continue").map_or("", String::as_str);
    let mut pods = shared.pods.iter().filter(|(name, pod)| name.as_str() > after && is_labelled(pod));
    let page: Vec<_> = pods.by_ref().take(limit).collect();
    let next = pods.next().and(page.last()).map_or("", |(name, _)| name.as_str());
    let items: Vec<&Value> = page.iter().map(|(_, pod)| *pod).collect();
    let metadata = json!({"resourceVersion": shared.version.to_string(), "continue": next});
    json_response(StatusCode::OK, &json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items}))
}

fn watch(shared: &mut Shared, query: &BTreeMap<String, String>) -> Response<Body> {
    let version: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    if version < shared.forgotten {
        return status(StatusCode::GONE, "too old resource version");
    }
    let (watcher, events) = mpsc::unbounded_channel();
    for (at, event) in &shared.events {
        if *at > version {
            let _ = watcher.send(Bytes::from(format!("{event}\n")));
        }
    }
    shared.watchers.push(watcher);
    let frames = futures_util::stream::unfold(events, async |mut events| {
        let event = events.recv().await?;
        Some((Ok(Frame::data(event)), events))
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn review(shared: &Shared, asked: &Value) -> Response<Body> {
    let wanted = asked["spec"]["audiences"][0].as_str().unwrap_or_default();
    let known = asked["spec"]["token"]
        .as_str()
        .and_then(|token| shared.tokens.get(token))
        .filter(|token| token.audience == wanted);
    let reviewed = match known {
        None => json!({"authenticated": false, "user": {}, "error": "invalid bearer token"}),
        Some(Token { pod, uid, account, audience }) => json!({
            "authenticated": true,
            "audiences": [audience],
            "user": {
                "username": format!("system:serviceaccount:{NAMESPACE}:{account}"),
                "extra": {"authentication.kubernetes.io/pod-name": [pod],
                    "authentication.kubernetes.io/pod-uid": [uid]},
            },
        }),
    };
    let mut review = asked.clone();
    review["status"] = reviewed;
    json_response(StatusCode::CREATED, &review)
}

fn status(code: StatusCode, message: &str) -> Response<Body> {
    json_response(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code.as_u16()}),
    )
}

fn json_response(code: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *response.status_mut() = code;
    response
}

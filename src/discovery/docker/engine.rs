//! A client of the Docker Engine API: GET on a few exact paths, over a unix socket or to a filter by TCP.
//!
//! [`bollard`] is used over connections made here: that way an error is the plain one of the socket, and it is known when a subscription
//! has begun, which bollard's own streams don't report before their first event.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as ApiError;
use bollard::models::{ContainerInspectResponse, ContainerSummary, EventMessage};
use bollard::query_parameters::{EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder};
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use futures_util::future::FusedFuture;
use futures_util::stream::{BoxStream, StreamExt};
use futures_util::{TryFutureExt, TryStreamExt};
use http::header::HOST;
use http::{HeaderValue, Uri};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::error::Error;
use crate::config;
use crate::discovery::text::one_line;
use crate::http_client::send_request;
use crate::shutdown::Shutdown;

/// Where `--docker auto` looks: Docker's socket, then Podman's.
const USUAL: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a whole answer may take, and the head of `/events`.
const ANSWER: Duration = Duration::from_secs(10);
/// After how long a silent TCP connection to a filter is probed, and how often. Events may be hours apart.
const PROBE: Duration = Duration::from_secs(5);

/// The engine's address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    /// The first of the usual sockets that is there.
    Usual,
    Unix(PathBuf),
    Tcp(String),
}

impl Address {
    fn socket(&self) -> Option<&Path> {
        match self {
            Self::Usual => Some(USUAL.iter().map(Path::new).find(|path| path.exists()).unwrap_or(Path::new(USUAL[0]))),
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }

    fn name(&self) -> String {
        match (self, self.socket()) {
            (Self::Tcp(address), _) => format!("tcp://{address}"),
            (_, Some(path)) => format!("unix://{}", path.display()),
            (_, None) => String::new(),
        }
    }
}

/// A client of one engine. Each request has a connection of its own, so that a restarted engine needs no handling.
#[derive(Clone, Debug)]
pub struct Engine {
    address: Address,
    shutdown: Shutdown,
}

/// A subscription to the engine's events.
pub struct Events {
    /// The events, as they come.
    pub stream: BoxStream<'static, Result<EventMessage, Error>>,
    /// Notified once the engine has begun to send; only while `stream` is being polled.
    pub begun: Arc<Notify>,
}

/// How the engine answered a request.
#[derive(Clone, Debug)]
pub struct Probed {
    /// The HTTP status.
    pub status: u16,
    /// The `Date` of the answer.
    pub date: Option<String>,
}

impl Engine {
    /// Returns a client of the configured engine; `None` where Docker is off.
    pub fn new(engine: &config::Engine, shutdown: &Shutdown) -> Option<Self> {
        let address = match engine {
            config::Engine::Off => return None,
            config::Engine::Auto => Address::Usual,
            config::Engine::Unix(path) => Address::Unix(path.clone()),
            config::Engine::Tcp(address) => Address::Tcp(address.clone()),
        };
        Some(Self { address, shutdown: shutdown.clone() })
    }

    /// Returns the engine's URL.
    pub fn name(&self) -> String {
        self.address.name()
    }

    /// Says whether the address is only a guess, so that there may well be no engine.
    pub fn is_guessed(&self) -> bool {
        self.address == Address::Usual
    }

    /// Subscribes to events of containers and networks.
    pub fn events(&self) -> Events {
        let begun = Arc::new(Notify::new());
        let api = self.api(Some(Arc::clone(&begun)));
        let filters = std::collections::HashMap::from([("type", vec!["container", "network"])]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let this = self.clone();
        let stream = futures_util::stream::once(async move { api.map(|api| api.events(Some(options))) })
            .try_flatten()
            .map_err(move |error| this.error("/events", error))
            .boxed();
        Events { stream, begun }
    }

    /// Lists the containers that run.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self) -> Result<Vec<ContainerSummary>, Error> {
        const ENDPOINT: &str = "/containers/json";
        let options = ListContainersOptionsBuilder::default().all(false).build();
        self.answer(ENDPOINT, async { self.api(None)?.list_containers(Some(options)).await }).await
    }

    /// Inspects one container. What comes includes its environment, so ask only for what has to be known, and keep nothing else.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse, Error> {
        const ENDPOINT: &str = "/containers/{id}/json";
        let inspected = self.answer(ENDPOINT, async { self.api(None)?.inspect_container(id, None::<InspectContainerOptions>).await });
        inspected
            .map_err(|error| match error {
                Error::Refused { status: 404, .. } => Error::NoContainer { id: id.to_owned() },
                other => other,
            })
            .await
    }

    /// Says whether the socket does not exist.
    pub fn is_absent(&self) -> bool {
        self.address.socket().is_some_and(|path| !path.exists())
    }

    /// Returns how the engine, or a filter in front of it, answers `GET path`. The body is not read.
    ///
    /// # Errors
    /// bollard's, where there is no answer.
    pub async fn probe(&self, path: &str) -> Result<Probed, ApiError> {
        let request = http::Request::get(path).body(bollard::body_full(bytes::Bytes::new()))?;
        let answer = within(ANSWER, async { Ok(self.send(request).await) }).await??;
        let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok()).map(Into::into);
        Ok(Probed { status: answer.status().as_u16(), date })
    }

    /// Returns a client for other requests than those above.
    ///
    /// # Errors
    /// bollard's, about an address that it can't make a URL of.
    pub fn client(&self) -> Result<Docker, ApiError> {
        self.api(None)
    }

    /// Waits for a whole answer; bollard's own deadline is for its head only.
    async fn answer<T>(&self, endpoint: &'static str, request: impl Future<Output = Result<T, ApiError>>) -> Result<T, Error> {
        match timeout(ANSWER, request).await {
            Ok(answer) => answer.map_err(|error| self.error(endpoint, error)),
            Err(_) => Err(Error::Timeout { engine: self.name(), endpoint }),
        }
    }

    fn api(&self, begun: Option<Arc<Notify>>) -> Result<Docker, ApiError> {
        let engine = self.clone();
        let transport = move |request: BollardRequest| {
            let (engine, begun) = (engine.clone(), begun.clone());
            let answer = async move {
                let response = engine.send(request).await?;
                if let Some(begun) = begun.filter(|_| response.status().is_success()) {
                    begun.notify_one();
                }
                Ok(response)
            };
            Box::pin(answer) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
        };
        Docker::connect_with_custom_transport(transport, Some("http://docker"), ANSWER.as_secs(), API_DEFAULT_VERSION)
    }

    async fn send(&self, mut request: BollardRequest) -> Result<http::Response<hyper::body::Incoming>, ApiError> {
        // A client of one connection sends the target as it is, and HTTP/1.1 wants a path there.
        let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str).parse::<Uri>()?;
        *request.uri_mut() = path;
        request.headers_mut().insert(HOST, HeaderValue::from_static("docker"));
        match &self.address {
            Address::Tcp(address) => {
                let stream = within(CONNECT, TcpStream::connect(address)).await?;
                SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3))?;
                self.exchange(stream, request).await
            }
            local => {
                let socket = local.socket().unwrap_or(Path::new(USUAL[0]));
                self.exchange(within(CONNECT, UnixStream::connect(socket)).await?, request).await
            }
        }
    }

    async fn exchange<S>(&self, stream: S, request: BollardRequest) -> Result<http::Response<hyper::body::Incoming>, ApiError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (head, answer) = send_request(stream, request).await?.into_parts();
        // bollard takes the body alone.
        let (body, connection) = answer.split();
        if connection.is_terminated() {
            return Ok(http::Response::from_parts(head, body));
        }
        let token = self.shutdown.token().clone();
        self.shutdown.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = connection => {}
            }
        });
        Ok(http::Response::from_parts(head, body))
    }

    fn error(&self, endpoint: &'static str, error: ApiError) -> Error {
        let engine = self.name();
        match error {
            ApiError::IOError { err } => match (err.kind(), self.address.socket()) {
                (io::ErrorKind::NotFound, Some(path)) => Error::NoSocket { path: path.to_owned() },
                (io::ErrorKind::PermissionDenied, Some(path)) => Error::NoPermission { path: path.to_owned() },
                (io::ErrorKind::ConnectionRefused, Some(path)) => Error::Stale { path: path.to_owned() },
                _ => Error::Request { engine, endpoint, source: err.into() },
            },
            ApiError::DockerResponseServerError { status_code: status @ 400..=499, message } => {
                Error::Refused { engine, endpoint, status, message: one_line(&message) }
            }
            ApiError::RequestTimeoutError => Error::Timeout { engine, endpoint },
            source => Error::Request { engine, endpoint, source },
        }
    }
}

async fn within<T>(limit: Duration, connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_chain::error_chain;

    fn text(address: Address, error: ApiError) -> String {
        one_line(&error_chain(&Engine { address, shutdown: Shutdown::new() }.error("/events", error)))
    }

    #[test]
    fn an_error_names_the_endpoint_or_the_remedy() {
        let socket = || Address::Unix("/s".into());
        let filter = || Address::Tcp("filter:2375".into());
        let io = |kind: io::ErrorKind| ApiError::from(io::Error::from(kind));
        let refused = |status_code| ApiError::DockerResponseServerError { status_code, message: "<h1>\n  no </h1>".into() };
        for (address, error, expected) in [
            (socket(), io(io::ErrorKind::NotFound), "no socket at /s: mount the directory"),
            (socket(), io(io::ErrorKind::PermissionDenied), "no permission to use /s: run as a member"),
            (socket(), io(io::ErrorKind::ConnectionRefused), "nothing listens at /s: the engine is down"),
            (filter(), io(io::ErrorKind::ConnectionRefused), "GET /events on tcp://filter:2375 failed: connection refused"),
            (filter(), refused(403), "tcp://filter:2375 refuses GET /events (403: <h1> no </h1>): permit exactly this path"),
            (socket(), refused(500), "GET /events on unix:///s failed: Docker responded with status code 500"),
            (socket(), ApiError::RequestTimeoutError, "unix:///s does not answer GET /events"),
        ] {
            let text = text(address, error);
            assert!(text.starts_with(expected) && !text.contains('\n'), "{text}");
        }
    }
}

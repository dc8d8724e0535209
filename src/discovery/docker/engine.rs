//! A client of the Docker Engine API: GET and HEAD on a few exact paths, over a unix socket, or
//! over TCP to a filter.
//!
//! [`bollard`] builds most requests, and this module opens the connections, for two reasons. Errors
//! of the socket itself can be reported. The head of `/events` shows when the engine begins to send
//! events, while bollard's stream shows nothing before the first event.
//!
//! This module also parses lists and inspections of containers. bollard's types follow the newest
//! Docker, and one value that they do not know (Podman's state `stopped`, a network that is null)
//! would make a whole list unreadable. The paths have no API version, so that every engine answers
//! with its own.
//!
//! Workaround: delete the connections here when bollard reports errors of the socket and the
//! beginning of events, and the types in [`object`](super::object) when it reads lists element by
//! element.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as ApiError;
use bollard::models::{ContainerTopResponse, EventMessage, ImageInspect};
use bollard::query_parameters::{ContainerArchiveInfoOptionsBuilder, EventsOptionsBuilder, TopOptions};
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use bytes::Bytes;
use futures_util::future::FusedFuture;
use futures_util::stream::{BoxStream, StreamExt};
use http::header::{HOST, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::Value;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::address::Address;
use super::error::{Cause, Error};
use super::object::{ContainerInspection, ContainerSummary, PathStat, UnreadableElement, read_each};
use super::request_error::convert_to_not_found;
use crate::config;
use crate::discovery::body::read_all;
use crate::discovery::text::{encode_query_value, to_one_line};
use crate::http_client::{ResponseBody, send_request};
use crate::shutdown::Shutdown;

/// The timeout of opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout of a whole response, and of the head of `/events`.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The idle time before TCP keep-alive probes on a connection to a filter, and the interval between
/// them. Events may be hours apart.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The maximum size of a response, in bytes. A list has about 2 KiB for each container.
const MAX_RESPONSE: usize = 64 << 20;
/// The maximum size of the body of an error response, in bytes.
const MAX_ERROR_RESPONSE: usize = 1 << 20;
/// A response header that Podman sends and Docker does not.
const LIBPOD: HeaderName = HeaderName::from_static("libpod-api-version");

/// A client of one engine. Each request opens a new connection, so a restart of the engine needs no
/// handling.
#[derive(Clone, Debug)]
pub struct Engine {
    address: Address,
    shutdown: Shutdown,
}

/// The response to [`Engine::probe`].
#[derive(Clone, Debug)]
pub struct ProbeResponse {
    /// The HTTP status.
    pub status: u16,
    /// The value of the `Date` header.
    pub date: Option<String>,
    /// Whether the response has the header `Libpod-API-Version`, which Podman sends.
    pub is_podman: bool,
    /// The message in the response if its status is 4xx.
    pub refusal: Option<String>,
}

/// An open stream of events.
pub struct DockerEvents {
    stream: BoxStream<'static, Result<EventMessage, ApiError>>,
    /// The first event, if it was received while the stream was opened.
    first_event: Option<EventMessage>,
    engine: Engine,
}

impl Engine {
    /// Returns a client of the configured engine; `None` if Docker is off. Connections are closed
    /// when `shutdown` begins. Clones share the choice among the usual sockets.
    pub fn from_config(engine: &config::Engine, shutdown: &Shutdown) -> Option<Self> {
        Some(Self { address: Address::from_config(engine, |name| std::env::var_os(name))?, shutdown: shutdown.clone() })
    }

    #[cfg(test)]
    pub(super) fn at(address: Address, shutdown: &Shutdown) -> Self {
        Self { address, shutdown: shutdown.clone() }
    }

    #[cfg(test)]
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Returns the engine's URL for log lines, followed by ` (DOCKER_HOST)` if it is from that
    /// variable.
    pub fn name(&self) -> String {
        self.address.name()
    }

    /// Returns whether the address is only a guess, so that there may be no engine.
    pub fn is_guessed(&self) -> bool {
        self.address.is_guessed()
    }

    /// Warns once if one of the usual sockets exists that would have been preferred to the one in
    /// use.
    pub fn warn_of_better_socket(&self) {
        self.address.warn_of_better_socket();
    }

    /// Returns the value of `DOCKER_HOST` if the configured engine is another.
    pub fn unused_docker_host(&self) -> Option<String> {
        self.address.unused_docker_host(|name| std::env::var_os(name))
    }

    /// Returns whether the engine's address is a socket that does not exist.
    pub fn lacks_socket(&self) -> bool {
        self.address.socket().is_some_and(|path| !path.exists())
    }

    /// Subscribes to events of containers and networks. Resolves when the head of the response, or
    /// an event, has arrived.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn subscribe_to_events(&self) -> Result<DockerEvents, Error> {
        const ENDPOINT: &str = "/events";
        let head_received = Arc::new(Notify::new());
        let filters = HashMap::from([("type", vec!["container", "network"])]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let api = self
            .bollard_client(Some(Arc::clone(&head_received)))
            .map_err(|error| self.address.api_error(ENDPOINT, error))?;
        let mut stream = api.events(Some(options)).boxed();
        let beginning = async {
            tokio::select! {
                biased;
                first = stream.next() => match first {
                    Some(first) => first.map(Some).map_err(|error| self.address.api_error(ENDPOINT, error)),
                    None => Err(Error::StreamEnded { engine: self.name() }),
                },
                () = head_received.notified() => Ok(None),
            }
        };
        let first_event = self.within_response_timeout(ENDPOINT, beginning).await?;
        Ok(DockerEvents { stream, first_event, engine: self.clone() })
    }

    /// Lists the running and paused containers. Entries that can't be parsed are returned apart.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_containers(&self) -> Result<(Vec<ContainerSummary>, Vec<UnreadableElement>), Error> {
        const ENDPOINT: &str = "/containers/json";
        // Podman lists paused containers only with `all`.
        let path = format!("{ENDPOINT}?all=true&filters={}", encode_query_value(r#"{"status":["running","paused"]}"#));
        let elements: Vec<Value> = self.get_json(ENDPOINT, &path).await?;
        Ok(read_each(elements))
    }

    /// Checks that the engine answers within `limit`, by a list of one container: the smallest
    /// request that every filter permits.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn check_responding(&self, limit: Duration) -> Result<(), Error> {
        const ENDPOINT: &str = "/containers/json";
        let check = self.get_json::<Vec<Value>>(ENDPOINT, "/containers/json?limit=1");
        timeout(limit, check)
            .await
            .unwrap_or_else(|_| Err(Error::Timeout { engine: self.name(), endpoint: ENDPOINT }))
            .map(drop)
    }

    /// Inspects one container. The response has the container's environment, which may hold
    /// secrets, so only the needed container is inspected, and only the needed fields are kept.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn inspect_container(&self, id: &str) -> Result<ContainerInspection, Error> {
        const ENDPOINT: &str = "/containers/{id}/json";
        self.get_json(ENDPOINT, &format!("/containers/{}/json", encode_query_value(id)))
            .await
            .map_err(|error| convert_to_not_found(error, id))
    }

    /// Inspects one image.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn inspect_image(&self, id: &str) -> Result<ImageInspect, Error> {
        self.request_by_bollard("/images/{id}/json", async |api: Docker| api.inspect_image(id).await)
            .await
            .map_err(|error| convert_to_not_found(error, id))
    }

    /// Lists the processes of one container with the engine's default columns. Other columns could
    /// show environments.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_processes(&self, id: &str) -> Result<ContainerTopResponse, Error> {
        self.request_by_bollard("/containers/{id}/top", async |api: Docker| {
            api.top_processes(id, None::<TopOptions>).await
        })
        .await
    }

    /// Returns the metadata of the file at `path` in the container `id`, without following a
    /// symbolic link; `None` if the status is 404: there is no such file, or no such container.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn path_stat(&self, id: &str, path: &str) -> Result<Option<PathStat>, Error> {
        let options = ContainerArchiveInfoOptionsBuilder::default().path(path).build();
        let info = async |api: Docker| api.get_container_archive_info(id, Some(options)).await;
        match self.request_by_bollard("/containers/{id}/archive", info).await {
            Ok(stat) => Ok(Some(PathStat {
                size: stat.size,
                mode: stat.file_mode,
                mtime: stat.modification_time.unwrap_or_default(),
            })),
            Err(Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends `GET path`, and returns the response of the engine, or of a filter in front of it. The
    /// body is read only if the status is 4xx. `endpoint` is the pattern of `path`, for errors.
    ///
    /// # Errors
    /// There is no response, or none in time. A response with any status is not an error.
    pub async fn probe(&self, endpoint: &'static str, path: &str) -> Result<ProbeResponse, Error> {
        let answer = async {
            let answer = self.with_endpoint(endpoint, self.send_get(path).await)?;
            let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok()).map(Into::into);
            let (status, is_podman) = (answer.status(), answer.headers().contains_key(LIBPOD));
            let refusal = if status.is_client_error() { Some(read_error_message(answer).await) } else { None };
            Ok(ProbeResponse { status: status.as_u16(), date, is_podman, refusal })
        };
        self.within_response_timeout(endpoint, answer).await
    }

    /// Sends `GET path`, and parses the whole response as JSON.
    async fn get_json<T: DeserializeOwned>(&self, endpoint: &'static str, path: &str) -> Result<T, Error> {
        let answer = async {
            let body = self.get(endpoint, path).await?.into_body();
            let bytes = read_all(body, MAX_RESPONSE)
                .await
                .map_err(|error| self.address.request_error(endpoint, error.into()))?;
            serde_json::from_slice(&bytes).map_err(|_| self.address.request_error(endpoint, Cause::Malformed))
        };
        self.within_response_timeout(endpoint, answer).await
    }

    /// Sends `GET path`, and turns every response but a success into an error.
    async fn get(&self, endpoint: &'static str, path: &str) -> Result<Response<ResponseBody>, Error> {
        let response = self.with_endpoint(endpoint, self.send_get(path).await)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        Err(self.address.status_error(endpoint, status, read_error_message(response).await))
    }

    /// Waits for `answer`, but no longer than [`RESPONSE_TIMEOUT`].
    async fn within_response_timeout<T>(
        &self,
        endpoint: &'static str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        timeout(RESPONSE_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| Err(Error::Timeout { engine: self.name(), endpoint }))
    }

    async fn send_get(&self, target: &str) -> Result<Response<ResponseBody>, Cause> {
        let request = Request::get(target).body(bollard::body_full(Bytes::new()));
        self.send(request.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?).await
    }

    /// Lets bollard send a request, and waits for the whole response. bollard's own timeout covers
    /// only the head.
    async fn request_by_bollard<T>(
        &self,
        endpoint: &'static str,
        request: impl AsyncFnOnce(Docker) -> Result<T, ApiError>,
    ) -> Result<T, Error> {
        let answer = async {
            let answer = match self.bollard_client(None) {
                Ok(api) => request(api).await,
                Err(error) => Err(error),
            };
            answer.map_err(|error| self.address.api_error(endpoint, error))
        };
        self.within_response_timeout(endpoint, answer).await
    }

    /// Returns a bollard client that sends its requests by [`Self::send`]. `head_received` is
    /// notified when the head of a successful response has arrived.
    fn bollard_client(&self, head_received: Option<Arc<Notify>>) -> Result<Docker, ApiError> {
        let engine = self.clone();
        let transport = move |request: BollardRequest| {
            let (engine, head_received) = (engine.clone(), head_received.clone());
            let answer = async move {
                let response = engine.send_detached(request).await?;
                if let Some(head_received) = head_received.filter(|_| response.status().is_success()) {
                    head_received.notify_one();
                }
                Ok(response)
            };
            Box::pin(answer) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
        };
        Docker::connect_with_custom_transport(
            transport,
            Some("http://docker"),
            RESPONSE_TIMEOUT.as_secs(),
            API_DEFAULT_VERSION,
        )
    }

    /// Sends `request`, and polls its connection on a task, since bollard polls only the body.
    async fn send_detached(&self, request: BollardRequest) -> Result<Response<Incoming>, ApiError> {
        let response = self.send(request).await.map_err(|cause| match cause {
            Cause::Io(err) => ApiError::IOError { err },
            Cause::Http(err) => ApiError::HyperResponseError { err },
            other => ApiError::IOError { err: io::Error::other(other) },
        })?;
        let (head, body) = response.into_parts();
        let (body, connection) = body.into_body_and_connection();
        if !connection.is_terminated() {
            self.shutdown.spawn_until_begun(connection);
        }
        Ok(Response::from_parts(head, body))
    }

    /// Sends `request` over a new connection to the engine, and waits for the head of the response.
    async fn send(&self, mut request: BollardRequest) -> Result<Response<ResponseBody>, Cause> {
        // bollard gives an absolute URL, which hyper would send as the target, and the engine
        // expects a path.
        let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        *request.uri_mut() = target.parse::<Uri>().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        request.headers_mut().insert(HOST, HeaderValue::from_static("docker"));
        if let Some(why) = self.address.why_unusable() {
            return Err(Cause::Unusable(why));
        }
        match self.address.tcp_address() {
            Some(address) => {
                let stream = connect_within(CONNECT_TIMEOUT, TcpStream::connect(address)).await?;
                SockRef::from(&stream).set_tcp_keepalive(
                    &TcpKeepalive::new()
                        .with_time(KEEPALIVE_INTERVAL)
                        .with_interval(KEEPALIVE_INTERVAL)
                        .with_retries(3),
                )?;
                Ok(send_request(stream, request).await?)
            }
            None => {
                let socket = self.address.socket().unwrap_or(Path::new(""));
                let stream = connect_within(CONNECT_TIMEOUT, UnixStream::connect(socket)).await?;
                if !self.address.try_choose_socket(socket) {
                    let why = "another of the usual sockets was chosen while this connection was opened";
                    return Err(io::Error::other(why).into());
                }
                Ok(send_request(stream, request).await?)
            }
        }
    }

    fn with_endpoint<T>(&self, endpoint: &'static str, outcome: Result<T, Cause>) -> Result<T, Error> {
        outcome.map_err(|cause| self.address.request_error(endpoint, cause))
    }
}

impl DockerEvents {
    /// Waits for the next event. Cancel safe: dropping the future loses no event.
    ///
    /// # Errors
    /// The stream has ended, or an event can't be parsed.
    pub async fn next_event(&mut self) -> Result<EventMessage, Error> {
        if let Some(first) = self.first_event.take() {
            return Ok(first);
        }
        match self.stream.next().await {
            Some(Ok(event)) => Ok(event),
            None | Some(Err(ApiError::IOError { .. } | ApiError::HyperResponseError { .. })) => {
                Err(Error::StreamEnded { engine: self.engine.name() })
            }
            Some(Err(error)) => Err(self.engine.address.api_error("/events", error)),
        }
    }
}

/// Returns the message in the body of an error response, or else the whole body, on one line. Empty
/// if the body can't be read.
async fn read_error_message(response: Response<ResponseBody>) -> String {
    let body = read_all(response.into_body(), MAX_ERROR_RESPONSE).await.unwrap_or_default();
    let json = serde_json::from_slice::<Value>(&body).ok();
    let text = json
        .as_ref()
        .and_then(|json| json["message"].as_str())
        .map_or_else(|| String::from_utf8_lossy(&body), Into::into);
    to_one_line(&text)
}

async fn connect_within<T>(limit: Duration, connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

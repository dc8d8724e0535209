//! A client of the Docker Engine API: GET and HEAD on a few exact paths, over a unix socket or to a filter by TCP.
//!
//! The paths have no version, so that every engine answers with its own. The crate `bollard` is not used: it reads a list into types that
//! one unexpected value makes unreadable as a whole, and does not report when an event stream has begun.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{HOST, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use serde::de::DeserializeOwned;
use serde_json::Value;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::error::{Cause, Error};
use super::object::{ContainerInspection, ContainerSummary, Event, ImageInspection, PathStat, Top, Unreadable, read_each};
use crate::config;
use crate::discovery::body::{self, Lines, read_all};
use crate::discovery::text::{one_line, query_value};
use crate::http_client::{ResponseBody, send_request};

/// Where `--docker auto` looks: Docker's socket, then Podman's.
const USUAL: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a whole answer may take, and the head of `/events`.
const ANSWER: Duration = Duration::from_secs(10);
/// After how long a silent TCP connection to a filter is probed, and how often. Events may be hours apart.
const PROBE: Duration = Duration::from_secs(5);
/// The longest answer. A container takes some 2 KiB of a list.
const MAX_ANSWER: usize = 64 << 20;
/// The longest event.
const MAX_EVENT: usize = 1 << 20;
/// The header in which Podman names its own API, and Docker has none.
const LIBPOD: HeaderName = HeaderName::from_static("libpod-api-version");
/// The header of `HEAD /containers/{id}/archive`.
const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

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
}

/// How the engine answered a request.
#[derive(Clone, Debug)]
pub struct Probed {
    /// The HTTP status.
    pub status: u16,
    /// The `Date` of the answer.
    pub date: Option<String>,
    /// Whether the engine is Podman, as far as this answer tells.
    pub is_podman: bool,
}

/// A stream of events that has begun.
pub struct Events {
    lines: Lines,
    engine: Engine,
}

impl Engine {
    /// Returns a client of the configured engine; `None` where Docker is off.
    pub fn new(engine: &config::Engine) -> Option<Self> {
        let address = match engine {
            config::Engine::Off => return None,
            config::Engine::Auto => Address::Usual,
            config::Engine::Unix(path) => Address::Unix(path.clone()),
            config::Engine::Tcp(address) => Address::Tcp(address.clone()),
        };
        Some(Self { address })
    }

    /// Returns the engine's URL.
    pub fn name(&self) -> String {
        self.address.name()
    }

    /// Says whether the address is only a guess, so that there may well be no engine.
    pub fn is_guessed(&self) -> bool {
        self.address == Address::Usual
    }

    /// Says whether the socket does not exist.
    pub fn is_absent(&self) -> bool {
        self.address.socket().is_some_and(|path| !path.exists())
    }

    /// Subscribes to events of containers and networks. Resolves once the engine has begun to send.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn events(&self) -> Result<Events, Error> {
        const ENDPOINT: &str = "/events";
        let path = format!("{ENDPOINT}?filters={}", query_value(r#"{"type":["container","network"]}"#));
        let response = self.in_time(ENDPOINT, self.get(ENDPOINT, &path)).await?;
        Ok(Events { lines: Lines::new(response.into_body(), MAX_EVENT), engine: self.clone() })
    }

    /// Lists the containers that run or are paused, and those of them that can't be read.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self) -> Result<(Vec<ContainerSummary>, Vec<Unreadable>), Error> {
        const ENDPOINT: &str = "/containers/json";
        // Podman lists paused containers only with `all`.
        let path = format!("{ENDPOINT}?all=true&filters={}", query_value(r#"{"status":["running","paused"]}"#));
        let elements: Vec<Value> = self.json(ENDPOINT, &path).await?;
        Ok(read_each(elements))
    }

    /// Checks that the engine answers within `limit`, by the shortest request that every filter permits.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn check(&self, limit: Duration) -> Result<(), Error> {
        const ENDPOINT: &str = "/containers/json";
        let check = self.json::<Vec<Value>>(ENDPOINT, "/containers/json?limit=1");
        timeout(limit, check).await.unwrap_or_else(|_| Err(Error::Timeout { engine: self.name(), endpoint: ENDPOINT })).map(drop)
    }

    /// Inspects one container. The answer includes its environment, so inspect only what is needed, and keep nothing else of it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn inspect(&self, id: &str) -> Result<ContainerInspection, Error> {
        const ENDPOINT: &str = "/containers/{id}/json";
        self.json(ENDPOINT, &format!("/containers/{}/json", query_value(id))).await.map_err(|error| not_found(error, id))
    }

    /// Inspects one image.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn inspect_image(&self, id: &str) -> Result<ImageInspection, Error> {
        const ENDPOINT: &str = "/images/{id}/json";
        // A colon (sha256:...) is legal in a path, and filters match it as it is.
        let path = format!("/images/{}/json", id.split(':').map(query_value).collect::<Vec<_>>().join(":"));
        self.json(ENDPOINT, &path).await.map_err(|error| not_found(error, id))
    }

    /// Lists the processes of one container, with the engine's default columns: others would print environments.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn top(&self, id: &str) -> Result<Top, Error> {
        self.json("/containers/{id}/top", &format!("/containers/{}/top", query_value(id))).await
    }

    /// Returns what is at `path` in the container `id`, without following a link; `None` if there is nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn path_stat(&self, id: &str, path: &str) -> Result<Option<PathStat>, Error> {
        const ENDPOINT: &str = "/containers/{id}/archive";
        let target = format!("/containers/{}/archive?path={}", query_value(id), query_value(path));
        let response = self.in_time(ENDPOINT, async { self.fail(ENDPOINT, self.send(Method::HEAD, &target).await) }).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let header = response.headers().get(PATH_STAT).map(HeaderValue::as_bytes).unwrap_or_default();
                let stat = BASE64_STANDARD.decode(header).ok().and_then(|json| serde_json::from_slice(&json).ok());
                stat.map(Some).ok_or_else(|| self.error(ENDPOINT, Cause::Malformed))
            }
            // The answer to HEAD has no body, so no message.
            status => Err(self.refused(ENDPOINT, status, String::new())),
        }
    }

    /// Returns how the engine, or a filter in front of it, answers `GET path`. The body is not read.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn probe(&self, path: &str) -> Result<Probed, Error> {
        const ENDPOINT: &str = "/_ping";
        let answer = self.in_time(ENDPOINT, async { self.fail(ENDPOINT, self.send(Method::GET, path).await) }).await?;
        let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok()).map(Into::into);
        Ok(Probed { status: answer.status().as_u16(), date, is_podman: answer.headers().contains_key(LIBPOD) })
    }

    /// Reads the whole answer to `GET path`.
    async fn json<T: DeserializeOwned>(&self, endpoint: &'static str, path: &str) -> Result<T, Error> {
        let answer = async {
            let body = self.get(endpoint, path).await?.into_body();
            let bytes = read_all(body, MAX_ANSWER).await.map_err(|error| self.error(endpoint, error.into()))?;
            serde_json::from_slice(&bytes).map_err(|_| self.error(endpoint, Cause::Malformed))
        };
        self.in_time(endpoint, answer).await
    }

    /// Sends `GET path`, and turns every answer but a success into an error.
    async fn get(&self, endpoint: &'static str, path: &str) -> Result<Response<ResponseBody>, Error> {
        let response = self.fail(endpoint, self.send(Method::GET, path).await)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = read_all(response.into_body(), MAX_EVENT).await.unwrap_or_default();
        let json = serde_json::from_slice::<Value>(&body).ok();
        let message = json.as_ref().and_then(|json| json["message"].as_str()).map_or_else(|| String::from_utf8_lossy(&body), Into::into);
        Err(self.refused(endpoint, status, one_line(&message)))
    }

    async fn in_time<T>(&self, endpoint: &'static str, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        timeout(ANSWER, answer).await.unwrap_or_else(|_| Err(Error::Timeout { engine: self.name(), endpoint }))
    }

    async fn send(&self, method: Method, target: &str) -> Result<Response<ResponseBody>, Cause> {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        request.headers_mut().insert(HOST, HeaderValue::from_static("docker"));
        match &self.address {
            Address::Tcp(address) => {
                let stream = within(CONNECT, TcpStream::connect(address)).await?;
                SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3))?;
                Ok(send_request(stream, request).await?)
            }
            local => {
                let socket = local.socket().unwrap_or(Path::new(USUAL[0]));
                Ok(send_request(within(CONNECT, UnixStream::connect(socket)).await?, request).await?)
            }
        }
    }

    fn fail<T>(&self, endpoint: &'static str, outcome: Result<T, Cause>) -> Result<T, Error> {
        outcome.map_err(|cause| self.error(endpoint, cause))
    }

    fn refused(&self, endpoint: &'static str, status: StatusCode, message: String) -> Error {
        let status_code = status.as_u16();
        if status.is_client_error() {
            Error::Refused { engine: self.name(), endpoint, status: status_code, message }
        } else {
            self.error(endpoint, Cause::Status { status: status_code, message })
        }
    }

    fn error(&self, endpoint: &'static str, cause: Cause) -> Error {
        let engine = self.name();
        match (cause, self.address.socket()) {
            (Cause::Io(error), Some(path)) if error.kind() == io::ErrorKind::NotFound => Error::NoSocket { path: path.to_owned() },
            (Cause::Io(error), Some(path)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Error::NoPermission { path: path.to_owned() }
            }
            (Cause::Io(error), Some(path)) if error.kind() == io::ErrorKind::ConnectionRefused => Error::Stale { path: path.to_owned() },
            (source, _) => Error::Request { engine, endpoint, source },
        }
    }
}

impl Events {
    /// Waits for the next event. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The stream is over.
    pub async fn next(&mut self) -> Result<Event, Error> {
        let line = self.lines.next().await;
        match line {
            Ok(Some(line)) => serde_json::from_slice(&line).map_err(|_| self.engine.error("/events", Cause::Malformed)),
            Ok(None) | Err(body::Error::Truncated | body::Error::Connection(_)) => Err(Error::StreamEnded { engine: self.engine.name() }),
            Err(error) => Err(self.engine.error("/events", error.into())),
        }
    }
}

fn not_found(error: Error, id: &str) -> Error {
    match error {
        Error::Refused { endpoint, status: 404, .. } => Error::NotFound { endpoint, id: id.to_owned() },
        other => other,
    }
}

async fn within<T>(limit: Duration, connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_chain::error_chain;

    #[test]
    fn an_error_names_the_endpoint_or_the_remedy() {
        let socket = || Engine { address: Address::Unix("/s".into()) };
        let filter = || Engine { address: Address::Tcp("filter:2375".into()) };
        let io = |engine: Engine, kind: io::ErrorKind| engine.error("/events", io::Error::from(kind).into());
        let refused =
            |engine: Engine, status| engine.refused("/events", StatusCode::from_u16(status).unwrap(), one_line("<h1>\n  no </h1>"));
        for (error, expected) in [
            (io(socket(), io::ErrorKind::NotFound), "no socket at /s: mount the directory"),
            (io(socket(), io::ErrorKind::PermissionDenied), "no permission to use /s: run as a member"),
            (io(socket(), io::ErrorKind::ConnectionRefused), "nothing listens at /s: the engine is down"),
            (io(filter(), io::ErrorKind::ConnectionRefused), "GET /events on tcp://filter:2375 failed: connection refused"),
            (refused(filter(), 403), "tcp://filter:2375 refuses GET /events (403: <h1> no </h1>): permit exactly this path"),
            (refused(socket(), 500), "GET /events on unix:///s failed: status 500"),
        ] {
            let text = error_chain(&error);
            assert!(text.starts_with(expected) && !text.contains('\n'), "{text}");
        }
    }
}

//! Errors of requests to the engine.

use std::io;
use std::path::PathBuf;

use crate::discovery::body;

/// A failed request to the engine. The message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing exists at the path.
    #[error("no socket at {}: mount the directory that it is in, or turn discovery off (--docker off)", path.display())]
    NoSocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// This process has no permission to use the socket.
    #[error("no permission to use {}: run as a member of the socket's group (group_add in compose)", path.display())]
    NoPermission {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The connection to an existing socket was refused.
    #[error(
        "nothing listens at {}: the engine is down, or a mounted socket file is an old engine's (mount its directory \
         instead)",
        path.display()
    )]
    Stale {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The connection was refused because the path is a directory.
    #[error(
        "{} is a directory: name the socket in it; or, if a socket was to be mounted there, the host had none when the \
         container was created, and Docker made a directory: remove it, start the engine, and create the container \
         again",
        path.display()
    )]
    Directory {
        /// The path that should be a socket.
        path: PathBuf,
    },
    /// The engine expects TLS, as engines on port 2376 do.
    #[error(
        "{engine} expects TLS, which loopgate does not speak with an engine: name its socket, or a filter with plain \
         HTTP, by --docker"
    )]
    Tls {
        /// The engine's URL.
        engine: String,
    },
    /// A filter, or the engine itself, refuses the request with a status 4xx.
    #[error("{engine} refuses GET {endpoint} ({status}: {message}){}", advice_for_status(*status))]
    Refused {
        /// The engine's URL.
        engine: String,
        /// The path of the request.
        endpoint: &'static str,
        /// The HTTP status.
        status: u16,
        /// The message in the response.
        message: String,
    },
    /// The status is 404, with the engine's own message.
    #[error("there is no container or image {id} (GET {endpoint})")]
    NotFound {
        /// The path of the request.
        endpoint: &'static str,
        /// The id in that path.
        id: String,
    },
    /// The response, or the head of `/events`, did not arrive in time.
    #[error("{engine} does not answer GET {endpoint}")]
    Timeout {
        /// The engine's URL.
        engine: String,
        /// The path of the request.
        endpoint: &'static str,
    },
    /// The event stream ended: the engine stops, or a filter cuts long connections.
    #[error("the event stream of {engine} ended")]
    StreamEnded {
        /// The engine's URL.
        engine: String,
    },
    /// Any other failure.
    #[error("GET {endpoint} on {engine} failed")]
    Request {
        /// The engine's URL.
        engine: String,
        /// The path of the request.
        endpoint: &'static str,
        /// What failed.
        source: Cause,
    },
}

/// Returns advice for the message if `status` is one with which socket filters refuse requests.
fn advice_for_status(status: u16) -> &'static str {
    if matches!(status, 401 | 403 | 405) { ": permit exactly this path in the socket's filter" } else { "" }
}

/// The cause of [`Error::Request`].
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// `DOCKER_HOST` has a value that loopgate can't use, for this reason.
    #[error("{0}")]
    Unusable(&'static str),
    /// The connection could not be opened.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The connection broke, or the response is not HTTP.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The connection broke within the body, or the body is too long.
    #[error(transparent)]
    Body(#[from] body::Error),
    /// The engine answered with a status that is neither a success nor 4xx.
    #[error("status {status}: {message}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// The message in the response.
        message: String,
    },
    /// The body could not be parsed. The parser's message is omitted, since it may quote an
    /// environment.
    #[error("the response is not the expected JSON")]
    Malformed,
}

//! Converts failures of requests to an engine into an [`Error`] that says what to do.

use std::io;

use bollard::errors::Error as ApiError;
use http::StatusCode;

use super::address::Address;
use super::error::{Cause, Error};
use crate::discovery::text::to_one_line;

/// Part of the response of Go's TLS servers, and so of an engine with TLS, to plain HTTP.
const TLS_EXPECTED: &str = "HTTP request to an HTTPS server";

impl Address {
    /// Returns the error for a response whose `status` is not a success.
    pub fn status_error(&self, endpoint: &'static str, status: StatusCode, message: String) -> Error {
        let status_code = status.as_u16();
        if message.contains(TLS_EXPECTED) {
            Error::Tls { engine: self.name() }
        } else if status.is_client_error() {
            Error::Refused { engine: self.name(), endpoint, status: status_code, message }
        } else {
            self.request_error(endpoint, Cause::Status { status: status_code, message })
        }
    }

    /// Returns the error for a request that bollard sent.
    pub fn api_error(&self, endpoint: &'static str, error: ApiError) -> Error {
        match error {
            ApiError::IOError { err } => self.request_error(endpoint, err.into()),
            ApiError::HyperResponseError { err } => self.request_error(endpoint, err.into()),
            ApiError::DockerResponseServerError { status_code, message } => match StatusCode::from_u16(status_code) {
                Ok(status) => self.status_error(endpoint, status, to_one_line(&message)),
                Err(_) => self.request_error(endpoint, Cause::Malformed),
            },
            ApiError::RequestTimeoutError => Error::Timeout { engine: self.name(), endpoint },
            // The other errors are about JSON. Their text is omitted, since it may quote an
            // environment.
            _ => self.request_error(endpoint, Cause::Malformed),
        }
    }

    /// Returns the error for a request to `endpoint` that failed with `cause`.
    pub fn request_error(&self, endpoint: &'static str, cause: Cause) -> Error {
        let engine = self.name();
        match (cause, self.socket()) {
            (Cause::Io(error), Some(path)) if error.kind() == io::ErrorKind::NotFound => {
                Error::NoSocket { path: path.to_owned() }
            }
            (Cause::Io(error), Some(path)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Error::NoPermission { path: path.to_owned() }
            }
            (Cause::Io(error), Some(path)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                match path.symlink_metadata() {
                    Ok(metadata) if metadata.is_dir() => Error::Directory { path: path.to_owned() },
                    _ => Error::Stale { path: path.to_owned() },
                }
            }
            (source, _) => Error::Request { engine, endpoint, source },
        }
    }
}

/// Converts a refusal with status 404 to [`Error::NotFound`] if the message is the engine's "no
/// such". A filter may answer 404 to requests that it does not permit.
pub fn convert_to_not_found(error: Error, id: &str) -> Error {
    match error {
        Error::Refused { endpoint, status: 404, message, .. } if message.to_ascii_lowercase().contains("no such ") => {
            Error::NotFound { endpoint, id: id.to_owned() }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_chain::error_chain;

    #[test]
    fn an_error_names_the_endpoint_or_the_remedy() {
        let (socket, filter) = (|| Address::unix("/s"), || Address::tcp("filter:2375"));
        let io = |engine: Address, kind: io::ErrorKind| engine.request_error("/events", io::Error::from(kind).into());
        let refused = |engine: Address, status| {
            engine.status_error("/events", StatusCode::from_u16(status).unwrap(), to_one_line("<h1>\n  no </h1>"))
        };
        for (error, expected) in [
            (io(socket(), io::ErrorKind::NotFound), "no socket at /s: mount the directory"),
            (io(socket(), io::ErrorKind::PermissionDenied), "no permission to use /s: run as a member"),
            (io(socket(), io::ErrorKind::ConnectionRefused), "nothing listens at /s: the engine is down"),
            (
                io(filter(), io::ErrorKind::ConnectionRefused),
                "GET /events on tcp://filter:2375 failed: connection refused",
            ),
            (
                refused(filter(), 403),
                "tcp://filter:2375 refuses GET /events (403: <h1> no </h1>): permit exactly this path",
            ),
            (refused(filter(), 404), "tcp://filter:2375 refuses GET /events (404: <h1> no </h1>)"),
            (
                filter().status_error(
                    "/events",
                    StatusCode::BAD_REQUEST,
                    "Client sent an HTTP request to an HTTPS server.".into(),
                ),
                "tcp://filter:2375 expects TLS, which loopgate does not speak with an engine",
            ),
            (
                Address::unix(std::env::temp_dir().to_str().unwrap())
                    .request_error("/events", io::Error::from(io::ErrorKind::ConnectionRefused).into()),
                &format!("{} is a directory", std::env::temp_dir().display()),
            ),
            (refused(socket(), 500), "GET /events on unix:///s failed: status 500"),
            (
                convert_to_not_found(refused(filter(), 404), "x"),
                "tcp://filter:2375 refuses GET /events (404: <h1> no </h1>)",
            ),
            (
                convert_to_not_found(
                    filter().status_error("/events", StatusCode::NOT_FOUND, "No such container: x".into()),
                    "x",
                ),
                "there is no container or image x (GET /events)",
            ),
        ] {
            let text = error_chain(&error);
            assert!(text.starts_with(expected) && !text.contains('\n'), "{text}");
        }
    }
}

//! Errors of requests to the API server.

use std::io;
use std::path::PathBuf;

use crate::discovery::body;

/// A failed request to the API server. The message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither the configuration nor the environment names an API server.
    #[error(
        "no API server is named: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, and neither is \
         --kubernetes-api"
    )]
    NoServer,
    /// A file of the service account can't be read, or its content is unusable.
    #[error("can't read service-account credentials in {}: mount the service account's token, ca.crt and \
             namespace", path.display())]
    Credentials {
        /// The file that can't be read or used.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The API server can't be reached, or the CA of `ca.crt` did not sign its certificate.
    #[error("can't reach the API server {server}")]
    Connect {
        /// The API server, as `host:port`.
        server: String,
        /// The error of the connection or of the TLS handshake.
        source: io::Error,
    },
    /// The connection broke before the head of the response, or the response is not HTTP.
    #[error("{operation} failed")]
    Http {
        /// The verb and the resource, such as `list pods`.
        operation: &'static str,
        /// The error of the connection.
        source: hyper::Error,
    },
    /// The response, or the head of a watch, did not arrive in time.
    #[error("the API server does not answer: {0}")]
    Timeout(&'static str),
    /// The status is 401. The text is the API server's message.
    #[error("the API server does not accept loopgate's own service-account token (401): {0}")]
    Unauthorized(String),
    /// The status is 403.
    #[error("forbidden (403): loopgate's service account needs a {} ({message})", permission.remedy())]
    Forbidden {
        /// The permission that the service account lacks.
        permission: Permission,
        /// The API server's message.
        message: String,
    },
    /// The status is 410: the pods must be listed again.
    #[error("the resource version of the watch is too old (410)")]
    Expired,
    /// The status is another one that is not a success.
    #[error("{operation} got status {status}: {message}")]
    Refused {
        /// The verb and the resource, such as `list pods`.
        operation: &'static str,
        /// The HTTP status.
        status: u16,
        /// The message in the response.
        message: String,
    },
    /// The body could not be parsed. The parser's message is omitted, since it may quote a token.
    #[error("the response to {0} is not the expected JSON")]
    Malformed(&'static str),
    /// The connection broke within the body, or the body is too long.
    #[error("can't read the response to {operation}")]
    Body {
        /// The verb and the resource, such as `list pods`.
        operation: &'static str,
        /// The error of reading the body.
        source: body::Error,
    },
    /// The watch ended sooner than requested.
    #[error("the watch ended")]
    WatchEnded,
}

impl Error {
    /// Returns whether a missing permission is the cause.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }
}

/// A permission that loopgate's service account needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// `list pods`
    List,
    /// `watch pods`
    Watch,
    /// `create tokenreviews`
    Review,
}

impl Permission {
    /// Returns the verb and the resource of the requests that need this permission.
    pub(super) fn operation(self) -> &'static str {
        match self {
            Self::List => "list pods",
            Self::Watch => "watch pods",
            Self::Review => "create tokenreviews",
        }
    }

    /// Returns the role that grants this permission.
    fn remedy(self) -> &'static str {
        match self {
            Self::List => "Role in its namespace with the verb list on pods",
            Self::Watch => "Role in its namespace with the verb watch on pods",
            Self::Review => "ClusterRole with the verb create on tokenreviews of authentication.k8s.io",
        }
    }
}

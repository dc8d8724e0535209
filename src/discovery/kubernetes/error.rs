//! Errors of requests to the API server.

use std::io;
use std::path::PathBuf;

use crate::discovery::body;

/// A failed request to the API server. The message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server's address is not configured.
    #[error(
        "no API server is named: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, and neither is \
         --kubernetes-api"
    )]
    NoServer,
    /// The service account's files can't be read.
    #[error("can't read service-account credentials in {}: mount the service account's token, ca.crt and \
             namespace", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The API server can't be reached, or the CA of `ca.crt` did not sign its certificate.
    #[error("can't reach the API server {server}")]
    Connect {
        /// The API server's address.
        server: String,
        /// The cause.
        source: io::Error,
    },
    /// The connection broke.
    #[error("{operation} failed")]
    Http {
        /// The operation.
        operation: &'static str,
        /// The cause.
        source: hyper::Error,
    },
    /// The API server did not answer in time.
    #[error("the API server does not answer: {0}")]
    Timeout(&'static str),
    /// The API server refuses the service account's token.
    #[error("the API server does not accept loopgate's own service-account token (401): {0}")]
    Unauthorized(String),
    /// The service account lacks a permission.
    #[error("forbidden (403): loopgate's service account needs a {} ({message})", permission.remedy())]
    Forbidden {
        /// The missing permission.
        permission: Permission,
        /// The API server's message.
        message: String,
    },
    /// The resource version from which to watch is too old.
    #[error("the resource version of the watch is too old (410)")]
    Expired,
    /// The API server answered with another status that is not a success.
    #[error("{operation} got status {status}: {message}")]
    Refused {
        /// The operation.
        operation: &'static str,
        /// The HTTP status.
        status: u16,
        /// The message in the response.
        message: String,
    },
    /// The response is not the expected JSON. The parser's message is omitted, since it may quote a
    /// token.
    #[error("the response to {0} is not the expected JSON")]
    Malformed(&'static str),
    /// The body of the response can't be read.
    #[error("can't read the response to {operation}")]
    Body {
        /// The operation.
        operation: &'static str,
        /// The cause.
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
    pub(super) fn operation(self) -> &'static str {
        match self {
            Self::List => "list pods",
            Self::Watch => "watch pods",
            Self::Review => "create tokenreviews",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::List => "Role in its namespace with the verb list on pods",
            Self::Watch => "Role in its namespace with the verb watch on pods",
            Self::Review => "ClusterRole with the verb create on tokenreviews of authentication.k8s.io",
        }
    }
}

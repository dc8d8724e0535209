//! Errors of requests to the API server.

use std::io;
use std::path::PathBuf;

use crate::discovery::body;

/// A failed request to the API server, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its address is not configured.
    #[error(
        "no API server is named: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, and neither is \
         --kubernetes-api"
    )]
    NoServer,
    /// The service account's files can't be read.
    #[error("can't read service-account credentials in {}: mount the service account's token, ca.crt and \
             namespace", path.display())]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It can't be reached, or its certificate is not one of `ca.crt`.
    #[error("can't reach the API server {server}")]
    Connect {
        /// Its address.
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
    /// No answer in time.
    #[error("the API server does not answer: {0}")]
    Timeout(&'static str),
    /// The service account's token is refused.
    #[error("the API server does not accept loopgate's own service-account token (401): {0}")]
    Unauthorized(String),
    /// A rule is missing.
    #[error("forbidden (403): loopgate's service account needs a {} ({message})", permission.remedy())]
    Forbidden {
        /// Which.
        permission: Permission,
        /// The API server's message.
        message: String,
    },
    /// The list that a watch is to go on from has grown too old.
    #[error("the resource version of the watch is too old (410)")]
    Expired,
    /// Any other answer.
    #[error("{operation} got status {status}: {message}")]
    Refused {
        /// The operation.
        operation: &'static str,
        /// The HTTP status.
        status: u16,
        /// The message in the response.
        message: String,
    },
    /// An answer that is not the expected JSON. The parser's message is left out: it may quote a token.
    #[error("the response to {0} is not the expected JSON")]
    Malformed(&'static str),
    /// A body that can't be read.
    #[error("can't read the response to {operation}")]
    Body {
        /// The operation.
        operation: &'static str,
        /// The cause.
        source: body::Error,
    },
    /// The watch ended sooner than it should.
    #[error("the watch ended")]
    WatchEnded,
}

impl Error {
    /// Returns whether the API server forbids the request.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }
}

/// A request that loopgate needs to be permitted.
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

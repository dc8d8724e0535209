//! How a request can end: one label for each way, the same in the access log, the metrics and spans.

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestEnd {
    /// The whole response was handed to the client's socket.
    Complete,
    /// The connection became a tunnel.
    Upgraded,
    /// loopgate answered in place of the gateway: the label of the [`Error`](super::error::Error).
    Error(&'static str),
    /// The gateway broke off inside its response.
    GatewayCut,
    /// The client's body, or its trailers, are malformed, so that `h2` reset the stream: there is no
    /// response, and the same label as that of an error.
    BadBody,
    /// The client closed its connection, or reset its stream.
    ClientGone,
    /// loopgate closed the connection, over HTTP/2 for something else that the client sent.
    ConnectionClosed,
    /// The client read nothing of the response for `limits.stall_timeout` (five times that on one HTTP/2
    /// stream), or for the shorter `limits.gateway_stall` if it is external.
    ClientStalled,
    /// The client, or its connection, was no longer authorized.
    Revoked,
    /// `limits.drain_timeout` passed during a shutdown.
    DrainTimeout,
    /// A second signal ended a shutdown at once.
    DrainAborted,
}

impl RequestEnd {
    /// The end in one word, for the access log, metrics and spans.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Upgraded => "upgraded",
            Self::Error(label) => label,
            Self::GatewayCut => "gateway_cut",
            Self::BadBody => "bad_body",
            Self::ClientGone => "client_gone",
            Self::ConnectionClosed => "connection_closed",
            Self::ClientStalled => "client_stalled",
            Self::Revoked => "revoked",
            Self::DrainTimeout => "drain_timeout",
            Self::DrainAborted => "drain_aborted",
        }
    }

    /// The label, unless the request ended well.
    pub(super) fn error(self) -> Option<&'static str> {
        (!matches!(self, Self::Complete | Self::Upgraded)).then(|| self.label())
    }
}

//! The ways in which a request can end, each with one label for the access log, the metrics and
//! spans.

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestEnd {
    /// The whole response was handed to the client's socket.
    Complete,
    /// The request was upgraded: its connection or stream became a tunnel.
    Upgraded,
    /// loopgate answered with an [`Error`](super::error::Error), which has this label.
    Error(&'static str),
    /// The gateway closed its connection before the end of its response.
    GatewayCut,
    /// The request's body or its trailers are malformed, and there is no error response: `h2` reset
    /// the stream, or over HTTP/1.1 the response had begun. The label is that of
    /// [`Error::BadRequestBody`](super::error::Error::BadRequestBody).
    BadBody,
    /// The client closed its connection, or reset its stream.
    ClientGone,
    /// loopgate or `h2` closed the HTTP/2 connection for another fault of the client. It is also
    /// the end of a head that came while the connection was being closed, for any reason, and
    /// became no request.
    ConnectionClosed,
    /// The client read nothing of the response for too long: `limits.stall_timeout`, five times
    /// that on one HTTP/2 stream, or `limits.gateway_stall` on the external lane if that is
    /// shorter.
    ClientStalled,
    /// The client, or its connection, was no longer authorized.
    Revoked,
    /// `limits.drain_timeout` passed during a shutdown.
    DrainTimeout,
    /// A second signal ended a shutdown at once.
    DrainAborted,
}

impl RequestEnd {
    /// Returns the end in one word, for the access log, metrics and spans.
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

    /// Returns the label; `None` if the request was answered completely or upgraded.
    pub(super) fn error_label(self) -> Option<&'static str> {
        (!matches!(self, Self::Complete | Self::Upgraded)).then(|| self.label())
    }
}

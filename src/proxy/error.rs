//! What goes wrong with a request: whose fault it is, what the client is told, and what the log says.

use std::fmt::Write;
use std::io;
use std::time::Duration;

use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use nix::errno::Errno;

use super::body::ResponseBody;
use crate::lane::Refusal;

/// Why a request was not answered by the gateway.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request must not be forwarded.
    #[error("refused: {}", .0.label())]
    Refused(Refusal),
    /// The gateway can't be connected to.
    #[error("the gateway accepts no connection")]
    GatewayAway(#[source] io::Error),
    /// External clients have as many connections to the gateway as they may.
    #[error("external clients have too many connections to the gateway")]
    UpstreamLimitReached,
    /// No more files can be opened, a connection to the gateway included.
    #[error("no more files can be opened")]
    OutOfFiles(#[source] io::Error),
    /// The gateway broke off, or answered something that is not HTTP.
    #[error("the gateway broke off")]
    GatewayBroke(#[source] hyper::Error),
    /// The gateway agreed to an upgrade that it was not asked for, or did not prove that it understood it (RFC 6455 section 4.2.2).
    #[error("the gateway's answer to the upgrade makes no sense")]
    GatewayConfused,
    /// No response head came in time.
    #[error("the gateway did not answer within {0:?}")]
    GatewaySlow(Duration),
    /// The client did not go on with its body.
    #[error("the client sent nothing of its body for {0:?}")]
    ClientSlow(Duration),
    /// The client's body is malformed, or broke off.
    #[error("the client's body is malformed or broke off")]
    ClientBroke(#[source] hyper::Error),
}

impl Error {
    /// What `error` of opening a connection to the gateway means.
    pub(super) fn not_connected(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE) => Self::OutOfFiles(error),
            _ => Self::GatewayAway(error),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => refusal.status(),
            Self::GatewayAway(_) | Self::OutOfFiles(_) | Self::UpstreamLimitReached => StatusCode::SERVICE_UNAVAILABLE,
            Self::GatewayBroke(_) | Self::GatewayConfused => StatusCode::BAD_GATEWAY,
            Self::GatewaySlow(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::ClientSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::ClientBroke(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// The reason in one word, for metrics and for machines.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.label(),
            Self::GatewayAway(_) => "gateway_unavailable",
            Self::OutOfFiles(_) => "out_of_files",
            Self::UpstreamLimitReached => "too_many_connections",
            Self::GatewayBroke(_) => "gateway_broke_off",
            Self::GatewayConfused => "gateway_confused",
            Self::GatewaySlow(_) => "gateway_timeout",
            Self::ClientSlow(_) => "request_timeout",
            Self::ClientBroke(_) => "bad_body",
        }
    }

    /// A sentence for the client; it tells nothing of what is behind loopgate.
    fn text(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.text(),
            Self::GatewayAway(_) => "The gateway is not running or is restarting. Try again in a moment.",
            Self::OutOfFiles(_) | Self::UpstreamLimitReached => "There are too many connections. Try again in a moment.",
            Self::GatewayBroke(_) | Self::GatewayConfused => "The gateway broke off before it had answered.",
            Self::GatewaySlow(_) => "The gateway did not answer in time.",
            Self::ClientSlow(_) => "The request's body did not arrive in time.",
            Self::ClientBroke(_) => "The request's body is malformed or broke off.",
        }
    }

    /// Says whether the gateway, or the way to it, is at fault rather than the client.
    pub fn is_gateways(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::UpstreamLimitReached | Self::ClientSlow(_) | Self::ClientBroke(_))
    }

    /// The answer, as HTML where the client's `accept` prefers that and as JSON otherwise.
    pub(super) fn response(&self, accept: &Accept, request_id: &str) -> Response<ResponseBody> {
        let status = self.status();
        let mut text = String::new();
        let content_type = if accept.html {
            let (code, reason) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
            let _ = writeln!(
                text,
                "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{code} {reason}</title>\
                 <h1>{code} {reason}</h1><p>{}</p><p><small>loopgate, request {request_id}</small></p></html>",
                self.text()
            );
            "text/html; charset=utf-8"
        } else {
            let body = serde_json::json!({"error": {"type": self.label(), "message": self.text(), "request_id": request_id}});
            let _ = writeln!(text, "{body}");
            "application/json"
        };
        let mut response = Response::new(ResponseBody::own(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert("x-request-id", id);
        }
        if matches!(self, Self::GatewayAway(_) | Self::OutOfFiles(_) | Self::UpstreamLimitReached) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if matches!(self, Self::Refused(refusal) if refusal.status() == StatusCode::METHOD_NOT_ALLOWED) {
            headers.insert(http::header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        response
    }
}

/// What a client likes to read, noted before its head is given away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accept {
    html: bool,
}

impl Accept {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self { html: headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("text/html")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_ours_is_not_blamed_on_the_gateway() {
        for (errno, label) in
            [(Errno::EMFILE, "out_of_files"), (Errno::ENFILE, "out_of_files"), (Errno::ECONNREFUSED, "gateway_unavailable")]
        {
            let error = Error::not_connected(errno.into());
            assert_eq!((error.label(), error.status().as_u16()), (label, 503));
        }
        assert_eq!(Error::not_connected(io::ErrorKind::TimedOut.into()).label(), "gateway_unavailable");
    }
}

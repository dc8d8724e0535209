//! The errors for which loopgate answers a request in place of the gateway: whose fault they are,
//! what the client gets, and what is logged.

use std::io;
use std::time::Duration;

use http::StatusCode;
use nix::errno::Errno;

use super::upstream::budget::Exhausted;
use super::upstream::h1::error::ExchangeError;
use crate::lane::RequestRefusal;
use crate::openclaw::tls_detector;

/// The reason why loopgate answers a request in place of the gateway.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A check of the request failed.
    #[error("refused: {}", .0.label())]
    Refused(RequestRefusal),
    /// The certificate that gave the connection its lane, or its user, has expired.
    #[error("the client's certificate has expired since the connection was opened")]
    CertificateExpired,
    /// Connecting to the gateway failed with this error.
    #[error("the gateway does not accept connections")]
    GatewayUnavailable(#[source] io::Error),
    /// A limit of concurrent requests at the gateway is reached, of the client or of all external
    /// clients together.
    #[error(transparent)]
    TooManyRequests(#[from] Exhausted),
    /// The limit of open files is reached, so that no connection to the gateway can be opened.
    #[error("can't open a connection to the gateway: too many open files")]
    OutOfFiles(#[source] io::Error),
    /// The gateway closed the connection before its response, or its answer is not HTTP.
    #[error("the gateway broke off before its response")]
    GatewayClosed(#[source] ExchangeError),
    /// The gateway expects TLS.
    #[error("{}", tls_detector::PROBLEM)]
    GatewayTls,
    /// The head of the gateway's response exceeds a limit.
    #[error("the gateway's response head is too large (limits.response_head, limits.response_fields)")]
    GatewayHeadTooLarge,
    /// The gateway's response has a `Transfer-Encoding` other than `chunked` (RFC 9112 section
    /// 6.1).
    #[error("the gateway's response has a Transfer-Encoding other than chunked")]
    GatewayTransferEncoding,
    /// The gateway agreed to an upgrade that was not asked for, or its response does not prove that
    /// it understood the WebSocket handshake (RFC 6455 section 4.2.2).
    #[error("the gateway sent an invalid response to an upgrade")]
    BadUpgradeResponse,
    /// The head of the gateway's response did not arrive within this time.
    #[error("the gateway did not answer within {0:?}")]
    GatewayTimeout(Duration),
    /// The next part of the client's body did not arrive within this time.
    #[error("the client sent nothing of its body for {0:?}")]
    RequestBodyTimeout(Duration),
    /// The length, the chunks or the trailers of the client's body are malformed.
    #[error("the client's body is malformed")]
    BadRequestBody(#[source] ExchangeError),
    /// The client closed its connection or reset its stream before the end of its body. It gets no
    /// response.
    #[error("the client left before the end of its body")]
    ClientLeft(#[source] ExchangeError),
}

impl Error {
    /// Converts an error of opening a connection to the gateway.
    pub(super) fn from_connect(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE) => Self::OutOfFiles(error),
            _ => Self::GatewayUnavailable(error),
        }
    }

    /// Returns the status of the response to the client.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => refusal.status(),
            // The client may repeat the request on a new connection (RFC 9110 section 15.5.20).
            Self::CertificateExpired => StatusCode::MISDIRECTED_REQUEST,
            Self::GatewayUnavailable(_) | Self::OutOfFiles(_) | Self::TooManyRequests(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::GatewayClosed(_)
            | Self::GatewayTls
            | Self::GatewayHeadTooLarge
            | Self::GatewayTransferEncoding
            | Self::BadUpgradeResponse => StatusCode::BAD_GATEWAY,
            Self::GatewayTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::RequestBodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::BadRequestBody(_) | Self::ClientLeft(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// Returns the reason in one word, for metrics and for programs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.label(),
            Self::CertificateExpired => "certificate_expired",
            Self::GatewayUnavailable(_) => "gateway_unavailable",
            Self::OutOfFiles(_) => "out_of_files",
            Self::TooManyRequests(_) => "too_many_requests",
            Self::GatewayClosed(_) => "gateway_broke_off",
            Self::GatewayTls => "gateway_tls",
            Self::BadUpgradeResponse => "bad_upgrade_response",
            Self::GatewayHeadTooLarge => "gateway_head_too_large",
            Self::GatewayTransferEncoding => "gateway_transfer_encoding",
            Self::GatewayTimeout(_) => "gateway_timeout",
            Self::RequestBodyTimeout(_) => "request_body_timeout",
            Self::BadRequestBody(_) => "bad_body",
            Self::ClientLeft(_) => "client_gone",
        }
    }

    /// Returns a sentence for the client. It reveals nothing about what is behind loopgate, except
    /// that the gateway speaks TLS: a mistake in the configuration, which the operator meets before
    /// anyone else does.
    pub(super) fn client_text(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.text(),
            Self::CertificateExpired => "The certificate of this connection has expired. Connect again.",
            Self::GatewayUnavailable(_) => "The gateway is not running or is restarting. Try again in a moment.",
            Self::OutOfFiles(_) => "There are too many connections. Try again in a moment.",
            Self::TooManyRequests(_) => "There are too many requests. Try again in a moment.",
            Self::GatewayClosed(_) => "The gateway broke off before it had answered.",
            Self::BadUpgradeResponse => "The gateway's response to the upgrade is invalid.",
            Self::GatewayTls => {
                "The gateway speaks TLS, and loopgate speaks plain HTTP to it. Set gateway.tls.enabled to false in the \
                 gateway's openclaw.json."
            }
            Self::GatewayHeadTooLarge => "The head of the gateway's response is too large.",
            Self::GatewayTransferEncoding => "The Transfer-Encoding of the gateway's response is not supported.",
            Self::GatewayTimeout(_) => "The gateway did not answer in time.",
            Self::RequestBodyTimeout(_) => "The request's body did not arrive in time.",
            Self::BadRequestBody(_) => "The request's body is malformed.",
            Self::ClientLeft(_) => "The request's body broke off.",
        }
    }

    /// Returns whether the gateway or the connection to it is at fault, rather than the client.
    pub fn is_gateway_fault(&self) -> bool {
        !matches!(
            self,
            Self::Refused(_)
                | Self::CertificateExpired
                | Self::TooManyRequests(_)
                | Self::RequestBodyTimeout(_)
                | Self::BadRequestBody(_)
                | Self::ClientLeft(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_this_process_is_not_blamed_on_the_gateway() {
        for (errno, label) in [
            (Errno::EMFILE, "out_of_files"),
            (Errno::ENFILE, "out_of_files"),
            (Errno::ECONNREFUSED, "gateway_unavailable"),
        ] {
            let error = Error::from_connect(errno.into());
            assert_eq!((error.label(), error.status().as_u16()), (label, 503));
        }
        assert_eq!(Error::from_connect(io::ErrorKind::TimedOut.into()).label(), "gateway_unavailable");
    }
}

//! The error of an exchange with the gateway.

use std::io;

use crate::proxy::upstream::request_body::BrokenBody;

/// The reason why a request or its response ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A read failed. A failed write is not an error: the gateway may still have answered.
    #[error("can't read from the gateway")]
    Io(#[source] io::Error),
    /// The gateway closed the connection inside its response, or before it.
    #[error("the gateway closed the connection before the end of its response")]
    Incomplete,
    /// The head of the response is not one of HTTP/1.
    #[error("the head of the gateway's response is malformed")]
    Head(#[source] httparse::Error),
    /// `Content-Length` or `Transfer-Encoding` states no reliable length. The field says why.
    #[error("the length of the gateway's response is malformed: {0}")]
    Length(&'static str),
    /// The head of the response, or an interim one, exceeds a limit.
    #[error("the head of the gateway's response is too large")]
    HeadTooLarge,
    /// Another coding, several, or `chunked` with parameters.
    #[error("the gateway's response has a Transfer-Encoding other than chunked")]
    TransferEncoding,
    /// A chunk or a trailer is malformed, or one of them is too large. The field says which.
    #[error("the body of the gateway's response is malformed: {0}")]
    Chunks(&'static str),
    /// The client's body broke off.
    #[error(transparent)]
    RequestBody(#[from] BrokenBody),
    /// It is longer or shorter than the `Content-Length` of the request to the gateway.
    #[error("the client's body does not have the stated length")]
    RequestLength,
}

impl ExchangeError {
    /// Returns whether the gateway's bytes are not the head of an HTTP response.
    pub fn is_malformed_head(&self) -> bool {
        matches!(self, Self::Head(_) | Self::Length(_))
    }
}

//! A request to the gateway.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, StatusCode};

use super::h1::encode::{Framing, encode_head};
use super::h1::response_head::ResponseHead;
use super::request_body::RequestBody;
use crate::lane::{GatewayHead, scrub_response};
use crate::proxy::downstream::head_tracker::RequestHandle;

/// Sends the gateway's interim responses (1xx) to the client of one request, except for `100
/// Continue`.
#[derive(Debug, Default)]
pub struct InterimSender {
    /// The request on the client's connection.
    pub handle: Option<RequestHandle>,
}

impl InterimSender {
    /// Sends an interim response to the client.
    pub fn send(&self, response: ResponseHead) {
        let ResponseHead { status, mut headers, .. } = response;
        if let Some(handle) = self.handle.as_ref().filter(|_| status != StatusCode::CONTINUE) {
            scrub_response(&mut headers);
            // An interim response must not have it (RFC 9110 section 8.6).
            headers.remove(CONTENT_LENGTH);
            handle.send_interim(status, &headers);
        }
    }
}

/// A [`GatewayHead`] in the form in which it is sent. An `UpstreamConnection` sends no other head.
#[derive(Clone, Debug)]
pub struct EncodedHead {
    bytes: Bytes,
    framing: Framing,
    is_head_request: bool,
}

impl EncodedHead {
    /// The bytes of the head.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How the head states the length of the body.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Returns whether the method is HEAD.
    pub fn is_head_request(&self) -> bool {
        self.is_head_request
    }
}

/// A request whose head was a [`GatewayHead`].
pub struct GatewayRequest {
    head: EncodedHead,
    /// `None` if it is empty.
    body: Option<RequestBody>,
    /// An empty map, whose allocation the response reuses.
    spare: HeaderMap,
    interim_sender: InterimSender,
}

impl GatewayRequest {
    /// Creates the request of `head` and `body`. `interim_sender` sends its interim responses to
    /// the client.
    pub fn new(head: GatewayHead, body: RequestBody, interim_sender: InterimSender) -> Self {
        let (parts, framing) = (head.parts(), Framing::of(&body));
        let bytes = encode_head(parts, framing).into();
        let encoded = EncodedHead { bytes, framing, is_head_request: parts.method == Method::HEAD };
        let body = (framing != Framing::Length(0)).then_some(body);
        Self { head: encoded, body, spare: head.into_empty_headers(), interim_sender }
    }

    /// Creates a request without a body from the head of an earlier one.
    pub fn repeat(head: EncodedHead) -> Self {
        Self { head, body: None, spare: HeaderMap::new(), interim_sender: InterimSender::default() }
    }

    /// Returns the head.
    pub fn head(&self) -> &EncodedHead {
        &self.head
    }

    /// Returns the head, the body unless it is empty, an empty map for the fields of the response,
    /// and what sends the interim responses.
    pub fn into_parts(self) -> (EncodedHead, Option<RequestBody>, HeaderMap, InterimSender) {
        (self.head, self.body, self.spare, self.interim_sender)
    }
}

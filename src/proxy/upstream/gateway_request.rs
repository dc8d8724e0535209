//! A request to the gateway.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, StatusCode};

use super::h1::encode::{Framing, encode_head};
use super::h1::response_head::ResponseHead;
use super::request_body::RequestBody;
use crate::lane::{GatewayHead, scrub_response};
use crate::proxy::downstream::head_tracker::RequestHandle;

/// Forwards the gateway's interim responses (1xx) to one request, except for `100 Continue`.
#[derive(Debug, Default)]
pub struct InterimForwarder {
    /// Sends them to the client.
    pub handle: Option<RequestHandle>,
}

impl InterimForwarder {
    /// Forwards an interim response to the client.
    pub fn forward(&self, response: ResponseHead) {
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
    interim_forwarder: InterimForwarder,
}

impl GatewayRequest {
    /// Creates the request of `head` and `body`. `interim_forwarder` forwards its interim responses.
    pub fn new(head: GatewayHead, body: RequestBody, interim_forwarder: InterimForwarder) -> Self {
        let (parts, framing) = (head.parts(), Framing::of(&body));
        let bytes = encode_head(parts, framing).into();
        let encoded = EncodedHead { bytes, framing, is_head_request: parts.method == Method::HEAD };
        let body = (framing != Framing::Length(0)).then_some(body);
        Self { head: encoded, body, spare: head.into_empty_headers(), interim_forwarder }
    }

    /// Creates a request without a body from the head of an earlier one.
    pub fn repeat(head: EncodedHead) -> Self {
        Self { head, body: None, spare: HeaderMap::new(), interim_forwarder: InterimForwarder::default() }
    }

    /// Returns the head.
    pub fn head(&self) -> &EncodedHead {
        &self.head
    }

    /// Returns the head, the body unless it is empty, an empty map for the fields of the response, and what forwards
    /// the interim responses.
    pub fn into_parts(self) -> (EncodedHead, Option<RequestBody>, HeaderMap, InterimForwarder) {
        (self.head, self.body, self.spare, self.interim_forwarder)
    }
}

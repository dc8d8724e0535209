//! A request to the gateway.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Body;

use super::request_body::{ContinueSignal, RequestBody};
use crate::lane::{GatewayHead, scrub_response};
use crate::proxy::downstream::head_tracker::RequestHandle;

/// What receives the gateway's interim responses.
#[derive(Debug, Default)]
pub struct OnInterim {
    /// Receives `100 Continue`.
    pub continue_signal: Option<Arc<ContinueSignal>>,
    /// Receives all others.
    pub handle: Option<RequestHandle>,
}

impl OnInterim {
    /// Has hyper hand over the interim responses to `request`.
    fn attach(self, request: &mut Request<RequestBody>) {
        let Self { continue_signal, handle } = self;
        if continue_signal.is_none() && handle.is_none() {
            return;
        }
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                if let Some(signal) = &continue_signal {
                    signal.open();
                }
            } else if let Some(handle) = &handle {
                let mut headers = response.headers().clone();
                scrub_response(&mut headers);
                // RFC 9110 section 8.6.
                headers.remove(CONTENT_LENGTH);
                handle.send_interim(response.status(), &headers);
            }
        });
    }
}

/// A request whose head is a [`GatewayHead`]. Connections to the gateway take no other.
pub struct GatewayRequest(
    /// Only a connection may take it out, or put back what it has not sent.
    pub(super) Request<RequestBody>,
);

impl GatewayRequest {
    /// Makes the request that hyper sends.
    pub fn new(head: GatewayHead, body: RequestBody, on_interim: OnInterim) -> Self {
        // hyper omits the body of a GET, HEAD or CONNECT whose length is unknown, unless this field is set.
        let is_chunked = !body.is_end_stream() && body.size_hint().exact().is_none();
        let mut request = head.into_request(body);
        if is_chunked {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        on_interim.attach(&mut request);
        Self(request)
    }
}

//! A request to the gateway.

use std::sync::Arc;

use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::SendRequest;

use super::readable_after_write_error::StreamState;
use super::request_body::{ContinueSignal, RequestBody};
use crate::lane::{GatewayHead, scrub_response};
use crate::proxy::downstream::head_tracker::RequestHandle;

/// The receivers of the gateway's interim responses (1xx) to one request.
#[derive(Debug, Default)]
pub struct OnInterim {
    /// Receives `100 Continue`.
    pub continue_signal: Option<Arc<ContinueSignal>>,
    /// Sends all others to the client.
    pub handle: Option<RequestHandle>,
}

impl OnInterim {
    /// Makes hyper pass the interim responses to `request` on to the receivers.
    fn attach_to(self, request: &mut Request<RequestBody>) {
        let Self { continue_signal, handle } = self;
        if continue_signal.is_none() && handle.is_none() {
            return;
        }
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                if let Some(signal) = &continue_signal {
                    signal.open_gate();
                }
            } else if let Some(handle) = &handle {
                let mut headers = response.headers().clone();
                scrub_response(&mut headers);
                // An interim response must not have it (RFC 9110 section 8.6).
                headers.remove(CONTENT_LENGTH);
                handle.send_interim(response.status(), &headers);
            }
        });
    }
}

/// A request whose head is a [`GatewayHead`]. Connections to the gateway send no other.
pub struct GatewayRequest(Request<RequestBody>);

impl GatewayRequest {
    /// Creates the request of `head` and `body`. `on_interim` receives its interim responses.
    pub fn new(head: GatewayHead, body: RequestBody, on_interim: OnInterim) -> Self {
        // hyper omits the body of a GET, HEAD or CONNECT whose length is unknown, unless this field is set.
        let is_chunked = !body.is_end_stream() && body.size_hint().exact().is_none();
        let mut request = head.into_request(body);
        if is_chunked {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        on_interim.attach_to(&mut request);
        Self(request)
    }
    /// Sends the request by `sender`, on the connection with this `stream_state`; returns the response's head.
    ///
    /// # Errors
    /// The connection failed; with the request if no byte of it was sent.
    pub fn send(
        self,
        sender: &mut SendRequest<RequestBody>,
        stream_state: &Arc<StreamState>,
    ) -> impl Future<Output = Result<Response<Incoming>, (hyper::Error, Option<Box<Self>>)>> {
        let Self(mut request) = self;
        request.body_mut().set_stream_state(stream_state);
        sender.try_send_request(request).map(|sent| {
            sent.map_err(|mut failed| {
                let unsent = failed.take_message().map(|request| Box::new(Self(request)));
                (failed.into_error(), unsent)
            })
        })
    }
}

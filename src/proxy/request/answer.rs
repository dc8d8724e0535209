//! Answers a request: with the gateway's response, or with an error response of loopgate.

use std::sync::Arc;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::error_response::{ErrorFormat, error_response};
use super::forward::{ForwardOutcome, forward_request};
use super::record::RequestRecord;
use super::response_body::ResponseBody;
use crate::labels::Protocol;
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::downstream::head_tracker::RequestHandle;
use crate::proxy::error::Error;

/// Answers `request`. `handle` is the request's handle in the code below hyper. The record of the
/// request is created at once, before the future is polled, since hyper may drop the future
/// unpolled. Over HTTP/2, must be called on the task of its stream.
///
/// # Errors
/// The client left before the end of the request's body. hyper then ends the connection or resets
/// the stream.
pub fn answer_request(
    context: Arc<ConnectionContext>,
    request: Request<Incoming>,
    handle: RequestHandle,
) -> impl Future<Output = Result<Response<ResponseBody>, Error>> {
    let record = RequestRecord::new(&context, &request, handle.clone());
    async move {
        let format = ErrorFormat::wanted_by(&request);
        let ForwardOutcome { mut must_close, result } = forward_request(&context, request, handle, &record).await;
        let mut response = match result {
            Ok(response) => response,
            Err(error @ Error::ClientLeft(_)) => {
                record.log_client_left(&error);
                return Err(error);
            }
            Err(error) => {
                let request_id = record.record_failure(&error);
                let response = error_response(&error, format, &request_id, &record);
                // The bytes after a refused head (400), a CONNECT or a TRACE (405) might be read as
                // the next request.
                must_close |= matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED);
                response
            }
        };
        if must_close && context.protocol == Protocol::H1 {
            response.headers_mut().append(CONNECTION, HeaderValue::from_static("close"));
        }
        record.record_response_start(response.status().as_u16());
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<A, B, C, F: Future>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// The future is moved several times before it runs, and each HTTP/1.1 connection reserves
    /// memory for one. So futures that are seldom awaited in it must be boxed.
    #[test]
    fn the_future_of_a_request_is_small() {
        let size = future_size(answer_request);
        assert!(size <= 4096, "{size} bytes");
    }
}

//! The response to a request that the gateway did not answer.

use std::fmt::Write;
use std::sync::Arc;

use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::record::RequestRecord;
use super::response_body::ResponseBody;
use crate::proxy::error::Error;

/// The client's preferred media type, read before its request head is consumed.
#[derive(Clone, Copy, Debug)]
pub struct Accept {
    html: bool,
}

impl Accept {
    pub fn of(headers: &HeaderMap) -> Self {
        Self {
            html: headers
                .get(ACCEPT)
                .and_then(|accept| accept.to_str().ok())
                .is_some_and(|accept| accept.contains("text/html")),
        }
    }
}

/// Creates the response to `error`: HTML where the client's `accept` prefers that, else JSON.
pub fn error_response(
    error: &Error,
    accept: &Accept,
    request_id: &str,
    record: &Arc<RequestRecord>,
) -> Response<ResponseBody> {
    let status = error.status();
    let mut text = String::new();
    let content_type = if accept.html {
        let (code, reason) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
        let _ = writeln!(
            text,
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{code} {reason}</title>\
             <h1>{code} {reason}</h1><p>{}</p><p><small>loopgate, request {request_id}</small></p></html>",
            error.text()
        );
        "text/html; charset=utf-8"
    } else {
        let body =
            serde_json::json!({"error": {"type": error.label(), "message": error.text(), "request_id": request_id}});
        let _ = writeln!(text, "{body}");
        "application/json"
    };
    let mut response = Response::new(ResponseBody::own(text, Arc::clone(record)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert("x-request-id", id);
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    response
}

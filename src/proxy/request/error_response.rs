//! loopgate's response to a request that the gateway does not answer.

use std::fmt::Write;
use std::sync::Arc;

use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};

use super::record::RequestRecord;
use super::response_body::ResponseBody;
use crate::proxy::error::Error;

/// The format of an error response to one request.
#[derive(Clone, Copy, Debug)]
pub struct ErrorFormat {
    /// Whether the client accepts HTML.
    is_html: bool,
    /// Whether the request is a HEAD, whose response has no body (RFC 9110 section 9.3.2).
    /// Workaround: over HTTP/2 hyper would send the body. Delete when its server discards it, as
    /// over HTTP/1.1.
    is_head_only: bool,
}

impl ErrorFormat {
    /// Returns the format that `request` asks for.
    pub fn wanted_by<B>(request: &Request<B>) -> Self {
        let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
        Self {
            is_html: accept.is_some_and(|accept| accept.contains("text/html")),
            is_head_only: request.method() == Method::HEAD,
        }
    }
}

/// Creates the response for `error`: HTML if the client accepts it, else JSON.
pub fn error_response(
    error: &Error,
    format: ErrorFormat,
    request_id: &str,
    record: &Arc<RequestRecord>,
) -> Response<ResponseBody> {
    let status = error.status();
    let mut text = String::new();
    let content_type = if format.is_html {
        let (code, reason) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
        let _ = writeln!(
            text,
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{code} {reason}</title>\
             <h1>{code} {reason}</h1><p>{}</p><p><small>loopgate, request {request_id}</small></p></html>",
            error.client_text()
        );
        "text/html; charset=utf-8"
    } else {
        let (label, message) = (error.label(), error.client_text());
        let body = serde_json::json!({"error": {"type": label, "message": message, "request_id": request_id}});
        let _ = writeln!(text, "{body}");
        "application/json"
    };
    let length = text.len();
    if format.is_head_only {
        text.clear();
    }
    let mut response = Response::new(ResponseBody::from_loopgate(text, Arc::clone(record)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
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

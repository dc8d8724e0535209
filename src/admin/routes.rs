//! What the desk answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use time::OffsetDateTime;

use super::Desk;
use super::ready::{Facts, reasons};
use crate::discovery::Namespace;

/// How long the gateway may take to accept a connection of the readiness check.
const GATEWAY_PATIENCE: Duration = Duration::from_secs(1);

pub(super) async fn answer(desk: Arc<Desk>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    Ok(match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => readiness(&desk).await,
        "/metrics" => metrics(&desk),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    })
}

async fn readiness(desk: &Desk) -> Response<Full<Bytes>> {
    let now = OffsetDateTime::now_utc();
    let (from, until) = {
        let identity = desk.identity.borrow();
        (identity.not_before, identity.not_after)
    };
    let doors = desk.bound.borrow().len();
    let accepted = tokio::time::timeout(GATEWAY_PATIENCE, tokio::net::TcpStream::connect(desk.gateway)).await;
    let facts = Facts {
        doors,
        certificate_valid: from <= now && now < until,
        gateway_accepts: matches!(accepted, Ok(Ok(_))),
        orphaned: desk.view.borrow().namespace != Namespace::Attached,
        stopping: desk.shutdown.has_begun(),
    };
    let reasons = reasons(facts);
    if reasons.is_empty() {
        text(StatusCode::OK, "ready\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; ")))
    }
}

fn metrics(desk: &Desk) -> Response<Full<Bytes>> {
    let mut body = String::new();
    if prometheus_client::encoding::text::encode(&mut body, &desk.registry).is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be written\n");
    }
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    response
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

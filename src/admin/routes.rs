//! What the desk answers.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::ready::reasons;
use super::{Desk, host, look, page};

type Answer = Response<Full<Bytes>>;

pub(super) async fn answer(desk: Arc<Desk>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    let is_ours = host::is_ours(request.headers(), &desk.served.borrow().names);
    if !is_ours {
        let what = "ask for an address, for localhost or for a name in the certificate; nothing is told to other hosts\n";
        return Ok(text(StatusCode::MISDIRECTED_REQUEST, what));
    }
    Ok(match request.uri().path() {
        "/" => front_page(&desk, request.uri().query()).await,
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => readiness(&desk).await,
        "/metrics" => metrics(&desk).await,
        "/status" => status(&desk).await,
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    })
}

async fn readiness(desk: &Desk) -> Answer {
    let facts = look::facts(desk).await;
    let reasons = reasons(&facts);
    if !reasons.is_empty() {
        return text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; ")));
    }
    match facts.certificate_problem {
        None => text(StatusCode::OK, "ready\n"),
        Some(problem) => text(StatusCode::OK, format!("ready, but with the certificate as it was: {problem}\n")),
    }
}

async fn metrics(desk: &Desk) -> Answer {
    look::measure(desk, &look::facts(desk).await, &desk.health);
    let mut body = String::new();
    if prometheus_client::encoding::text::encode(&mut body, &desk.registry).is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be written\n");
    }
    typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
}

async fn status(desk: &Desk) -> Answer {
    match serde_json::to_vec_pretty(&look::status(desk).await) {
        Ok(mut json) => {
            json.push(b'\n');
            typed(StatusCode::OK, "application/json", json)
        }
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the status can't be written\n"),
    }
}

async fn front_page(desk: &Desk, query: Option<&str>) -> Answer {
    let status = look::status(desk).await;
    let mut response = typed(StatusCode::OK, "text/html; charset=utf-8", page::render(&status, page::refresh(query)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, page::SECURITY_POLICY.clone());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain; charset=utf-8", text)
}

fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

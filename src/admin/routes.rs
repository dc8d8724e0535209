//! The routes of the admin listener.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::ready::reasons;
use super::state::AdminState;
use super::{host, page, snapshot};

type Answer = Response<Full<Bytes>>;

pub(super) async fn answer(state: Arc<AdminState>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    let is_ours = host::is_ours(request.headers(), &state.served.borrow().names);
    if !is_ours {
        let what = "this Host is not answered; use an IP address, localhost or a name in the certificate\n";
        return Ok(text(StatusCode::MISDIRECTED_REQUEST, what));
    }
    Ok(match request.uri().path() {
        "/" => front_page(&state, request.uri().query()).await,
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => readiness(&state).await,
        "/metrics" => metrics(&state).await,
        "/status" => status(&state).await,
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    })
}

async fn readiness(state: &AdminState) -> Answer {
    let facts = snapshot::facts(state).await;
    let reasons = reasons(&facts);
    if !reasons.is_empty() {
        return text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; ")));
    }
    match facts.certificate_problem {
        None => text(StatusCode::OK, "ready\n"),
        Some(problem) => text(StatusCode::OK, format!("ready, but a newer certificate can't be served: {problem}\n")),
    }
}

async fn metrics(state: &AdminState) -> Answer {
    snapshot::measure(state, &snapshot::facts(state).await, &state.health);
    let mut body = String::new();
    if prometheus_client::encoding::text::encode(&mut body, &state.registry).is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "can't encode the metrics\n");
    }
    typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
}

async fn status(state: &AdminState) -> Answer {
    match serde_json::to_vec_pretty(&snapshot::status(state).await) {
        Ok(mut json) => {
            json.push(b'\n');
            typed(StatusCode::OK, "application/json", json)
        }
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "can't encode the status\n"),
    }
}

async fn front_page(state: &AdminState, query: Option<&str>) -> Answer {
    let status = snapshot::status(state).await;
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

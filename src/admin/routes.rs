//! The routes of the admin listener.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::ready::why_not_ready;
use super::state::AdminState;
use super::{host, page, reload, snapshot};

type Answer = Response<Full<Bytes>>;

/// Responds to a request from `peer`.
pub(super) async fn respond(
    state: Arc<AdminState>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let is_reload = request.uri().path() == "/reload";
    let allowed: &[Method] = if is_reload { &[Method::POST] } else { &[Method::GET, Method::HEAD] };
    if !allowed.contains(request.method()) {
        let allow = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let mut response = text_response(StatusCode::METHOD_NOT_ALLOWED, format!("only {allow} is allowed\n"));
        response.headers_mut().extend(HeaderValue::from_str(&allow).map(|allow| (ALLOW, allow)));
        return Ok(response);
    }
    let is_host_allowed = host::is_allowed(request.headers(), &state.served.borrow().names);
    if !is_host_allowed {
        let refusal = "this Host is not answered; use an IP address, localhost or a name in the certificate\n";
        return Ok(text_response(StatusCode::MISDIRECTED_REQUEST, refusal));
    }
    if is_reload {
        return Ok(match reload::why_refused(peer.ip(), request.headers()) {
            Some(why) => text_response(StatusCode::FORBIDDEN, format!("{why}\n")),
            None => run_reload(&state).await,
        });
    }
    Ok(match request.uri().path() {
        "/" => front_page(&state, request.uri().query()).await,
        "/healthz" => text_response(StatusCode::OK, "ok\n"),
        "/readyz" => readiness_response(&state).await,
        "/metrics" => metrics_response(&state).await,
        "/status" => status_response(&state).await,
        _ => text_response(StatusCode::NOT_FOUND, "not found\n"),
    })
}

/// Asks the sidecar to reload its configuration, and waits for the outcome. Answers with 422 if the
/// configuration is rejected, and with 503 if a reload waits already or the sidecar is stopping.
async fn run_reload(state: &AdminState) -> Answer {
    let (outcome_sender, outcome) = oneshot::channel();
    if state.reload.try_send(outcome_sender).is_err() {
        return text_response(StatusCode::SERVICE_UNAVAILABLE, "another reload is in progress\n");
    }
    let Ok(outcome) = outcome.await else {
        return text_response(StatusCode::SERVICE_UNAVAILABLE, "the sidecar is stopping\n");
    };
    let status = if outcome.error.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    json_response(status, &outcome)
}

/// Answers `/readyz`: with 503 and the reasons if the sidecar is not ready.
async fn readiness_response(state: &AdminState) -> Answer {
    let facts = snapshot::collect_readiness_facts(state).await;
    let reasons = why_not_ready(&facts);
    if !reasons.is_empty() {
        return text_response(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; ")));
    }
    match facts.certificate_problem {
        None => text_response(StatusCode::OK, "ready\n"),
        Some(problem) => {
            text_response(StatusCode::OK, format!("ready, but a newer certificate can't be served: {problem}\n"))
        }
    }
}

/// Answers `/metrics`, and sets the gauges of health to do so.
async fn metrics_response(state: &AdminState) -> Answer {
    snapshot::set_gauges(state, &snapshot::collect_readiness_facts(state).await, &state.health);
    let mut body = String::new();
    if prometheus_client::encoding::text::encode(&mut body, &state.registry).is_err() {
        return text_response(StatusCode::INTERNAL_SERVER_ERROR, "can't encode the metrics\n");
    }
    build_response(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
}

async fn status_response(state: &AdminState) -> Answer {
    json_response(StatusCode::OK, &snapshot::collect_status(state).await)
}

/// Answers `/` with the page. `query` may set the interval at which the browser loads the page
/// again ([`page::refresh_interval`]).
async fn front_page(state: &AdminState, query: Option<&str>) -> Answer {
    let status = snapshot::collect_status(state).await;
    let mut response = build_response(
        StatusCode::OK,
        "text/html; charset=utf-8",
        page::render(&status, page::refresh_interval(query)),
    );
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, page::SECURITY_POLICY.clone());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn json_response(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(mut json) => {
            json.push(b'\n');
            build_response(status, "application/json", json)
        }
        Err(_) => text_response(StatusCode::INTERNAL_SERVER_ERROR, "can't encode the answer\n"),
    }
}

fn text_response(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    build_response(status, "text/plain; charset=utf-8", text)
}

fn build_response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

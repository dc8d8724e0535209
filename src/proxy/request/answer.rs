//! Answers a request: with the gateway's response, or with an error of loopgate's.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::access_log::{AccessLog, next_id};
use super::error_response::{Accept, error_response};
use super::forward::{Forwarded, forward};
use super::response_body::ResponseBody;
use crate::audit;
use crate::config::TraceparentUse;
use crate::error_chain::causes;
use crate::labels::Protocol;
use crate::metrics::count;
use crate::proxy::error::Error;
use crate::proxy::session::Session;
use crate::trace::{Span, Trace};

/// Answers `request`.
pub async fn answer(session: Arc<Session>, request: Request<Incoming>) -> Result<Response<ResponseBody>, Infallible> {
    let started = Instant::now();
    let accept = Accept::of(request.headers());
    let protocol = session.protocol;
    let traffic = &session.shared.traffic;
    let trace = trace(&session, request.headers());
    let recorder = traffic.recorder.as_ref().map(|recorder| (recorder, SystemTime::now()));
    let access_log = session.settings.log_access.then(|| AccessLog::new(&session, request.headers()));
    let is_recorded = access_log.is_some() || recorder.is_some();
    let recorded = is_recorded.then(|| (request.method().clone(), request.uri().path().to_owned()));
    let Forwarded { lane, mut must_close, result } = forward(&session, request, started, trace.as_ref()).await;
    let mut request_id = None;
    let mut failed = None;
    let mut response = match result {
        Ok(response) => response,
        Err(error) => {
            let id = access_log.as_ref().map_or_else(next_id, |access_log| access_log.request_id.clone());
            report(&session, &error, &id);
            let response = error_response(&error, &accept, &id);
            // An ambiguous request, or one meant as a tunnel, may be followed by bytes that would be read as the next request.
            must_close |= matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED);
            request_id = Some(id);
            failed = Some(error.label());
            response
        }
    };
    if must_close && protocol == Protocol::Http1 {
        response.headers_mut().append(CONNECTION, HeaderValue::from_static("close"));
    }
    let (status, took) = (response.status().as_u16(), started.elapsed());
    traffic.answered(lane, protocol, status, took);
    let Some((method, path)) = recorded else { return Ok(response) };
    if let (Some((recorder, began)), Some(trace)) = (recorder, &trace) {
        let (method, path, peer, request_id) = (method.as_str(), path.as_str(), session.peer.ip(), request_id.as_deref());
        recorder.record(&Span { trace, began, took, method, path, status, lane, protocol, peer, request_id, error: failed });
    }
    if let Some(AccessLog { client, request_id }) = access_log {
        let ms = (took.as_secs_f64() * 10_000.0).round() / 10.0;
        let (connection, peer) = (session.number, session.peer);
        // Left out where only the end of the body will tell.
        let bytes = response.body().size_hint().exact();
        let trace_id = trace.as_ref().map_or("-", |trace| trace.told.trace_id());
        info!(target: "loopgate::access", connection, %peer, %client, lane = lane.label(), protocol = protocol.label(), %method, path, status, bytes, ms, request_id, trace_id, "request");
    }
    Ok(response)
}

/// Returns the place of the request with these `headers` in its trace, where spans or `traceparent` need it.
fn trace(session: &Session, headers: &HeaderMap) -> Option<Trace> {
    let spans = session.shared.traffic.recorder.is_some();
    (spans || session.settings.traceparent == TraceparentUse::Make).then(|| Trace::of(headers, spans))
}

/// Logs and counts an error.
fn report(session: &Session, error: &Error, request_id: &str) {
    let (connection, peer, lane) = (session.number, session.peer, session.lane.kind().label());
    let traffic = &session.shared.traffic;
    let cause = causes(error);
    if error.is_gateways() {
        count(&traffic.gateway_errors, error.label());
        warn!(connection, %peer, lane, request_id, cause, "{error}");
    } else {
        count(&traffic.refused, error.label());
        info!(target: audit::TARGET, kind = "refusal", at = "request", connection, %peer, lane, request_id, reason = error.label(), "request refused");
        debug!(connection, %peer, lane, request_id, cause, "{error}");
    }
}

//! One request: checked, given its lane's head, sent to the gateway, answered.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{CONNECTION, EXPECT, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::ext;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::{debug, info, warn};

use super::body::{ContinueGate, RequestBody, ResponseBody};
use super::client_authorization::ClientAuthorization;
use super::connection::{Downstream, Session};
use super::error::{Accept, Error};
use super::tunnel;
use super::upstream::UpstreamConnection;
use crate::config::TraceparentUse;
use crate::labels::{LaneKind, Protocol};
use crate::lane::{GatewayHead, Lane, Refusal, scrub_response};
use crate::metrics::count;
use crate::metrics::traffic::Held;
use crate::trace::{Span, Trace};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers `request`, whatever happens.
pub(super) async fn answer(session: Arc<Session>, request: Request<Incoming>) -> Result<Response<ResponseBody>, Infallible> {
    let started = Instant::now();
    let accept = Accept::of(request.headers());
    let protocol = session.protocol;
    let trace = trace(&session, request.headers());
    let recorder = session.proxy.traffic.recorder.as_ref().map(|recorder| (recorder, SystemTime::now()));
    let access_log = session.settings.log_access.then(|| AccessLog::of(&session, request.headers()));
    let told = access_log.is_some() || recorder.is_some();
    let told = told.then(|| (request.method().clone(), request.uri().path().to_owned()));
    let (mut lane, mut must_close) = (session.lane.kind(), false);
    let mut request_id = None;
    let mut failed = None;
    let mut response = match forward(&session, request, started, trace.as_ref(), &mut lane, &mut must_close).await {
        Ok(response) => response,
        Err(error) => {
            let id = access_log.as_ref().map_or_else(next_id, |access_log| access_log.request_id.clone());
            report(&session, &error, &id);
            let response = error.response(&accept, &id);
            // What is ambiguous, or meant as a tunnel, may have left bytes behind that would be taken for the next request.
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
    session.proxy.traffic.answered(lane, protocol, status, took);
    let Some((method, path)) = told else { return Ok(response) };
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

/// What the access log needs to know of a request before it is sent on.
struct AccessLog {
    /// Whose it is, as far as trusted proxies tell.
    client: IpAddr,
    /// What the gateway hears it called, if the client says so, and an id of our own otherwise.
    request_id: String,
}

impl AccessLog {
    fn of(session: &Session, headers: &HeaderMap) -> Self {
        let lane = match &*session.lane {
            Lane::External(lane) => lane,
            Lane::Agent(lane) => &lane.as_external,
        };
        let client = lane.client_of(headers, session.proxy.rules.load().policy());
        let stated = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_id(id));
        Self { client, request_id: stated.map_or_else(next_id, str::to_owned) }
    }
}

/// Says whether `id` may stand for a request in logs and answers.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// Where in its trace the request with these `headers` is, if anybody wants to know.
fn trace(session: &Session, headers: &HeaderMap) -> Option<Trace> {
    let spans = session.proxy.traffic.recorder.is_some();
    (spans || session.settings.traceparent == TraceparentUse::Make).then(|| Trace::of(headers, spans))
}

/// An id that the client is told and the log shows; unique in one run of loopgate and most likely beyond.
fn next_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static PREFIX: std::sync::LazyLock<u32> = std::sync::LazyLock::new(|| {
        use std::hash::{BuildHasher, RandomState};
        u32::try_from(RandomState::new().hash_one(std::process::id()) >> 32).unwrap_or(0)
    });
    format!("{:08x}-{:06x}", *PREFIX, NEXT.fetch_add(1, Ordering::Relaxed))
}

fn report(session: &Session, error: &Error, request_id: &str) {
    let (connection, peer, lane) = (session.number, session.peer, session.lane.kind());
    let traffic = &session.proxy.traffic;
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    if error.is_gateways() {
        count(&traffic.gateway_errors, error.label());
        warn!(connection, %peer, lane = lane.label(), request_id, cause, "{error}");
    } else {
        count(&traffic.refused, error.label());
        debug!(connection, %peer, lane = lane.label(), request_id, cause, "{error}");
    }
}

/// Says in `lane` which lane it left on, and in `must_close` whether the client's next request could be taken for the body of this one.
async fn forward(
    session: &Arc<Session>,
    mut request: Request<Incoming>,
    started: Instant,
    trace: Option<&Trace>,
    lane: &mut LaneKind,
    must_close: &mut bool,
) -> Result<Response<ResponseBody>, Error> {
    let guard = session.activity.begin();
    let over_h2 = extended_connect(&mut request)?;
    let client_side = hyper::upgrade::on(&mut request);
    let (parts, incoming) = request.into_parts();
    let key = parts.headers.get(SEC_WEBSOCKET_KEY).cloned();
    let expects = parts.headers.get(EXPECT).is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    // It may never send a body that it was not told to send (RFC 9110 section 10.1.1).
    *must_close = expects && !incoming.is_end_stream();
    let rules = session.proxy.rules.load_full();
    let token = session.proxy.token.load_full();
    let head = GatewayHead::new(parts, &session.lane, &rules, token.as_deref(), session.proxy.terms.load().names());
    let mut head = head.map_err(Error::Refused)?;
    if let Some(trace) = trace {
        head.follow(trace);
    }
    *lane = head.lane();
    let mut authorization = ClientAuthorization::of(session, head.client(), &rules)?;
    let counters = session.proxy.traffic.lane(head.lane());
    if head.is_upgrade() {
        let context = UpgradeContext { client_side, key, over_h2 };
        return Box::pin(upgrade(session, head, authorization, context, guard, started)).await;
    }
    let (gate, continue_signal) = if expects { Some(ContinueGate::new()).unzip() } else { (None, None) };
    let body = RequestBody::new(incoming, Arc::clone(&rules), gate, counters.received.clone());
    let progress = if expects { body.progress() } else { None };
    let sending = session.proxy.upstream.send(head, body, continue_signal, &session.settings.limits, started);
    let sent = ClientAuthorization::unless_revoked(authorization.as_mut(), sending).await;
    *must_close = progress.is_some_and(|progress| progress.so_far().0 == 0);
    let (response, upstream) = sent?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::GatewayConfused);
    }
    Ok(pass_back(session, response, upstream, counters.sent.clone(), guard, authorization))
}

fn pass_back(
    session: &Session,
    response: Response<Incoming>,
    upstream: Box<UpstreamConnection>,
    sent: prometheus_client::metrics::counter::Counter,
    guard: super::activity::RequestGuard,
    authorization: Option<ClientAuthorization>,
) -> Response<ResponseBody> {
    let (mut parts, incoming) = response.into_parts();
    // What is to be upgraded to is the point of a 426 (RFC 9110 section 15.5.22). HTTP/2 knows no such field.
    let offered = (parts.status == StatusCode::UPGRADE_REQUIRED).then(|| parts.headers.remove(UPGRADE)).flatten();
    scrub_response(&mut parts.headers);
    if let Some(protocol) = offered.filter(|_| session.protocol == Protocol::Http1) {
        parts.headers.insert(UPGRADE, protocol);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    parts.version = Version::HTTP_11;
    Response::from_parts(parts, ResponseBody::gateway(incoming, upstream, sent, guard, authorization))
}

/// Turns an extended CONNECT (RFC 8441) into the upgrade that says the same in HTTP/1.1; returns whether it was one.
fn extended_connect(request: &mut Request<Incoming>) -> Result<bool, Error> {
    let Some(protocol) = request.extensions_mut().remove::<ext::Protocol>() else { return Ok(false) };
    if protocol.as_str() != "websocket" {
        return Err(Error::Refused(Refusal::BadUpgrade));
    }
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let key = HeaderValue::from_str(&generate_key()).map_err(|_| Error::Refused(Refusal::BadUpgrade))?;
    headers.insert(SEC_WEBSOCKET_KEY, key);
    Ok(true)
}

/// What an upgrade needs besides its head.
struct UpgradeContext {
    client_side: OnUpgrade,
    key: Option<HeaderValue>,
    over_h2: bool,
}

async fn upgrade(
    session: &Arc<Session>,
    head: GatewayHead,
    mut authorization: Option<ClientAuthorization>,
    context: UpgradeContext,
    guard: super::activity::RequestGuard,
    started: Instant,
) -> Result<Response<ResponseBody>, Error> {
    let proxy = &session.proxy;
    let counters = proxy.traffic.lane(head.lane());
    let held = Held::new(&counters.tunnels);
    let (received, sent) = (counters.received.clone(), counters.sent.clone());
    let sending = proxy.upstream.send(head, RequestBody::empty(), None, &session.settings.limits, started);
    let (response, upstream) = ClientAuthorization::unless_revoked(authorization.as_mut(), sending).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // To an extended CONNECT, any success would say that the WebSocket is open (RFC 8441 section 5).
        if context.over_h2 && response.status().is_success() {
            return Err(Error::GatewayConfused);
        }
        return Ok(pass_back(session, response, upstream, sent, guard, authorization));
    }
    let websocket = response.headers().get(UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if context.over_h2 && !accepts(&response, context.key.as_ref(), websocket) {
        return Err(Error::GatewayConfused);
    }
    let close_signal = if authorization.is_some() { session.close_signal.for_tunnel() } else { session.close_signal.clone() };
    let terms = tunnel::TunnelOptions { websocket, close_signal: close_signal.clone(), received, sent };
    let (number, peer) = (session.number, session.peer);
    let activity = context.over_h2.then_some(guard);
    proxy.shutdown.spawn(async move {
        let _held = (held, activity);
        let mut joined = pin!(join(context.client_side, upstream, terms));
        let ended = match authorization {
            None => joined.await,
            Some(mut authorization) => tokio::select! {
                biased;
                () = authorization.revoked() => {
                    close_signal.revoke();
                    joined.await
                }
                ended = &mut joined => ended,
            },
        };
        if let Err(error) = ended {
            debug!(connection = number, %peer, error, "tunnel ended");
        }
    });
    let (mut parts, _) = response.into_parts();
    if context.over_h2 {
        parts.status = StatusCode::OK;
        scrub_response(&mut parts.headers);
        parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
    }
    parts.version = Version::HTTP_11;
    Ok(Response::from_parts(parts, ResponseBody::own(Bytes::new())))
}

/// Says whether `response` proves that the gateway understood the handshake whose key we made.
fn accepts(response: &Response<Incoming>, key: Option<&HeaderValue>, websocket: bool) -> bool {
    let expected = key.map(|key| derive_accept_key(key.as_bytes()));
    let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT).and_then(|accept| accept.to_str().ok());
    websocket && expected.as_deref() == accept
}

/// Leaves hyper behind on both sides and joins what is left.
async fn join(client_side: OnUpgrade, upstream: Box<UpstreamConnection>, terms: tunnel::TunnelOptions) -> Result<(), String> {
    let (gateway, from_gateway, _permit) = upstream.into_tunnel().await.ok_or("the gateway's connection is gone")?;
    let client = client_side.await.map_err(|error| error.to_string())?;
    let joined = match client.downcast::<TokioIo<Downstream>>() {
        Ok(parts) => {
            let mut client = parts.io.into_inner();
            client.leave_http();
            Box::pin(tunnel::run(client, gateway, (parts.read_buf, from_gateway), terms)) as BoxFuture<'_, _>
        }
        // A stream of an HTTP/2 connection.
        Err(stream) => Box::pin(tunnel::run(TokioIo::new(stream), gateway, (Bytes::new(), from_gateway), terms)),
    };
    joined.await.map_err(|error| error.to_string())
}

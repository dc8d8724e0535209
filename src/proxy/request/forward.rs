//! Sends a request to the gateway on its lane.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use http::header::{CONNECTION, EXPECT, HOST, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::ext::Protocol;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::ca_page::CaRequest;
use super::client_authorization::ClientAuthorization;
use super::record::RequestRecord;
use super::response::pass_back;
use super::response_body::ResponseBody;
use super::upgrade::{UpgradeContext, upgrade};
use crate::lane::{GatewayHead, RequestRefusal, Scheme};
use crate::proxy::downstream::head_tracker::InterimSender;
use crate::proxy::error::Error;
use crate::proxy::session::Session;
use crate::proxy::upstream::budget::Purpose;
use crate::proxy::upstream::request_body::{ContinueGate, RequestBody};
use crate::proxy::upstream::send::OnInterim;

/// The result of forwarding a request.
pub struct ForwardOutcome {
    /// Whether the client's next request could be read as the body of this one, so that an HTTP/1.1
    /// connection must close.
    pub must_close: bool,
    pub result: Result<Response<ResponseBody>, Error>,
}

/// Forwards `request` and waits for the head of the response.
pub async fn forward(
    session: &Arc<Session>,
    mut request: Request<Incoming>,
    interims: InterimSender,
    record: &Arc<RequestRecord>,
) -> ForwardOutcome {
    let failed = |must_close, error| ForwardOutcome { must_close, result: Err(error) };
    let is_h2_connect = match extended_connect(&mut request) {
        Ok(is_connect) => is_connect,
        Err(error) => return failed(false, error),
    };
    if session.close_signal.is_revoked() {
        return failed(true, Error::Refused(RequestRefusal::ClientDenied));
    }
    if session.has_expired() {
        return failed(true, Error::CertificateExpired);
    }
    let client_side = hyper::upgrade::on(&mut request);
    let (mut parts, incoming) = request.into_parts();
    add_missing_host(&mut parts, session.local);
    let expects =
        parts.headers.get(EXPECT).is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    // A client may never send a body that it was not asked for (RFC 9110 section 10.1.1).
    let body_is_optional = expects && !incoming.is_end_stream();
    // A certificate to trust must not come over a connection that others can change, nor hide a path of another port.
    let may_offer_ca = session.lane.scheme() == Scheme::Https && session.target.is_gateway();
    let ca_request = may_offer_ca.then(|| CaRequest::of(&parts, &session.shared.tls)).flatten();
    let rules = session.shared.rules.load_full();
    let token = session.shared.token.load_full();
    let (lane, target) = (&session.lane, &session.target);
    let head = match GatewayHead::new(parts, lane, &rules, target, token.as_deref(), session.shared.tls.load().names())
    {
        Ok(mut head) => {
            if let Some(trace) = record.trace() {
                head.set_trace(trace);
            }
            head
        }
        Err(refusal) => return failed(body_is_optional, Error::Refused(refusal)),
    };
    let lane = head.lane();
    record.set_lane(lane);
    let mut authorization = match ClientAuthorization::new(session, head.client(), &rules) {
        Ok(authorization) => authorization,
        Err(error) => return failed(body_is_optional, error),
    };
    // An extended CONNECT that is not passed on as an upgrade must not be answered as if its WebSocket was open.
    if is_h2_connect && !head.is_upgrade() {
        return failed(false, Error::Refused(RequestRefusal::BadUpgrade));
    }
    if let Some(request) = ca_request.filter(|_| !head.is_upgrade()) {
        return ForwardOutcome { must_close: body_is_optional, result: Ok(request.response(record)) };
    }
    if head.is_upgrade() {
        let context = UpgradeContext { client_side, is_h2_connect };
        let result = Box::pin(upgrade(session, head, authorization, context, record)).await;
        return ForwardOutcome { must_close: body_is_optional, result };
    }
    let client = head.client();
    let waiting = pin!(async { Ok(session.gateway_permit(client, Purpose::Request, record.started()).await?) });
    let (permit, started) = match ClientAuthorization::unless_revoked(authorization.as_mut(), waiting).await {
        Ok(permitted) => permitted,
        Err(error) => return failed(body_is_optional, error),
    };
    let counters = session.shared.traffic.lane(lane);
    record.count_sent(counters.sent.clone());
    // hyper sends 100 over HTTP/1.1 as soon as the body is read. HTTP/1.0 has no interim responses
    // (RFC 9110 section 15.2).
    let interims = record.takes_trailers().then_some(interims);
    let h2_interims = interims.clone().filter(InterimSender::is_h2);
    let (gate, continue_signal) = if expects { Some(ContinueGate::new(h2_interims)).unzip() } else { (None, None) };
    let body =
        RequestBody::new(incoming, Arc::clone(&rules), gate, counters.received.clone(), &session.shared.shutdown);
    let progress = if expects { body.progress() } else { None };
    let on_interim = OnInterim { continue_signal, interims: interims.clone() };
    let sending = pin!(session.shared.upstream.send(head, body, on_interim, permit, &session.settings.limits, started));
    let sent = ClientAuthorization::unless_revoked(authorization.as_mut(), sending).await;
    if let Some(interims) = interims.filter(|interims| !interims.is_h2() && interims.is_waiting()) {
        // No byte of the final response may be in hyper's buffer before them. A client that does
        // not read them is cut off.
        record.guard().mark_pending(Instant::now());
        poll_fn(|cx| interims.poll_written(cx)).await;
    }
    // The client waited for a 100 and got none: what it sends next may be the body, or a new request.
    let must_close = progress.is_some_and(|progress| progress.last_piece().is_none());
    let result = sent.and_then(|(response, upstream)| {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::BadUpgradeResponse);
        }
        Ok(pass_back(session, response, upstream, record, authorization))
    });
    ForwardOutcome { must_close, result }
}

/// Adds the Host that HTTP/1.0 does not know (RFC 1945): such a request is for the address that it
/// came to. Health checks of HAProxy send none.
fn add_missing_host(parts: &mut Parts, local: SocketAddr) {
    if parts.version == Version::HTTP_10 && parts.uri.authority().is_none() && !parts.headers.contains_key(HOST) {
        let host = HeaderValue::from_str(&local.to_string());
        parts.headers.insert(HOST, host.expect("an address is a valid field value"));
    }
}

/// Turns an extended CONNECT (RFC 8441) into the equivalent HTTP/1.1 upgrade; returns whether `request` was one.
fn extended_connect(request: &mut Request<Incoming>) -> Result<bool, Error> {
    let Some(protocol) = request.extensions_mut().remove::<Protocol>() else { return Ok(false) };
    if protocol.as_str() != "websocket" {
        return Err(Error::Refused(RequestRefusal::BadUpgrade));
    }
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let key = HeaderValue::from_str(&generate_key()).map_err(|_| Error::Refused(RequestRefusal::BadUpgrade))?;
    headers.insert(SEC_WEBSOCKET_KEY, key);
    Ok(true)
}

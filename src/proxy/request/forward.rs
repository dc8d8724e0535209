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
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::ca_page::CaRequest;
use super::client_authorization::ClientAuthorization;
use super::record::RequestRecord;
use super::response::response_for_client;
use super::response_body::ResponseBody;
use super::upgrade::{UpgradeParts, upgrade_request};
use crate::labels;
use crate::lane::{GatewayHead, RequestRefusal, RequestRules, Scheme, h2_field_count, h2_head_size};
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::downstream::head_tracker::RequestHandle;
use crate::proxy::error::Error;
use crate::proxy::upstream::budget::Purpose;
use crate::proxy::upstream::gateway_request::InterimSender;
use crate::proxy::upstream::request_body::{ContinueGate, RequestBody};

/// The result of forwarding a request.
pub struct ForwardOutcome {
    /// Whether an HTTP/1.1 connection must close, because it is not known whether the client's next
    /// bytes are the body of this request or a new request.
    pub must_close: bool,
    pub result: Result<Response<ResponseBody>, Error>,
}

/// Forwards `request` and waits for the head of the response.
pub async fn forward_request(
    context: &Arc<ConnectionContext>,
    request: Request<Incoming>,
    handle: RequestHandle,
    record: &Arc<RequestRecord>,
) -> ForwardOutcome {
    let CheckedRequest { head, body, authorization, answered_by } = match check_and_build_head(context, request, record)
    {
        Ok(checked) => checked,
        Err(CheckFailure { must_close, error }) => return ForwardOutcome { must_close, result: Err(error) },
    };
    let must_close = body.is_optional();
    match answered_by {
        AnsweredBy::Loopgate(request) => ForwardOutcome { must_close, result: Ok(request.response(record)) },
        AnsweredBy::Tunnel(parts) => {
            let result = Box::pin(upgrade_request(context, head, authorization, parts, record)).await;
            ForwardOutcome { must_close, result }
        }
        AnsweredBy::Gateway => send_to_gateway(context, head, body, authorization, handle, record).await,
    }
}

/// A request that passed all checks.
struct CheckedRequest {
    head: GatewayHead,
    body: ClientBody,
    authorization: Option<ClientAuthorization>,
    answered_by: AnsweredBy,
}

/// The part that answers a request.
enum AnsweredBy {
    Gateway,
    /// The gateway, and if it agrees to the upgrade, a tunnel.
    Tunnel(UpgradeParts),
    /// loopgate, with its CA's certificate.
    Loopgate(CaRequest),
}

/// The error of a request that did not pass the checks, and whether an HTTP/1.1 connection must
/// close after it.
struct CheckFailure {
    must_close: bool,
    error: Error,
}

/// The body of a request, before it is read.
struct ClientBody {
    incoming: Incoming,
    /// Whether the client waits for `100 Continue` before it sends the body.
    expects_continue: bool,
    /// The rules by which its trailers are scrubbed.
    rules: Arc<RequestRules>,
}

impl ClientBody {
    /// Returns whether the client may leave the body out if it gets a final response before `100
    /// Continue` (RFC 9110 section 10.1.1).
    fn is_optional(&self) -> bool {
        self.expects_continue && !self.incoming.is_end_stream()
    }
}

/// Checks `request`, and builds its head for the gateway. Sets the lane of `record`, and the
/// refused upgrade of `context`.
///
/// # Errors
/// The first check that failed.
fn check_and_build_head(
    context: &ConnectionContext,
    mut request: Request<Incoming>,
    record: &RequestRecord,
) -> Result<CheckedRequest, CheckFailure> {
    keep_upgrade_in_case_of_refusal(context, &request);
    let is_h2_connect =
        convert_extended_connect(&mut request).map_err(|error| CheckFailure { must_close: false, error })?;
    check_connection(context).map_err(|error| CheckFailure { must_close: true, error })?;
    let client_side = hyper::upgrade::on(&mut request);
    let (mut parts, incoming) = request.into_parts();
    check_head_size(context, &parts).map_err(|error| CheckFailure { must_close: false, error })?;
    add_missing_host(&mut parts, context.local);
    let shared = &context.shared;
    let rules = shared.rules.load_full();
    let body = ClientBody { incoming, expects_continue: expects_continue(&parts), rules: Arc::clone(&rules) };
    let failure = |error| CheckFailure { must_close: body.is_optional(), error };
    let requested_ca_page = ca_request(context, &parts);

    let (token, tls) = (shared.token.load_full(), shared.tls.load());
    let mut head = GatewayHead::new(parts, &context.lane, &rules, &context.target, token.as_deref(), tls.names())
        .map_err(|refusal| failure(Error::Refused(refusal)))?;
    if let Some(trace) = record.trace() {
        head.set_trace_context(trace);
    }
    record.set_lane(head.lane());
    let authorization = ClientAuthorization::watch_if_needed(context, head.client(), &rules).map_err(failure)?;

    let answered_by = match requested_ca_page {
        _ if head.is_upgrade() => AnsweredBy::Tunnel(UpgradeParts { client_side, is_h2_connect }),
        // A success in response to an extended CONNECT would mean that its WebSocket is open.
        _ if is_h2_connect => return Err(failure(Error::Refused(RequestRefusal::BadUpgrade))),
        Some(request) => AnsweredBy::Loopgate(request),
        None => AnsweredBy::Gateway,
    };
    Ok(CheckedRequest { head, body, authorization, answered_by })
}

/// Refuses the request if its connection must not take a further one.
fn check_connection(context: &ConnectionContext) -> Result<(), Error> {
    if context.close_signal.is_revoked() {
        return Err(Error::Refused(RequestRefusal::ClientDenied));
    }
    if context.has_certificate_expired() {
        return Err(Error::CertificateExpired);
    }
    Ok(())
}

/// Keeps the upgrade of an HTTP/1.1 request that asks for one, so that its connection can be closed
/// if the upgrade is refused. Workaround: delete when hyper shuts such a connection down (1.12:
/// `poll_inner` in `src/proto/h1/dispatch.rs` does not).
fn keep_upgrade_in_case_of_refusal(context: &ConnectionContext, request: &Request<Incoming>) {
    if context.protocol == labels::Protocol::H1
        && let Some(upgrade) = request.extensions().get::<OnUpgrade>()
    {
        context.set_refused_upgrade(Some(upgrade.clone()));
    }
}

/// Refuses heads over HTTP/2 that exceed `limits.head_bytes` or `limits.head_fields`. hyper refuses
/// them over HTTP/1.1; over HTTP/2 it has no limit for fields, and `h2` would refuse the size
/// without a reason.
fn check_head_size(context: &ConnectionContext, parts: &Parts) -> Result<(), Error> {
    if context.protocol == labels::Protocol::H1 {
        return Ok(());
    }
    let limits = &context.settings.limits;
    if h2_head_size(parts) > limits.head_bytes {
        return Err(Error::Refused(RequestRefusal::HeadTooLarge));
    }
    if h2_field_count(parts) > limits.head_fields {
        return Err(Error::Refused(RequestRefusal::TooManyFields));
    }
    Ok(())
}

fn expects_continue(parts: &Parts) -> bool {
    parts.headers.get(EXPECT).is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Returns the request for loopgate's CA, if `parts` are one. The CA is not offered over plain
/// HTTP, where others can replace the certificate, nor on a listener of a port forward, where the
/// path belongs to its target.
fn ca_request(context: &ConnectionContext, parts: &Parts) -> Option<CaRequest> {
    let may_offer_ca = context.lane.scheme() == Scheme::Https && context.target.is_gateway();
    may_offer_ca.then(|| CaRequest::from_parts(parts, &context.shared.tls)).flatten()
}

/// Waits for a permit, sends the request and waits for the head of the gateway's response.
async fn send_to_gateway(
    context: &Arc<ConnectionContext>,
    head: GatewayHead,
    body: ClientBody,
    mut authorization: Option<ClientAuthorization>,
    handle: RequestHandle,
    record: &Arc<RequestRecord>,
) -> ForwardOutcome {
    let client = head.client();
    let permit_future =
        pin!(async { Ok(context.acquire_permit(client, Purpose::Request, record.start_time()).await?) });
    let (permit, granted_at) = match ClientAuthorization::unless_revoked(authorization.as_mut(), permit_future).await {
        Ok(permitted) => permitted,
        Err(error) => return ForwardOutcome { must_close: body.is_optional(), result: Err(error) },
    };

    // HTTP/1.0 has no interim responses (RFC 9110 section 15.2).
    let handle = record.is_http_1_1_or_later().then_some(handle);
    let counters = context.shared.traffic.lane(head.lane());
    record.set_sent_counter(counters.sent_bytes.clone());
    let ClientBody { incoming, expects_continue, rules } = body;
    // Over HTTP/1.1 hyper sends `100 Continue` itself when the body is polled.
    let h2_handle = || handle.clone().filter(RequestHandle::is_h2);
    let gate = expects_continue.then(|| ContinueGate::new(h2_handle()));
    let body = RequestBody::new(
        incoming,
        context.protocol,
        rules,
        gate,
        counters.received_bytes.clone(),
        &context.shared.shutdown,
    );
    let progress = if expects_continue { body.progress() } else { None };
    let interim_sender = InterimSender { handle: handle.clone() };
    let sending =
        pin!(context.shared.upstream.send(head, body, interim_sender, permit, &context.settings.limits, granted_at));
    let sent = ClientAuthorization::unless_revoked(authorization.as_mut(), sending).await;
    wait_for_interims(handle, record).await;

    // The client waited for `100 Continue` and got none: its next bytes may be the body or a new
    // request.
    let must_close = progress.is_some_and(|progress| progress.last_part_time().is_none());
    let result = sent.and_then(|(response, upstream)| {
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::BadUpgradeResponse);
        }
        Ok(response_for_client(context, response, upstream, record, authorization))
    });
    ForwardOutcome { must_close, result }
}

/// Waits over HTTP/1.1 until all interim responses are written: they can't be written once hyper's
/// buffer holds bytes of the final response. A client that does not read them is overdue after the
/// stall timeout.
async fn wait_for_interims(handle: Option<RequestHandle>, record: &RequestRecord) {
    if let Some(handle) = handle.filter(|handle| !handle.is_h2() && handle.has_interims()) {
        record.guard().mark_pending(Instant::now());
        poll_fn(|cx| handle.poll_interims_written(cx)).await;
    }
}

/// Adds `Host` to an HTTP/1.0 request without it (RFC 1945 does not know the field): the local
/// address that the client connected to. HAProxy's health checks send such requests.
fn add_missing_host(parts: &mut Parts, local: SocketAddr) {
    if parts.version == Version::HTTP_10 && parts.uri.authority().is_none() && !parts.headers.contains_key(HOST) {
        let host = HeaderValue::from_str(&local.to_string());
        parts.headers.insert(HOST, host.expect("an address is a valid field value"));
    }
}

/// Converts an extended CONNECT (RFC 8441) to the equivalent HTTP/1.1 upgrade; returns whether
/// `request` was one.
///
/// # Errors
/// The protocol is not `websocket`.
fn convert_extended_connect(request: &mut Request<Incoming>) -> Result<bool, Error> {
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

//! Follows one request to its end, for the access log, the metrics and spans.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes};
use http::{Method, Request, Version};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::access_log::{AccessLog, new_request_id};
use crate::audit;
use crate::config::TraceparentUse;
use crate::error_chain::error_chain;
use crate::labels::LaneKind;
use crate::lane::Scheme;
use crate::metrics::count_reason;
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::downstream::activity::RequestGuard;
use crate::proxy::downstream::head_tracker::RequestHandle;
use crate::proxy::error::Error;
use crate::proxy::request_end::RequestEnd;
use crate::proxy::upstream::budget::GatewayPermit;
use crate::proxy::upstream::h1::error::ExchangeError;
use crate::proxy::upstream::request_body::BrokenBody;
use crate::trace::{Span, Trace};

/// The record of a request, from its head to the last byte of its response. The response's body and
/// each chunk of it hold a reference. When the last reference is dropped, the request has ended,
/// and is counted and logged.
pub struct RequestRecord {
    context: Arc<ConnectionContext>,
    guard: RequestGuard,
    start_time: Instant,
    trace: Option<Trace>,
    access_log: Option<AccessLog>,
    /// The method, and the path without its query; `None` if they are neither logged nor recorded.
    target: Option<(Method, String)>,
    began_at: Option<SystemTime>,
    /// Whether the request came over HTTP/1.1 or later.
    is_http_1_1_or_later: bool,
    handle: RequestHandle,
    /// The status of the response; 0 before there is one.
    status: AtomicU16,
    time_to_response: OnceLock<Duration>,
    /// The number of bytes of the response's body that hyper got.
    bytes_to_hyper: AtomicU64,
    /// The number of bytes of the response's body that were written to the client's socket.
    bytes_sent: AtomicU64,
    sent_counter: OnceLock<Counter>,
    has_body_ended: AtomicBool,
    end: OnceLock<RequestEnd>,
    /// The permit, held until the response was sent: a client that does not read its response can't
    /// send another request in its place.
    permit: OnceLock<GatewayPermit>,
    request_id: Mutex<Option<String>>,
}

impl RequestRecord {
    /// Begins the record of `request`. `handle` is the request's handle in the code below hyper.
    pub fn new<B>(context: &Arc<ConnectionContext>, request: &Request<B>, handle: RequestHandle) -> Arc<Self> {
        let headers = request.headers();
        let has_recorder = context.shared.traffic.recorder.is_some();
        let access_log = context.settings.log_access.then(|| AccessLog::new(context, headers));
        let is_recorded = access_log.is_some() || has_recorder;
        let needs_trace = has_recorder || context.settings.traceparent == TraceparentUse::Make;
        Arc::new(Self {
            guard: context.activity.begin_request(context.lane.kind()),
            start_time: Instant::now(),
            trace: needs_trace.then(|| Trace::from_headers(headers, has_recorder)),
            access_log,
            target: is_recorded.then(|| (request.method().clone(), request.uri().path().to_owned())),
            began_at: has_recorder.then(SystemTime::now),
            is_http_1_1_or_later: request.version() >= Version::HTTP_11,
            handle,
            status: AtomicU16::new(0),
            time_to_response: OnceLock::new(),
            bytes_to_hyper: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            sent_counter: OnceLock::new(),
            has_body_ended: AtomicBool::new(false),
            end: OnceLock::new(),
            permit: OnceLock::new(),
            request_id: Mutex::new(None),
            context: Arc::clone(context),
        })
    }

    /// Returns the time at which the request's head had been read.
    pub fn start_time(&self) -> Instant {
        self.start_time
    }

    /// Returns the guard that marks the request as being served.
    pub fn guard(&self) -> &RequestGuard {
        &self.guard
    }

    /// Returns whether the request came over HTTP/1.1 or later; HTTP/1.0 has no trailers and no
    /// interim responses.
    pub fn is_http_1_1_or_later(&self) -> bool {
        self.is_http_1_1_or_later
    }

    /// Returns the request's place in its trace; `None` if traces are neither recorded nor passed
    /// on.
    pub fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    /// Holds `permit` until the response was sent.
    pub fn hold_permit(&self, permit: GatewayPermit) {
        let _ = self.permit.set(permit);
    }

    /// Sets the lane on which the request is sent to the gateway.
    pub fn set_lane(&self, lane: LaneKind) {
        self.guard.set_lane(lane);
    }

    /// Returns the lane on which the request is sent to the gateway; before that is known, the
    /// connection's.
    pub fn lane(&self) -> LaneKind {
        self.guard.lane()
    }

    /// Records and counts that the response has begun, with this status. Does nothing if an error
    /// of the client has ended its HTTP/2 connection or stream.
    pub fn record_response_start(&self, status: u16) {
        if self.handle.is_h2() && (self.handle.is_closed_for_client_fault() || self.handle.was_reset_for_client_error())
        {
            // The response does not reach the client.
            return;
        }
        let after = self.start_time.elapsed();
        self.status.store(status, Ordering::Relaxed);
        let _ = self.time_to_response.set(after);
        self.context.shared.traffic.count_response(self.lane(), self.context.protocol, status, after);
    }

    /// Records that loopgate answers with `error`, and logs and counts it; returns the request id
    /// for the response. An error of the body because loopgate closes the connection is not
    /// counted: the request then ends with its connection.
    pub fn record_failure(&self, error: &Error) -> String {
        let request_id = self.request_id();
        let (connection, peer, lane) = (self.context.number, self.context.peer, self.lane().label());
        let reason = error.label();
        let error_text = || error_chain(error);
        if matches!(error, Error::BadRequestBody(_)) && self.handle.is_closed_for_client_fault() {
            // The connection ends, and the body with it.
            debug!(
                connection, %peer, lane, request_id, reason, error = error_text(),
                "the connection ended inside the request's body"
            );
            let _ = self.end.set(RequestEnd::ConnectionClosed);
            return request_id;
        }
        if error.is_gateway_fault() {
            count_reason(&self.context.shared.traffic.gateway_errors, reason);
            warn!(
                connection, %peer, lane, request_id, reason, error = error_text(),
                "no usable response from the gateway"
            );
        } else {
            self.record_refusal(reason, &request_id);
            debug!(connection, %peer, lane, request_id, reason, error = error_text(), "answering with an error");
        }
        let _ = self.end.set(RequestEnd::Error(reason));
        request_id
    }

    /// Logs that the client left before the end of the request's body.
    pub fn log_client_left(&self, error: &Error) {
        let (connection, peer, lane) = (self.context.number, self.context.peer, self.lane().label());
        debug!(
            connection, %peer, lane, request_id = self.request_id(), error = error_chain(error),
            "the client left before the end of its body"
        );
    }

    /// Counts a refusal, and writes it to the audit log.
    fn record_refusal(&self, reason: &'static str, request_id: &str) {
        let (connection, peer, lane) = (self.context.number, self.context.peer, self.lane().label());
        count_reason(&self.context.shared.traffic.requests_refused, reason);
        info!(
            target: audit::TARGET, kind = "refusal", at = "request", connection, %peer, lane, request_id, reason,
            "request refused"
        );
    }

    /// Records that the response ends early with `error`, and logs it. If the gateway is at fault,
    /// counts it.
    pub fn record_cut(&self, error: &ExchangeError) {
        if let ExchangeError::RequestBody(broken) = error {
            self.record_broken_body(broken);
            return;
        }
        if self.end.set(RequestEnd::GatewayCut).is_err() {
            return;
        }
        let (connection, peer, lane, request_id) =
            (self.context.number, self.context.peer, self.lane().label(), self.request_id());
        let bytes = self.bytes_to_hyper.load(Ordering::Relaxed);
        count_reason(&self.context.shared.traffic.gateway_errors, RequestEnd::GatewayCut.label());
        warn!(
            connection, %peer, lane, request_id, bytes, error = error_chain(error),
            "the gateway broke off inside its response; the client gets what arrived"
        );
    }

    /// Records that the request's body broke off inside the response, and logs it.
    fn record_broken_body(&self, broken: &BrokenBody) {
        // If the client left, its connection shows how. Over HTTP/2, `h2` resets the stream of a
        // malformed body.
        if !self.handle.is_h2() && !broken.has_client_left() {
            let _ = self.end.set(RequestEnd::BadBody);
        }
        let (connection, peer, lane, request_id) =
            (self.context.number, self.context.peer, self.lane().label(), self.request_id());
        let error = error_chain(broken);
        debug!(
            connection, %peer, lane, request_id, error,
            "the client's body broke off or is malformed, while the response was being sent"
        );
    }

    /// Sets the end of the request, unless it is set already.
    pub fn set_end_once(&self, end: RequestEnd) {
        let _ = self.end.set(end);
    }

    /// Records that the body of the response is complete.
    pub fn mark_body_complete(&self) {
        self.has_body_ended.store(true, Ordering::Relaxed);
    }

    /// Sets a counter to which the bytes of the response's body are added as they are sent.
    pub fn set_sent_counter(&self, counter: Counter) {
        let _ = self.sent_counter.set(counter);
    }

    /// Returns whether all bytes of the body that hyper got were written to the client's socket.
    fn is_all_sent(&self) -> bool {
        self.bytes_sent.load(Ordering::Relaxed) >= self.bytes_to_hyper.load(Ordering::Relaxed)
    }

    /// Returns the id that identifies the request in logs and in loopgate's error responses.
    fn request_id(&self) -> String {
        if let Some(access_log) = &self.access_log {
            return access_log.request_id.clone();
        }
        self.request_id.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(new_request_id).clone()
    }

    /// Returns whether the request ends because the client does not read its response.
    pub fn is_client_stalled(&self) -> bool {
        self.resolve_end() == RequestEnd::ClientStalled
    }

    /// Returns how the request ends. The first of these that applies counts: the end that was set,
    /// a complete response, a stream that the client does not read, a malformed body, the end of
    /// the connection.
    fn resolve_end(&self) -> RequestEnd {
        if let Some(end) = self.end.get() {
            return *end;
        }
        if self.has_body_ended.load(Ordering::Relaxed) && self.is_all_sent() {
            return RequestEnd::Complete;
        }
        if self.guard.is_stream_stalled() {
            return RequestEnd::ClientStalled;
        }
        if self.handle.is_h2() && self.handle.was_reset_for_client_error() {
            return RequestEnd::BadBody;
        }
        self.context.end_of_open_requests()
    }

    /// Records the span of the request, if there is a recorder.
    fn record_span(&self, end: RequestEnd, (method, path): &(Method, String)) {
        let (Some(recorder), Some(began), Some(trace)) =
            (&self.context.shared.traffic.recorder, self.began_at, &self.trace)
        else {
            return;
        };
        let request_id = self.request_id.lock().unwrap_or_else(PoisonError::into_inner);
        let request_id = self.access_log.as_ref().map(|log| log.request_id.as_str()).or(request_id.as_deref());
        recorder.record(&Span {
            trace,
            started_at: began,
            time_to_head: self.time_to_response(),
            method: method.as_str(),
            path,
            status: self.status.load(Ordering::Relaxed),
            lane: self.lane(),
            protocol: self.context.protocol,
            is_encrypted: self.context.lane.scheme() == Scheme::Https,
            peer: self.context.peer.ip(),
            request_id: request_id.filter(|_| matches!(end, RequestEnd::Error(_) | RequestEnd::GatewayCut)),
            error: end.error_label(),
        });
    }

    /// Writes the line of the request to the access log, if that is on.
    fn log_access(&self, end: RequestEnd, (method, path): &(Method, String)) {
        let Some(AccessLog { client, request_id }) = &self.access_log else { return };
        let ms = |time: Duration| (time.as_secs_f64() * 10_000.0).round() / 10.0;
        let (ms, total_ms) = (ms(self.time_to_response()), ms(self.start_time.elapsed()));
        let (connection, peer, bytes) =
            (self.context.number, self.context.peer, self.bytes_sent.load(Ordering::Relaxed));
        let trace_id = self.trace.as_ref().map_or("-", |trace| trace.forwarded.trace_id());
        let (lane, protocol, end) = (self.lane().label(), self.context.protocol.label(), end.label());
        // The field is left out if there was no response.
        let status = Some(self.status.load(Ordering::Relaxed)).filter(|status| *status > 0);
        info!(
            target: "loopgate::access", connection, %peer, %client, lane, protocol, %method, path, status,
            bytes, ms, total_ms, end, request_id, trace_id,
            "request"
        );
    }

    /// Returns the time from the head of the request to that of the response, or until now if there
    /// is none.
    fn time_to_response(&self) -> Duration {
        self.time_to_response.get().copied().unwrap_or_else(|| self.start_time.elapsed())
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let end = self.resolve_end();
        if end == RequestEnd::BadBody {
            self.record_refusal(end.label(), &self.request_id());
        }
        if end == RequestEnd::ClientStalled
            && let Some(permit) = self.permit.get()
        {
            permit.record_stall();
        }
        self.context.shared.traffic.count_request_end(self.lane(), end.label());
        if let Some(target) = &self.target {
            self.record_span(end, target);
            self.log_access(end, target);
        }
    }
}

/// A chunk of a response's body. It counts its bytes as they are written to the client's socket.
pub struct CountedChunk {
    bytes: Bytes,
    record: Arc<RequestRecord>,
    /// Dropped with the chunk, after all chunks before it were written to the socket.
    _delivered: Option<oneshot::Sender<()>>,
}

impl CountedChunk {
    /// Creates a chunk for hyper, and counts `bytes` as given to it.
    pub fn new(bytes: Bytes, record: &Arc<RequestRecord>) -> Self {
        record.bytes_to_hyper.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Self { bytes, record: Arc::clone(record), _delivered: None }
    }

    /// Creates an empty chunk, and a receiver that completes once all chunks before it were written
    /// to the socket.
    pub fn delivery_marker(record: &Arc<RequestRecord>) -> (Self, oneshot::Receiver<()>) {
        let (sender, delivered) = oneshot::channel();
        (Self { bytes: Bytes::new(), record: Arc::clone(record), _delivered: Some(sender) }, delivered)
    }
}

impl Buf for CountedChunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.record.bytes_sent.fetch_add(count as u64, Ordering::Relaxed);
        if let Some(counter) = self.record.sent_counter.get() {
            counter.inc_by(count as u64);
        }
    }
}

//! The metrics of the proxy.
//!
//! Names follow the Prometheus conventions. No label has a value that a client chose, so that
//! clients can't make the number of time series grow.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::labels::{LaneKind, Protocol};
use crate::trace::Recorder;

/// The end of most requests, as a label: the whole response was handed to the client's socket.
const COMPLETE: &str = "complete";

/// The label of the metrics in [`LaneMetrics`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    lane: LaneKind,
}

/// The labels of the counter of answered requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The lane on which the request was forwarded.
    pub lane: LaneKind,
    /// The protocol that the client speaks.
    pub protocol: Protocol,
    /// The status code of the response.
    pub status: u16,
}

/// The labels of the counter of ended requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabels {
    /// The lane on which the request was forwarded.
    pub lane: LaneKind,
    /// How the request ended, such as `complete`.
    pub end: &'static str,
}

/// The label of the counters that count by reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// The reason, from the fixed list of the module that counts it.
    pub reason: &'static str,
}

/// The metrics of the proxy.
#[derive(Debug)]
pub struct Traffic {
    lanes: LaneFamilies,
    agent: LaneMetrics,
    external: LaneMetrics,
    requests: Family<RequestLabels, Counter>,
    request_ends: Family<EndLabels, Counter>,
    /// The number of connections closed before their first request, by reason.
    pub connections_denied: Family<ReasonLabels, Counter>,
    /// The number of completed TLS handshakes.
    pub handshakes: Counter,
    /// The number of failed TLS handshakes, by reason.
    pub handshake_failures: Family<ReasonLabels, Counter>,
    /// The number of connections closed because their client was too slow, by what the client did
    /// not do in time.
    pub connections_overdue: Family<ReasonLabels, Counter>,
    /// The number of HTTP/2 connections closed because their client sent too many frames that
    /// start no request and carry no data, such as PING and SETTINGS.
    pub floods: Counter,
    /// The number of requests that failed because the client sent something invalid or is not
    /// allowed to send it, by reason. Part of such a request's body may have reached the gateway.
    pub requests_refused: Family<ReasonLabels, Counter>,
    /// The number of failures between loopgate and the gateway, by reason.
    pub gateway_errors: Family<ReasonLabels, Counter>,
    /// The number of connections opened to the gateway.
    pub gateway_connections: Counter,
    /// The number of connections and requests closed because they were no longer authorized.
    pub connections_revoked: Counter,
    /// Records a span for each request; `None` if tracing is off.
    pub recorder: Option<Arc<dyn Recorder>>,
}

/// The metrics of one lane.
#[derive(Debug)]
pub struct LaneMetrics {
    /// The number of open downstream connections that have a lane, including upgraded ones.
    pub connections_open: Gauge,
    /// The number of downstream connections that got a lane, including closed ones.
    pub connections: Counter,
    /// The number of open upgraded connections (WebSockets).
    pub tunnels: Gauge,
    /// The number of requests in flight at the gateway, without WebSockets.
    pub requests_in_flight: Gauge,
    /// The number of WebSockets at the gateway, including requests that ask for one.
    pub websockets: Gauge,
    /// The number of requests that wait because too many are in flight.
    pub waiting_requests: Gauge,
    /// The number of body bytes received from clients.
    pub received_bytes: Counter,
    /// The number of body bytes sent to clients.
    pub sent_bytes: Counter,
    /// The time until the gateway's response head, in seconds.
    pub response_time: Histogram,
    /// The counters of requests answered with 200, over HTTP/1.1 and over HTTP/2. They are kept
    /// here so that most requests need no lookup in the family.
    status_200: [Counter; 2],
    /// The counter of requests that end as [`COMPLETE`], kept for the same reason.
    complete: Counter,
}

/// The families from which [`LaneMetrics`] is taken. Each family is registered once, for all lanes.
#[derive(Debug)]
struct LaneFamilies {
    connections_open: Family<LaneLabels, Gauge>,
    connections: Family<LaneLabels, Counter>,
    tunnels: Family<LaneLabels, Gauge>,
    requests_in_flight: Family<LaneLabels, Gauge>,
    websockets: Family<LaneLabels, Gauge>,
    waiting_requests: Family<LaneLabels, Gauge>,
    received_bytes: Family<LaneLabels, Counter>,
    sent_bytes: Family<LaneLabels, Counter>,
    response_time: Family<LaneLabels, Histogram, fn() -> Histogram>,
}

impl Default for LaneFamilies {
    fn default() -> Self {
        let buckets = || {
            Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0])
        };
        Self {
            connections_open: Family::default(),
            connections: Family::default(),
            tunnels: Family::default(),
            requests_in_flight: Family::default(),
            websockets: Family::default(),
            waiting_requests: Family::default(),
            received_bytes: Family::default(),
            sent_bytes: Family::default(),
            response_time: Family::new_with_constructor(buckets),
        }
    }
}

impl LaneFamilies {
    /// Takes the metrics of `lane` from the families.
    fn metrics_of(
        &self,
        lane: LaneKind,
        requests: &Family<RequestLabels, Counter>,
        ends: &Family<EndLabels, Counter>,
    ) -> LaneMetrics {
        let status_200 = [Protocol::H1, Protocol::H2]
            .map(|protocol| requests.get_or_create(&RequestLabels { lane, protocol, status: 200 }).clone());
        let complete = ends.get_or_create(&EndLabels { lane, end: COMPLETE }).clone();
        let lane = LaneLabels { lane };
        LaneMetrics {
            connections_open: self.connections_open.get_or_create(&lane).clone(),
            connections: self.connections.get_or_create(&lane).clone(),
            tunnels: self.tunnels.get_or_create(&lane).clone(),
            requests_in_flight: self.requests_in_flight.get_or_create(&lane).clone(),
            websockets: self.websockets.get_or_create(&lane).clone(),
            waiting_requests: self.waiting_requests.get_or_create(&lane).clone(),
            received_bytes: self.received_bytes.get_or_create(&lane).clone(),
            sent_bytes: self.sent_bytes.get_or_create(&lane).clone(),
            response_time: self.response_time.get_or_create(&lane).clone(),
            status_200,
            complete,
        }
    }
}

impl Default for Traffic {
    fn default() -> Self {
        let lanes = LaneFamilies::default();
        let (requests, request_ends) = (Family::default(), Family::default());
        Self {
            agent: lanes.metrics_of(LaneKind::Agent, &requests, &request_ends),
            external: lanes.metrics_of(LaneKind::External, &requests, &request_ends),
            lanes,
            requests,
            request_ends,
            connections_denied: Family::default(),
            handshakes: Counter::default(),
            handshake_failures: Family::default(),
            connections_overdue: Family::default(),
            floods: Counter::default(),
            requests_refused: Family::default(),
            gateway_errors: Family::default(),
            gateway_connections: Counter::default(),
            connections_revoked: Counter::default(),
            recorder: None,
        }
    }
}

impl Traffic {
    /// Creates the metrics, with a recorder of the spans of requests.
    pub fn with_recorder(recorder: Option<Arc<dyn Recorder>>) -> Self {
        Self { recorder, ..Self::default() }
    }

    /// Returns the metrics of one lane.
    pub fn lane(&self, lane: LaneKind) -> &LaneMetrics {
        match lane {
            LaneKind::Agent => &self.agent,
            LaneKind::External => &self.external,
        }
    }

    /// Counts an answered request, whose response head arrived `after` this time.
    pub fn count_response(&self, lane: LaneKind, protocol: Protocol, status: u16, after: Duration) {
        let counters = self.lane(lane);
        if status == 200 {
            counters.status_200[usize::from(protocol == Protocol::H2)].inc();
        } else {
            self.requests.get_or_create(&RequestLabels { lane, protocol, status }).inc();
        }
        counters.response_time.observe(after.as_secs_f64());
    }

    /// Counts a request that ended. `end` is how the request ended.
    pub fn count_request_end(&self, lane: LaneKind, end: &'static str) {
        if end == COMPLETE {
            self.lane(lane).complete.inc();
        } else {
            self.request_ends.get_or_create(&EndLabels { lane, end }).inc();
        }
    }

    /// Adds these metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let lanes = &self.lanes;
        registry.register(
            "connections_open",
            "Downstream connections open, after a lane was assigned",
            lanes.connections_open.clone(),
        );
        registry.register("connections", "Downstream connections so far", lanes.connections.clone());
        registry.register("tunnels_open", "Upgraded connections (WebSockets) that are open", lanes.tunnels.clone());
        registry.register(
            "gateway_requests_in_flight",
            "Requests in flight at the gateway, WebSockets aside",
            lanes.requests_in_flight.clone(),
        );
        registry.register(
            "gateway_websockets",
            "WebSockets at the gateway, requests for one included",
            lanes.websockets.clone(),
        );
        registry.register(
            "gateway_requests_waiting",
            "Requests that wait until fewer are in flight at the gateway",
            lanes.waiting_requests.clone(),
        );
        registry.register_with_unit("received", "Body bytes from clients", Unit::Bytes, lanes.received_bytes.clone());
        registry.register_with_unit("sent", "Body bytes to clients", Unit::Bytes, lanes.sent_bytes.clone());
        registry.register_with_unit(
            "response",
            "Time until the gateway's response head",
            Unit::Seconds,
            lanes.response_time.clone(),
        );
        registry.register("requests", "Answered requests", self.requests.clone());
        registry.register("request_ends", "Requests by how they ended", self.request_ends.clone());
        registry.register(
            "connections_denied",
            "Connections closed before their first request",
            self.connections_denied.clone(),
        );
        registry.register("tls_handshakes", "TLS handshakes completed", self.handshakes.clone());
        registry.register("tls_handshake_failures", "TLS handshakes that failed", self.handshake_failures.clone());
        registry.register(
            "connections_overdue",
            "Connections closed because their client was too slow",
            self.connections_overdue.clone(),
        );
        registry.register(
            "connections_flooding",
            "HTTP/2 connections closed because their client sent too many control frames",
            self.floods.clone(),
        );
        registry.register(
            "requests_refused",
            "Requests refused because the client sent something invalid or not allowed",
            self.requests_refused.clone(),
        );
        registry.register("gateway_errors", "Failures between loopgate and the gateway", self.gateway_errors.clone());
        registry.register("gateway_connections", "Connections opened to the gateway", self.gateway_connections.clone());
        registry.register(
            "lane_changes",
            "Connections and requests closed because they were no longer authorized",
            self.connections_revoked.clone(),
        );
    }
}

/// Adds one to the counter of `family` that has this `reason`.
pub fn count_reason(family: &Family<ReasonLabels, Counter>, reason: &'static str) {
    family.get_or_create(&ReasonLabels { reason }).inc();
}

/// Keeps a gauge incremented by one until the guard is dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Increments `gauge` until the guard is dropped.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

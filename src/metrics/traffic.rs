//! What the proxy counts. Names follow the Prometheus conventions, and no label has a value that a client chose.

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

/// How most requests end.
const COMPLETE: &str = "complete";

/// A lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    lane: LaneKind,
}

/// A kind of request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The lane that the request left on.
    pub lane: LaneKind,
    /// The client's protocol.
    pub protocol: Protocol,
    /// The status code.
    pub status: u16,
}

/// How requests of a lane end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabels {
    /// The lane that the request left on.
    pub lane: LaneKind,
    /// How it ended, in one word.
    pub end: &'static str,
}

/// A reason, out of a fixed list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// The reason in one word.
    pub reason: &'static str,
}

/// Everything that the proxy counts.
#[derive(Debug)]
pub struct Traffic {
    lanes: Lanes,
    agent: LaneMetrics,
    external: LaneMetrics,
    requests: Family<RequestLabels, Counter>,
    request_ends: Family<EndLabels, Counter>,
    /// Connections closed before their first request.
    pub denied: Family<ReasonLabels, Counter>,
    /// TLS handshakes completed.
    pub handshakes: Counter,
    /// TLS handshakes that failed.
    pub handshake_failures: Family<ReasonLabels, Counter>,
    /// Connections closed because their client was too slow, by what it was slow with.
    pub overdue: Family<ReasonLabels, Counter>,
    /// HTTP/2 connections that were closed because their client sent too much that asks for nothing.
    pub floods: Counter,
    /// Requests that failed for what the client sent or may not do; parts of a body may have been sent.
    pub refused: Family<ReasonLabels, Counter>,
    /// Failures between loopgate and the gateway.
    pub gateway_errors: Family<ReasonLabels, Counter>,
    /// Connections opened to the gateway.
    pub gateway_connections: Counter,
    /// Connections and requests closed because they were no longer authorized.
    pub connections_revoked: Counter,
    /// Records a span for each request, if tracing is on.
    pub recorder: Option<Arc<dyn Recorder>>,
}

/// What is counted for each lane.
#[derive(Debug)]
pub struct LaneMetrics {
    /// Downstream connections open, after a lane was assigned, WebSockets included.
    pub open: Gauge,
    /// Downstream connections so far.
    pub connections: Counter,
    /// Upgraded connections (WebSockets) that are open.
    pub tunnels: Gauge,
    /// Requests in flight at the gateway, WebSockets aside.
    pub in_flight: Gauge,
    /// WebSockets at the gateway, requests for one included.
    pub websockets: Gauge,
    /// Requests that wait until fewer are in flight.
    pub waiting: Gauge,
    /// Body bytes from clients.
    pub received: Counter,
    /// Body bytes to clients.
    pub sent: Counter,
    /// Seconds until the gateway's response head.
    pub duration: Histogram,
    /// Requests answered with 200, over HTTP/1.1 and over HTTP/2: handles kept, because most requests end so.
    status_200: [Counter; 2],
    /// Requests whose whole response was handed to the client's socket.
    complete: Counter,
}

/// The families behind [`LaneMetrics`], each registered once.
#[derive(Debug)]
struct Lanes {
    open: Family<LaneLabels, Gauge>,
    connections: Family<LaneLabels, Counter>,
    tunnels: Family<LaneLabels, Gauge>,
    in_flight: Family<LaneLabels, Gauge>,
    websockets: Family<LaneLabels, Gauge>,
    waiting: Family<LaneLabels, Gauge>,
    received: Family<LaneLabels, Counter>,
    sent: Family<LaneLabels, Counter>,
    duration: Family<LaneLabels, Histogram, fn() -> Histogram>,
}

impl Default for Lanes {
    fn default() -> Self {
        let buckets = || {
            Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0])
        };
        Self {
            open: Family::default(),
            connections: Family::default(),
            tunnels: Family::default(),
            in_flight: Family::default(),
            websockets: Family::default(),
            waiting: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            duration: Family::new_with_constructor(buckets),
        }
    }
}

impl Lanes {
    fn of(
        &self,
        lane: LaneKind,
        requests: &Family<RequestLabels, Counter>,
        ends: &Family<EndLabels, Counter>,
    ) -> LaneMetrics {
        let status_200 = [Protocol::Http1, Protocol::Http2]
            .map(|protocol| requests.get_or_create(&RequestLabels { lane, protocol, status: 200 }).clone());
        let complete = ends.get_or_create(&EndLabels { lane, end: COMPLETE }).clone();
        let lane = LaneLabels { lane };
        LaneMetrics {
            open: self.open.get_or_create(&lane).clone(),
            connections: self.connections.get_or_create(&lane).clone(),
            tunnels: self.tunnels.get_or_create(&lane).clone(),
            in_flight: self.in_flight.get_or_create(&lane).clone(),
            websockets: self.websockets.get_or_create(&lane).clone(),
            waiting: self.waiting.get_or_create(&lane).clone(),
            received: self.received.get_or_create(&lane).clone(),
            sent: self.sent.get_or_create(&lane).clone(),
            duration: self.duration.get_or_create(&lane).clone(),
            status_200,
            complete,
        }
    }
}

impl Default for Traffic {
    fn default() -> Self {
        let lanes = Lanes::default();
        let (requests, request_ends) = (Family::default(), Family::default());
        Self {
            agent: lanes.of(LaneKind::Agent, &requests, &request_ends),
            external: lanes.of(LaneKind::External, &requests, &request_ends),
            lanes,
            requests,
            request_ends,
            denied: Family::default(),
            handshakes: Counter::default(),
            handshake_failures: Family::default(),
            overdue: Family::default(),
            floods: Counter::default(),
            refused: Family::default(),
            gateway_errors: Family::default(),
            gateway_connections: Counter::default(),
            connections_revoked: Counter::default(),
            recorder: None,
        }
    }
}

impl Traffic {
    /// Counts, and reports each request to `recorder`.
    pub fn with_recorder(recorder: Option<Arc<dyn Recorder>>) -> Self {
        Self { recorder, ..Self::default() }
    }

    /// The counters of one lane.
    pub fn lane(&self, lane: LaneKind) -> &LaneMetrics {
        match lane {
            LaneKind::Agent => &self.agent,
            LaneKind::External => &self.external,
        }
    }

    /// Counts an answered request and how long its response head took.
    pub fn count_response(&self, lane: LaneKind, protocol: Protocol, status: u16, after: Duration) {
        let counters = self.lane(lane);
        if status == 200 {
            counters.status_200[usize::from(protocol == Protocol::Http2)].inc();
        } else {
            self.requests.get_or_create(&RequestLabels { lane, protocol, status }).inc();
        }
        counters.duration.observe(after.as_secs_f64());
    }

    /// Counts a request that ended.
    pub fn count_end(&self, lane: LaneKind, end: &'static str) {
        if end == COMPLETE {
            self.lane(lane).complete.inc();
        } else {
            self.request_ends.get_or_create(&EndLabels { lane, end }).inc();
        }
    }

    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let lanes = &self.lanes;
        registry.register(
            "connections_open",
            "Downstream connections open, after a lane was assigned",
            lanes.open.clone(),
        );
        registry.register("connections", "Downstream connections so far", lanes.connections.clone());
        registry.register("tunnels_open", "Upgraded connections (WebSockets) that are open", lanes.tunnels.clone());
        registry.register(
            "gateway_requests_in_flight",
            "Requests in flight at the gateway, WebSockets aside",
            lanes.in_flight.clone(),
        );
        registry.register(
            "gateway_websockets",
            "WebSockets at the gateway, requests for one included",
            lanes.websockets.clone(),
        );
        registry.register(
            "gateway_requests_waiting",
            "Requests that wait until fewer are in flight at the gateway",
            lanes.waiting.clone(),
        );
        registry.register_with_unit("received", "Body bytes from clients", Unit::Bytes, lanes.received.clone());
        registry.register_with_unit("sent", "Body bytes to clients", Unit::Bytes, lanes.sent.clone());
        registry.register_with_unit(
            "response",
            "Time until the gateway's response head",
            Unit::Seconds,
            lanes.duration.clone(),
        );
        registry.register("requests", "Answered requests", self.requests.clone());
        registry.register("request_ends", "Requests by how they ended", self.request_ends.clone());
        registry.register("connections_denied", "Connections closed before their first request", self.denied.clone());
        registry.register("tls_handshakes", "TLS handshakes completed", self.handshakes.clone());
        registry.register("tls_handshake_failures", "TLS handshakes that failed", self.handshake_failures.clone());
        registry.register(
            "connections_overdue",
            "Connections closed because their client was too slow",
            self.overdue.clone(),
        );
        registry.register(
            "connections_flooding",
            "HTTP/2 connections closed because of floods of frames that ask for nothing",
            self.floods.clone(),
        );
        registry.register(
            "requests_refused",
            "Requests that failed for what the client sent or may not do",
            self.refused.clone(),
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
pub fn count(family: &Family<ReasonLabels, Counter>, reason: &'static str) {
    family.get_or_create(&ReasonLabels { reason }).inc();
}

/// Holds a gauge up by one until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Raises `gauge`.
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

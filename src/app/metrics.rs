//! The metrics of the sidecar, and the registry that the admin listener serves.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::config::AgentSourceKind;
use crate::metrics::enrolment::EnrolmentMetrics;
use crate::metrics::traffic::Traffic;
use crate::metrics::{DiscoveryMetrics, ListenerMetrics};
use crate::tls;
use crate::trace::Recorder;

/// The metrics of the sidecar, by module.
pub(super) struct Metrics {
    pub discovery: DiscoveryMetrics,
    pub listener: ListenerMetrics,
    pub traffic: Arc<Traffic>,
    pub enrolments: EnrolmentMetrics,
}

impl Metrics {
    /// Creates the metrics of the listeners and the proxy, and adds the given ones of discovery and
    /// enrolment. `recorder` gets the spans of requests.
    pub fn new(discovery: DiscoveryMetrics, enrolments: EnrolmentMetrics, recorder: Option<Arc<dyn Recorder>>) -> Self {
        let traffic = Arc::new(Traffic::with_recorder(recorder));
        Self { discovery, listener: ListenerMetrics::default(), traffic, enrolments }
    }

    /// Returns a registry with all these metrics. Those of discovery get the names that they have
    /// with `source`.
    pub fn build_registry(&self, source: AgentSourceKind) -> Registry {
        let mut registry = Registry::with_prefix("loopgate");
        self.traffic.register(&mut registry);
        self.listener.register(&mut registry);
        self.discovery.register(&mut registry);
        match source {
            AgentSourceKind::Docker => self.discovery.register_docker(&mut registry),
            AgentSourceKind::Kubernetes => self.discovery.register_kubernetes(&mut registry),
        }
        self.enrolments.register(&mut registry);
        tls::register(&mut registry);
        registry
    }
}

//! The metrics of discovery.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of the `discovery` module.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryMetrics {
    /// The number of IP addresses that belong to agents.
    pub agent_addresses: Gauge,
    /// 1 while loopgate receives the events of Docker or of the Kubernetes API server, else 0.
    pub live: Gauge,
    /// The time at which Docker last listed its containers, or the API server last sent pods, in
    /// seconds since the Unix epoch.
    pub listed_at: Gauge,
    /// The number of lists of containers or pods that were read.
    pub lists_read: Counter,
    /// The number of event streams that were lost or could not be opened.
    pub lost_streams: Counter,
}

impl DiscoveryMetrics {
    /// Adds the metrics that exist with Docker and with Kubernetes alike to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("discovery_agent_addresses", "IP addresses of agents", self.agent_addresses.clone());
    }

    /// Adds the metrics of discovery to `registry`, under the names that they have with Docker.
    pub fn register_docker(&self, registry: &mut Registry) {
        registry.register("discovery_docker_up", "Whether loopgate follows Docker's events", self.live.clone());
        registry.register(
            "discovery_docker_list_timestamp_seconds",
            "When Docker last listed its containers",
            self.listed_at.clone(),
        );
        registry.register("discovery_docker_lists", "Lists of containers read", self.lists_read.clone());
        registry.register(
            "discovery_docker_losses",
            "Event streams that were lost or could not be opened",
            self.lost_streams.clone(),
        );
    }

    /// Adds the metrics of discovery to `registry`, under the names that they have with Kubernetes.
    pub fn register_kubernetes(&self, registry: &mut Registry) {
        registry.register(
            "discovery_kubernetes_up",
            "Whether loopgate follows the pods of the Kubernetes API server",
            self.live.clone(),
        );
        let help = "When the Kubernetes API server last sent pods";
        registry.register("discovery_kubernetes_heard_timestamp_seconds", help, self.listed_at.clone());
        registry.register("discovery_kubernetes_lists", "Lists of pods read", self.lists_read.clone());
        registry.register(
            "discovery_kubernetes_losses",
            "Watches that were lost or could not be opened",
            self.lost_streams.clone(),
        );
    }
}

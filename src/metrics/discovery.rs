//! The metrics of discovery.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of the `discovery` module.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryMetrics {
    /// IP addresses of agents.
    pub agents: Gauge,
    /// 1 while loopgate follows Docker or the API server.
    pub live: Gauge,
    /// When Docker last listed its containers, or the API server last sent pods, in seconds since the Unix epoch.
    pub listed: Gauge,
    /// Lists of containers or pods read so far.
    pub lists: Counter,
    /// Event streams that were lost or could not be opened.
    pub losses: Counter,
}

impl DiscoveryMetrics {
    /// Adds the metrics that do not depend on the source to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("discovery_agent_addresses", "IP addresses of agents", self.agents.clone());
    }

    /// Adds the metrics of discovery by Docker to `registry`.
    pub fn register_docker(&self, registry: &mut Registry) {
        registry.register("discovery_docker_up", "Whether loopgate follows Docker's events", self.live.clone());
        registry.register(
            "discovery_docker_list_timestamp_seconds",
            "When Docker last listed its containers",
            self.listed.clone(),
        );
        registry.register("discovery_docker_lists", "Lists of containers read", self.lists.clone());
        registry.register(
            "discovery_docker_losses",
            "Event streams that were lost or could not be opened",
            self.losses.clone(),
        );
    }

    /// Adds the metrics of discovery by Kubernetes to `registry`.
    pub fn register_kubernetes(&self, registry: &mut Registry) {
        registry.register(
            "discovery_kubernetes_up",
            "Whether loopgate follows the pods of the Kubernetes API server",
            self.live.clone(),
        );
        let help = "When the Kubernetes API server last sent pods";
        registry.register("discovery_kubernetes_heard_timestamp_seconds", help, self.listed.clone());
        registry.register("discovery_kubernetes_lists", "Lists of pods read", self.lists.clone());
        registry.register(
            "discovery_kubernetes_losses",
            "Watches that were lost or could not be opened",
            self.losses.clone(),
        );
    }
}

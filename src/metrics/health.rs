//! Gauges that show the state of the sidecar. The admin listener sets them at each scrape.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// The label of [`Health::agents`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProofLabels {
    /// How an agent proves its identity: `attested` or `address`.
    pub proof: &'static str,
}

/// The state of the sidecar as a whole.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// 1 while the sidecar is ready.
    pub ready: Gauge,
    /// 1 while the gateway accepts connections.
    pub gateway_up: Gauge,
    /// The number of addresses on which the sidecar listens for the gateway's own port.
    pub listeners: Gauge,
    /// The time at which the served certificate expires, in seconds since the Unix epoch.
    pub certificate_expiry: Gauge,
    /// 1 while a newer certificate than the served one could not be loaded or made, or the client
    /// CA could not be read again.
    pub certificate_problem: Gauge,
    /// 1 while the last configuration read is invalid and the previous one is in use.
    pub config_problem: Gauge,
    /// 1 if loopgate discovers agents through Docker.
    pub docker_enabled: Gauge,
    /// 1 if loopgate discovers agents through Kubernetes.
    pub kubernetes_enabled: Gauge,
    /// The number of containers or pods that are agents, by how they prove their identity.
    pub agents: Family<ProofLabels, Gauge>,
    /// The number of containers or pods that have an agent's label but are not agents.
    pub not_agents: Gauge,
    /// The time at which this process started, in seconds since the Unix epoch.
    pub start_time: Gauge,
}

impl Health {
    /// Adds these metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("build", "The version that runs", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("ready", "Whether the sidecar is ready", self.ready.clone());
        registry.register("gateway_up", "Whether the gateway accepts connections", self.gateway_up.clone());
        registry.register("listeners", "Addresses listened on", self.listeners.clone());
        let expiry_help = "Until when the served certificate is valid";
        registry.register("certificate_expiry_timestamp_seconds", expiry_help, self.certificate_expiry.clone());
        let certificate_help = "Whether a newer certificate than the served one could not be loaded or made";
        registry.register("certificate_problem", certificate_help, self.certificate_problem.clone());
        let config_help = "1 while the last configuration read is invalid and the previous one is in use";
        registry.register("config_problem", config_help, self.config_problem.clone());
        registry.register("discovery_docker_enabled", "Whether discovery by Docker is on", self.docker_enabled.clone());
        registry.register(
            "discovery_kubernetes_enabled",
            "Whether discovery by Kubernetes is on",
            self.kubernetes_enabled.clone(),
        );
        registry.register(
            "discovery_agents",
            "Containers, or pods, that are agents, by how they prove it",
            self.agents.clone(),
        );
        registry.register(
            "discovery_not_agents",
            "Labelled containers, or pods, that are no agents",
            self.not_agents.clone(),
        );
        registry.register("start_timestamp_seconds", "When this process started", self.start_time.clone());
    }
}

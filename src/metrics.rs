//! What is counted, and guards that give back on drop.
//!
//! Each room has one struct here, made of handles that share their value when cloned.

pub mod enrolment;
pub mod health;
pub mod traffic;

pub use traffic::count;

use std::fmt::Write;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::config;

/// What the [`listener`](crate::listener) counts.
#[derive(Clone, Debug, Default)]
pub struct Doors {
    /// Connections let in so far.
    pub accepted: Counter,
    /// Connections open now.
    pub open: Gauge,
    /// Connections closed at the door, by reason.
    pub refused: Family<RefusedLabels, Counter>,
    /// Failures of `accept(2)` that were not the peer's, such as a full file-descriptor table.
    pub accept_failures: Counter,
}

/// Labels of [`Doors::refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusedLabels {
    /// Why.
    pub reason: Refusal,
}

/// Why a connection is closed at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The client has `max_connections_per_client` already.
    ClientConnections,
    /// The client exceeds `connection_rate_per_client`.
    ClientRate,
    /// There are `max_connections`, and as many waiting as may.
    Full,
}

impl EncodeLabelValue for Refusal {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::ClientConnections => "client_connections",
            Self::ClientRate => "client_rate",
            Self::Full => "full",
        })
    }
}

impl Doors {
    /// Adds these metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("downstream_connections_accepted", "Connections let in", self.accepted.clone());
        registry.register("downstream_connections_open", "Connections open now", self.open.clone());
        registry.register("downstream_connections_refused", "Connections closed at the door, by reason", self.refused.clone());
        registry.register("downstream_accept_failures", "Failures of accept that were not the peer's", self.accept_failures.clone());
    }

    /// Counts a connection closed at the door.
    pub fn refuse(&self, reason: Refusal) {
        self.refused.get_or_create(&RefusedLabels { reason }).inc();
    }
}

/// What [`discovery`](crate::discovery) counts.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    /// Addresses that agents are let in from.
    pub agents: Gauge,
    /// 1 while Docker, or the API server, is followed.
    pub live: Gauge,
    /// When Docker last listed its containers, or the API server told of pods, in seconds since the Unix epoch.
    pub listed: Gauge,
    /// How often it was asked to.
    pub lists: Counter,
    /// Event streams lost, and attempts at one that failed.
    pub losses: Counter,
}

impl Discovery {
    /// Adds these metrics to `registry`, under the names of each of `sources`.
    pub fn register(&self, registry: &mut Registry, sources: &[config::Discovery]) {
        registry.register("discovery_agent_addresses", "Addresses that agents are let in from", self.agents.clone());
        for source in sources {
            match source {
                config::Discovery::Docker => self.register_docker(registry),
                config::Discovery::Kubernetes => self.register_kubernetes(registry),
            }
        }
    }

    fn register_docker(&self, registry: &mut Registry) {
        registry.register("discovery_docker_up", "Whether Docker is followed", self.live.clone());
        registry.register("discovery_docker_list_timestamp_seconds", "When Docker last listed its containers", self.listed.clone());
        registry.register("discovery_docker_lists", "Lists of containers read", self.lists.clone());
        registry.register("discovery_docker_losses", "Event streams lost or not begun", self.losses.clone());
    }

    fn register_kubernetes(&self, registry: &mut Registry) {
        registry.register("discovery_kubernetes_up", "Whether the Kubernetes API server is followed", self.live.clone());
        let heard = "When the Kubernetes API server last told of pods";
        registry.register("discovery_kubernetes_heard_timestamp_seconds", heard, self.listed.clone());
        registry.register("discovery_kubernetes_lists", "Lists of pods read", self.lists.clone());
        registry.register("discovery_kubernetes_losses", "Watches lost or not begun", self.losses.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_are_told_in_openmetrics() {
        let doors = Doors::default();
        doors.refuse(Refusal::ClientRate);
        let mut registry = Registry::with_prefix("loopgate");
        doors.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("loopgate_downstream_connections_refused_total{reason=\"client_rate\"} 1"), "{text}");
    }
}

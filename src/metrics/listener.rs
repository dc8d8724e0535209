//! The metrics of listeners.

use std::fmt::Write;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of the `listener` module.
#[derive(Clone, Debug, Default)]
pub struct ListenerMetrics {
    /// The number of connections accepted.
    pub connections_accepted: Counter,
    /// The number of open connections, including those in the TLS handshake.
    pub connections_open: Gauge,
    /// The number of connections closed right after they were accepted, by reason.
    pub connections_refused: Family<RefusedLabels, Counter>,
    /// The number of failures of `accept(2)` that the peer did not cause, such as a full
    /// file-descriptor table.
    pub accept_failures: Counter,
}

/// The label of [`ListenerMetrics::connections_refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusedLabels {
    /// Why the connections were closed.
    pub reason: AcceptRefusal,
}

/// Why a connection is closed right after it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcceptRefusal {
    /// The client already has `max_connections_per_client` connections.
    ClientConnections,
    /// The client opens connections faster than `connection_rate_per_client` allows.
    ClientRate,
    /// `max_connections` connections are open, and the queue of waiting connections is full.
    Full,
}

impl AcceptRefusal {
    /// Returns the name of the reason in metrics and the audit log.
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientConnections => "client_connections",
            Self::ClientRate => "client_rate",
            Self::Full => "full",
        }
    }
}

impl EncodeLabelValue for AcceptRefusal {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.label())
    }
}

impl ListenerMetrics {
    /// Adds these metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("downstream_connections_accepted", "Connections accepted", self.connections_accepted.clone());
        registry.register(
            "downstream_connections_open",
            "Downstream connections open, handshakes included",
            self.connections_open.clone(),
        );
        registry.register(
            "downstream_connections_refused",
            "Connections closed right after they were accepted, by reason",
            self.connections_refused.clone(),
        );
        registry.register(
            "downstream_accept_failures",
            "Failures of accept(2) that the peer did not cause",
            self.accept_failures.clone(),
        );
    }

    /// Counts a connection that was closed for `reason`.
    pub fn count_refusal(&self, reason: AcceptRefusal) {
        self.connections_refused.get_or_create(&RefusedLabels { reason }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_connections_are_encoded_with_their_reason() {
        let metrics = ListenerMetrics::default();
        metrics.count_refusal(AcceptRefusal::ClientRate);
        let mut registry = Registry::with_prefix("loopgate");
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("loopgate_downstream_connections_refused_total{reason=\"client_rate\"} 1"), "{text}");
    }
}

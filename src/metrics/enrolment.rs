//! What the enrolment of agents counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::traffic::ReasonLabels;

/// What became of attempts to enrol.
#[derive(Clone, Debug, Default)]
pub struct Enrolments {
    /// Certificates signed.
    pub issued: Counter,
    /// Attempts that got none.
    pub refused: Family<ReasonLabels, Counter>,
}

impl Enrolments {
    /// Adds these metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("enrolments", "Certificates signed for attested agents", self.issued.clone());
        registry.register(
            "enrolments_refused",
            "Attempts to enrol that got no certificate, by reason",
            self.refused.clone(),
        );
    }
}

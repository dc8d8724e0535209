//! The metrics of enrolment.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::traffic::ReasonLabels;

/// The metrics of the `enrolment` module.
#[derive(Clone, Debug, Default)]
pub struct EnrolmentMetrics {
    /// The number of certificates signed for attested agents.
    pub certificates_issued: Counter,
    /// The number of attempts to enrol that got no certificate, by reason.
    pub attempts_refused: Family<ReasonLabels, Counter>,
}

impl EnrolmentMetrics {
    /// Adds these metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("enrolments", "Certificates signed for attested agents", self.certificates_issued.clone());
        registry.register(
            "enrolments_refused",
            "Attempts to enrol that got no certificate, by reason",
            self.attempts_refused.clone(),
        );
    }
}

//! Stories of a real Kubernetes API server on which Helm has installed charts/loopgate: the real
//! binary runs by the chart's variables, with the token of the chart's service account. `tests/run
//! kubernetes` brings what they need; without it they are skipped, aloud.

mod chart_release;
mod cluster;
mod enrolment;
mod pods;

mod agents;
mod chart;
mod rights;
mod upheaval;

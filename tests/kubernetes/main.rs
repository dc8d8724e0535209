//! Tests with a real Kubernetes API server on which Helm has installed charts/loopgate. The real
//! binary runs with the variables of the chart's container and with the token of the chart's
//! service account. `tests/run kubernetes` installs what the tests need. Without it they print
//! "NOT RUN" and pass.

mod chart_release;
mod cluster;
mod enrolment;
mod pods;

mod agents;
mod chart;
mod rights;
mod upheaval;

//! What an operator sees of a sidecar that runs, and of one that should: `status`, the page, `/metrics`, `check`, the documentation.

mod check;
mod desk;
#[expect(dead_code, reason = "other stories use the rest of it")]
#[path = "../support/fake_docker.rs"]
mod fake_docker;
#[expect(dead_code, reason = "other stories use the rest of it")]
#[path = "../support/fake_kubernetes.rs"]
mod fake_kubernetes;
mod kubernetes;
mod metrics;
mod reference;
mod sidecar;
mod trace;

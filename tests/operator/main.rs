//! What an operator sees of a sidecar that runs: `status`, the page, `/metrics`.

mod desk;
mod metrics;
mod reference;
mod sidecar;

//! What an operator sees of a sidecar that runs, and of one that should: `status`, the page,
//! `/metrics`, `check`, the documentation.

mod admin;
mod audit;
mod check;
mod harness;
mod kubernetes;
mod metrics;
mod reference;
mod reload;
mod trace;

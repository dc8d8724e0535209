//! What loopgate shows an operator: `status`, the page, `/metrics`, `check`, the audit log, and the
//! documentation.

mod admin;
mod audit;
mod check;
mod harness;
mod kubernetes;
mod metrics;
mod reference;
mod reload;
mod trace;

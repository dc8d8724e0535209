//! loopgate: a TLS sidecar for a gateway that must stay on loopback.
//!
//! `docs/architecture.md` has a map: the layers of these modules (a module imports only from lower
//! ones, which `tests/layers.rs` enforces), the phases of a connection, and where each decision is
//! made. A connection begins in [`listener`], and `proxy/connection/establish.rs` takes it through
//! its phases.

pub mod addr;
pub mod admin;
pub mod agent;
pub mod agent_id;
pub mod app;
pub mod audit;
pub mod backoff;
pub mod check;
pub mod cli;
pub mod compose;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod enrolment;
pub mod enrolment_protocol;
pub mod error_chain;
pub mod fingerprint;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod html_page;
pub mod http_client;
pub mod labels;
pub mod lane;
pub mod listener;
pub mod metrics;
pub mod openclaw;
#[cfg(feature = "otel")]
pub mod otel;
pub mod pki;
pub mod proxy;
pub mod secret;
pub mod shutdown;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod token_bucket;
pub mod trace;
pub mod workers;

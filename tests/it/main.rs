//! The running sidecar, mostly in this process, between raw clients and a gateway that records what
//! it receives.

mod harness;

mod certificates;
mod churn;
mod client_chains;
mod drain;
mod expiry;
mod faults;
mod floods;
mod forward;
mod h2_abuse;
mod h2_trailers;
mod interims;
mod kubernetes;
mod lanes;
mod listeners;
#[cfg(feature = "otel")]
mod otel;
mod passthrough;
mod plain;
mod progress;
mod reload;
mod request_ends;
mod revocation;
mod sandbox;
mod serve_ca;
mod slow;
mod streaming;
mod strict;
mod trace;
mod user_certificates;
mod websocket;

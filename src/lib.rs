//! loopgate: a TLS sidecar for a gateway that must stay on loopback.
//!
//! # Phases of a connection
//!
//! 1. **Accepted** ([`listener`], main thread): a client connected to an address of this network
//!    namespace and took a connection slot within the limits. Nothing was read.
//! 2. **Admitted** ([`lane`], on one of the [`workers`] from here on): the allow and deny lists
//!    permit its peer, or do not apply to it: trusted proxies and possible agents.
//! 3. **Identified** ([`listener`]): a trusted proxy's PROXY header was read, if it may send one.
//! 4. **Handshaken** ([`tls`]): TLS is up, and the client's certificate was verified.
//! 5. **Assigned** ([`lane`]): the lane follows from what a client can't forge: its address, its
//!    certificate and the latest [`discovery::View`].
//! 6. **Registered** ([`proxy`]): when one of these changes, the decision is made again.
//!
//! After these come requests ([`lane`], [`proxy`]): each head becomes a [`lane::GatewayHead`]. A
//! request that a web page caused on an agent's connection goes out on the external lane. The request
//! leaves from the loopback source address of its lane. After a `101`, bytes are copied in both
//! directions.
//!
//! # Layers
//!
//! A module imports only from lower layers. The table is in `docs/architecture.md`, and `tests/layers.rs` enforces it.

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

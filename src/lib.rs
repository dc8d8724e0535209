//! loopgate: a TLS sidecar for a gateway that must stay on loopback.
//!
//! # Phases of a connection
//!
//! 1. **Accept** ([`listener`], main thread): a client connects to an address of this network
//!    namespace and takes a connection slot.
//! 2. **Admit** ([`listener`]): the allow and deny lists and the limits by address. A refused
//!    connection is closed without a byte.
//! 3. **PROXY header** ([`listener`], [`proxy`], on one of the [`workers`] from here on): read only
//!    from a trusted proxy.
//! 4. **Handshake** ([`tls`]).
//! 5. **Decide** ([`lane`]): the lane follows from what a client can't forge: its address, its
//!    certificate and the latest [`discovery::View`]. When one of these changes, the decision is
//!    made again for every open connection.
//! 6. **Serve** ([`proxy`]): HTTP/1.1 or HTTP/2.
//! 7. **Request** ([`lane`], [`proxy`]): the head becomes a [`lane::GatewayHead`], which can hold
//!    only what its lane may state. A request that a web page caused on an agent's connection goes
//!    out on the external lane.
//! 8. **Upstream or tunnel** ([`proxy`]): the request leaves from the loopback source address of
//!    its lane. After a `101`, bytes are copied in both directions.
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

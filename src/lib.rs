//! loopgate: a TLS sidecar for a gateway that must stay on loopback.
//!
//! # The life of a connection
//!
//! A client connects to one of the [`listener`]'s doors. It is counted and, if the allow and deny lists refuse it, closed before a byte
//! is exchanged. After the TLS handshake ([`tls`]) [`lane::decide()`] puts it on exactly one lane, from what it can't forge: its address,
//! its certificate, and the latest [`discovery::View`] of who is who. [`proxy`] then serves HTTP on it. Each request's head becomes a
//! [`lane::GatewayHead`], which holds what that lane may say to the gateway, and leaves over a connection whose loopback source
//! address is the lane's own. After a `101` the two sides are joined byte by byte. From the handshake on all of this happens on one thread,
//! one of the [`workers`]; the main thread accepts, and keeps house.
//!
//! # Floors
//!
//! A room uses rooms on lower floors only.
//!
//! ```text
//! voice      cli demo
//! house      app check
//! front desk admin
//! traffic    proxy enrolment agent
//! doors      listener tls
//! judgement  lane
//! sources    discovery pki
//! tools      backoff config exchange shutdown metrics otel token_bucket workers
//! words      addr agent_id attest causes fingerprint labels secret trace
//! ```

pub mod addr;
pub mod admin;
pub mod agent;
pub mod agent_id;
pub mod app;
pub mod attest;
pub mod backoff;
pub mod check;
pub mod cli;
pub mod compose;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod enrolment;
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

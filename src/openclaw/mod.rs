//! The one place that knows the OpenClaw gateway: its files, its device identities, its WebSocket
//! handshake, and what its answers mean.
//!
//! OpenClaw changes between versions. Everything here names the version on which it was measured;
//! `check` and `app` use the results and do not interpret an answer of the gateway themselves.

pub mod approve;
pub mod connect;
pub mod connect_request;
pub mod device;
pub mod devices;
pub mod files;
pub mod keep_paired;
pub mod pair;
pub mod probe;
pub mod ready;
mod server_certificate;
pub mod tls_detector;
pub mod unpair;
mod websocket;

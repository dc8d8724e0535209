//! What is specific to the OpenClaw gateway: its files, its device identities, its WebSocket
//! handshake, and the meaning of its responses.
//!
//! OpenClaw changes between versions, so comments here name the version with which a behaviour was
//! observed. `check` and `app` use the results of this module, and do not interpret the gateway's
//! responses themselves.

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

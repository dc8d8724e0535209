//! What the tests of loopgate share: stand-ins for everything around a sidecar, a launcher for the
//! binary, and clients.

pub mod agent_process;
pub mod backend;
pub mod content;
pub mod device_client;
pub mod fake_docker;
pub mod fake_gateway;
pub mod fake_kubernetes;
pub mod flood;
pub mod handshakes;
pub mod hostile_chain;
pub mod lanes;
pub mod latency;
pub mod namespace;
pub mod network;
pub mod process;
pub mod raw_h2;
pub mod raw_http;
pub mod requirements;
pub mod sidecar;
pub mod tasks;
pub mod tls_client;
pub mod websocket;

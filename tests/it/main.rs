//! Stories about the running sidecar: the real one, in this process, between raw clients and a gateway that remembers what it heard.

mod agent;
mod apart;
#[path = "../support/fake_docker.rs"]
#[expect(dead_code, reason = "other stories' needs")]
mod fake_docker;
#[path = "../support/fake_kubernetes.rs"]
#[expect(dead_code, reason = "other stories' needs")]
mod fake_kubernetes;
mod gateway;
mod house;
mod process;
mod raw_h2;
mod seen;
mod wire;

mod certificates;
mod churn;
mod doors;
mod drain;
mod faults;
mod h2_abuse;
mod kubernetes;
mod lanes;
#[cfg(feature = "otel")]
mod otel;
mod reload;
mod slow;
mod streaming;
mod strict;
mod trace;
mod websocket;

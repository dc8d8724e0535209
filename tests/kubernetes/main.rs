//! Stories of a real Kubernetes API server on which Helm has installed charts/loopgate: the real binary runs by the chart's variables,
//! with the token of the chart's service account. `tests/run kubernetes` brings what they need; without it they are skipped, aloud.

#[path = "../it/agent.rs"]
mod agent;
#[path = "../it/apart.rs"]
mod apart;
#[path = "../it/gateway.rs"]
#[expect(dead_code, reason = "other stories' needs")]
mod gateway;
#[path = "../it/house.rs"]
#[expect(dead_code, reason = "other stories' needs")]
mod house;
#[path = "../it/process.rs"]
#[expect(dead_code, reason = "other stories' needs")]
mod process;
#[path = "../it/seen.rs"]
mod seen;
#[path = "../it/wire.rs"]
mod wire;

mod claw;
mod cluster;
mod pods;

mod agents;
mod chart;
mod rights;
mod upheaval;

//! `loopgate run` on the gateway's host.

use std::path::Path;

use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::sidecar::{Launch, Sidecar, binary};

/// The sidecar's URL for clients on the bridge.
pub const URL: &str = "https://172.18.0.2:18789";
/// The sidecar's URL for WebSockets.
pub const WS_URL: &str = "wss://172.18.0.2:18789";

/// Starts a sidecar and waits until it is ready. [`Host::Agent`] is its only agent.
pub fn start(network: &Network, directory: &Path, flags: &[&str]) -> Sidecar {
    let agents = format!("--agent-cidr={}/32", Host::Agent.address());
    start_without_agents(network, directory, &[&[agents.as_str()], flags].concat())
}

/// Starts a sidecar whose only agents are those of `flags`, and waits until it is ready.
pub fn start_without_agents(network: &Network, directory: &Path, flags: &[&str]) -> Sidecar {
    let wrapper = network.command_wrapper(Host::Gateway, binary());
    let always = ["--listen=bridge:18789", "--admin=127.0.0.1:9180", "--access-log"];
    Launch::new().with_wrapper(wrapper).directory(&directory.join("loopgate")).flags(&always).flags(flags).start()
}

//! `loopgate run` on the gateway's host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::network::{Host, Network};
use crate::process::Process;

/// Where clients on the bridge find it.
pub const URL: &str = "https://172.18.0.2:18789";
/// The same, for WebSockets.
pub const WS_URL: &str = "wss://172.18.0.2:18789";

/// A running sidecar; [`Host::Agent`] is its only agent.
pub struct Sidecar {
    process: Process,
    state: PathBuf,
}

impl Sidecar {
    /// Starts it before a gateway that runs, and comes back when it is ready.
    pub fn start(network: &Network, directory: &Path, flags: &[&str]) -> Self {
        let state = directory.join("loopgate");
        fs::create_dir_all(&state).expect("a state directory");
        let mut command = network.command(Host::Gateway, env!("CARGO_BIN_EXE_loopgate"));
        command.args(["run", "--docker", "off", "--listen", "bridge:18789", "--access-log", "--agent-cidr"]);
        command.arg(format!("{}/32", Host::Agent.address())).arg("--state-dir").arg(&state).args(flags);
        let mut process = Process::start("loopgate", command, &state.with_extension("log"));
        process.wait_until("ready", Duration::from_secs(30), || {
            let mut curl = network.command(Host::Gateway, "curl");
            succeeds(curl.args(["--fail", "--silent", "--max-time", "2", "http://127.0.0.1:9180/readyz"]))
        });
        Self { process, state }
    }

    /// The certificate of its authority.
    pub fn ca(&self) -> PathBuf {
        self.state.join("ca.pem")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it as Docker would; it must come to a clean end.
    pub fn stop(mut self) {
        let status = self.process.stop(Duration::from_secs(15));
        assert!(status.success(), "loopgate ended with {status} on SIGTERM");
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

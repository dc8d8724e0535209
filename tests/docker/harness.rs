//! A gateway, a sidecar in its network namespace and the filter before the engine's socket, for stories about lanes.
//!
//! The gateway is a stand-in that tells what it sees of a client: the address it comes from, and what is said of it.

use std::path::Path;

use crate::container::{Container, Running};
use crate::engine::{Engine, Network, Volume, eventually};
use crate::filter::filter;

/// Answers with the source address and the client address that was stated; `/hold` stays open as
/// long as a request's body does.
const GATEWAY: &str = "printf 'defaults\\n mode http\\n timeout client 600s\\n timeout connect 5s\\n timeout server \
                       600s\\nfrontend gateway\\n bind 127.0.0.1:18789\\n http-request wait-for-body time 600s if \
                       { path /hold }\\nhttp-request return content-type text/plain lf-string \"%%[src] \
                       %%[req.hdr(x-forwarded-for)]\"\\n' >/tmp/cfg; exec haproxy -db -f /tmp/cfg";
/// The compose project of the gateway.
pub const PROJECT: &str = "p";

/// Fields end in this order.
pub struct Deployment<'a> {
    /// loopgate.
    pub sidecar: Running,
    /// The stand-in, who owns the network namespace.
    pub gateway: Running,
    /// Who stands before the engine's socket.
    pub filter: Running,
    /// The sidecar's state directory.
    pub state: Volume,
    /// Where the gateway is called `gateway`.
    pub network: Network,
    _socket: tempfile::TempDir,
    /// Where all of this is.
    pub engine: &'a Engine,
}

impl<'a> Deployment<'a> {
    /// The usual deployment.
    pub fn start(engine: &'a Engine) -> Self {
        Self::with(engine, &[], |gateway| gateway)
    }

    /// One with further flags of `loopgate run`, and a changed container of the gateway.
    pub fn with(engine: &'a Engine, flags: &[&str], change: impl FnOnce(Container) -> Container) -> Self {
        Self::of(engine, flags, change(Container::new("gateway").command(["sh", "-c", GATEWAY])))
    }

    /// One with another gateway, such as the real one.
    pub fn of(engine: &'a Engine, flags: &[&str], gateway: Container) -> Self {
        let socket = tempfile::tempdir().unwrap();
        let filter = filter(engine, socket.path());
        let (network, state) = (engine.network(), engine.volume());
        let gateway = engine.run(gateway.network(&network).alias("gateway").of_project(PROJECT, "gateway"));
        let sidecar = engine.run(sidecar(&gateway, socket.path(), &state, flags));
        let deployment = Self { sidecar, gateway, filter, state, network, _socket: socket, engine };
        deployment.is_ready();
        deployment
    }

    /// Waits until the sidecar serves.
    pub fn is_ready(&self) {
        eventually("the sidecar is ready", || {
            self.sidecar.try_exec(["/loopgate", "healthcheck"]).status.success().then_some(())
        });
    }

    /// A container that can connect to the gateway.
    pub fn client(&self, name: &str) -> Container {
        self.equipped(Container::idle(name))
    }

    /// One that is an agent by its address.
    pub fn agent(&self, name: &str) -> Container {
        self.client(name).label("loopgate.agent", "address").of_project(PROJECT, name)
    }

    /// One that is an agent if it proves it. Without a command of its own it does nothing.
    pub fn attested(&self, name: &str) -> Container {
        self.client(name).with_loopgate().label("loopgate.agent", "true").of_project(PROJECT, name)
    }

    /// One in which `loopgate` runs with these arguments, such as `agent`, and proves that it is an agent.
    pub fn attested_loopgate<const N: usize>(&self, name: &str, arguments: [&str; N]) -> Container {
        let container = self.equipped(Container::loopgate(name, arguments)).hardened().option("--user=10001:10001");
        container.label("loopgate.agent", "true").of_project(PROJECT, name)
    }

    fn equipped(&self, container: Container) -> Container {
        container.network(&self.network).mount(self.state.name(), "/state").env("LOOPGATE_CA", "/state/ca.pem")
    }

    /// Waits until discovery knows this many addresses of agents.
    pub fn knows(&self, agents: usize) {
        self.counts(&format!("loopgate_discovery_agent_addresses {agents}"));
    }

    /// Makes `client` hold this many connections open, with a request on each.
    pub fn holds(&self, client: &Running, connections: usize) {
        self.holds_to(client, connections, "--cacert /state/ca.pem https://gateway:18443/hold");
    }

    /// The same where curl's arguments say which connections.
    pub fn holds_to(&self, client: &Running, connections: usize, arguments: &str) {
        let hold = format!("sleep 600 | curl --silent --upload-file - {arguments} >/dev/null 2>&1 &");
        client.exec(["sh", "-c", &format!("for _ in $(seq {connections}); do {hold} done")]);
        self.counts(&format!("loopgate_downstream_connections_open {connections}"));
    }

    /// Waits until the metrics have this line.
    pub fn counts(&self, line: &str) {
        eventually(line, || self.metrics().lines().any(|other| other == line).then_some(()));
    }

    /// The sidecar's metrics.
    pub fn metrics(&self) -> String {
        self.gateway.exec(["curl", "--silent", "http://127.0.0.1:9180/metrics"])
    }
}

fn sidecar(gateway: &Running, socket: &Path, state: &Volume, flags: &[&str]) -> Container {
    let arguments = ["run", "--docker", "unix:///run/docker-filter/docker.sock", "--request-timeout", "600s"];
    Container::loopgate("sidecar", [])
        .command(arguments.iter().chain(flags).copied())
        .inside(gateway)
        .hardened()
        .option("--restart=always")
        .mount(socket, "/run/docker-filter")
        .mount_writable(state.name(), "/var/lib/loopgate")
}

/// What the gateway sees when `client` asks it, by this name.
pub fn seen_by(client: &Running, name: &str) -> String {
    client.exec(["curl", "--silent", "--show-error", "--cacert", "/state/ca.pem", &format!("https://{name}:18443/")])
}

/// Says whether what the gateway saw was an agent.
pub fn is_agent(seen: &str) -> bool {
    // Nothing is stated of an agent, and what haproxy has no value for it leaves empty.
    seen.starts_with("127.77.") && !seen.trim_end().contains(' ')
}

/// Says whether it was this client from outside.
pub fn is_external(seen: &str, client: impl ToString) -> bool {
    seen == format!("127.0.0.2 {}", client.to_string())
}

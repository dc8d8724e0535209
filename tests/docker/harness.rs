//! A gateway, a sidecar in its network namespace, and a socket filter before the engine, for tests
//! of lanes.
//!
//! The gateway is an HAProxy that returns a client's source address and the address in its
//! X-Forwarded-For.

use std::path::Path;

use crate::container::{Container, Running};
use crate::engine::{Engine, Network, Volume, eventually};
use crate::filter::filter;

/// The gateway's command. It responds with the source address and X-Forwarded-For; `/hold` responds
/// only after the end of the request's body.
const GATEWAY: &str = "printf 'defaults\\n mode http\\n timeout client 600s\\n timeout connect 5s\\n timeout server \
                       600s\\nfrontend gateway\\n bind 127.0.0.1:18789\\n http-request wait-for-body time 600s if \
                       { path /hold }\\nhttp-request return content-type text/plain lf-string \"%%[src] \
                       %%[req.hdr(x-forwarded-for)]\"\\n' >/tmp/cfg; exec haproxy -db -f /tmp/cfg";
/// The compose project of the gateway.
pub const PROJECT: &str = "p";

/// A running deployment. The order of the fields is the order in which they are dropped.
pub struct Deployment<'a> {
    /// The sidecar's container.
    pub sidecar: Running,
    /// The gateway's container, which owns the network namespace.
    pub gateway: Running,
    /// The container of the socket filter.
    pub filter: Running,
    /// The volume with the sidecar's state directory.
    pub state: Volume,
    /// The network on which the gateway has the alias `gateway`.
    pub network: Network,
    _socket: tempfile::TempDir,
    /// The engine of this test.
    pub engine: &'a Engine,
}

impl<'a> Deployment<'a> {
    /// Starts a deployment with the default flags, and waits until it is ready.
    pub fn start(engine: &'a Engine) -> Self {
        Self::start_with(engine, &[], |gateway| gateway)
    }

    /// Does the same with additional flags of `loopgate run`; `change` may change the gateway's
    /// container.
    pub fn start_with(engine: &'a Engine, flags: &[&str], change: impl FnOnce(Container) -> Container) -> Self {
        Self::with_gateway(engine, flags, change(Container::new("gateway").command(["sh", "-c", GATEWAY])))
    }

    /// Does the same with another gateway, such as the real one.
    pub fn with_gateway(engine: &'a Engine, flags: &[&str], gateway: Container) -> Self {
        let socket = tempfile::tempdir().unwrap();
        let filter = filter(engine, socket.path());
        let (network, state) = (engine.network(), engine.volume());
        let gateway = engine.run(gateway.network(&network).alias("gateway").of_project(PROJECT, "gateway"));
        let sidecar = engine.run(sidecar(&gateway, socket.path(), &state, flags));
        let deployment = Self { sidecar, gateway, filter, state, network, _socket: socket, engine };
        deployment.wait_until_ready();
        deployment
    }

    /// Waits until the sidecar is ready.
    pub fn wait_until_ready(&self) {
        eventually("the sidecar is ready", || {
            self.sidecar.try_exec(["/loopgate", "healthcheck"]).status.success().then_some(())
        });
    }

    /// A container on the gateway's network with loopgate's CA.
    pub fn client(&self, name: &str) -> Container {
        self.with_network_and_ca(Container::idle(name))
    }

    /// A container that is an agent by its address.
    pub fn agent(&self, name: &str) -> Container {
        self.client(name).label("loopgate.agent", "address").of_project(PROJECT, name)
    }

    /// An idle container that may enrol as an agent.
    pub fn attested(&self, name: &str) -> Container {
        self.client(name).with_loopgate().label("loopgate.agent", "true").of_project(PROJECT, name)
    }

    /// A container in which `loopgate` runs with these arguments, such as `agent`, and enrols.
    pub fn attested_loopgate<const N: usize>(&self, name: &str, arguments: [&str; N]) -> Container {
        let container =
            self.with_network_and_ca(Container::loopgate(name, arguments)).hardened().option("--user=10001:10001");
        container.label("loopgate.agent", "true").of_project(PROJECT, name)
    }

    /// Adds the gateway's network and loopgate's CA.
    fn with_network_and_ca(&self, container: Container) -> Container {
        container.network(&self.network).mount(self.state.name(), "/state").env("LOOPGATE_CA", "/state/ca.pem")
    }

    /// Waits until discovery has found this number of agents' addresses.
    pub fn wait_for_agents(&self, agents: usize) {
        self.wait_for_metric(&format!("loopgate_discovery_agent_addresses {agents}"));
    }

    /// Makes `client` keep this number of connections open, each with an unfinished request.
    pub fn hold_connections(&self, client: &Running, connections: usize) {
        self.hold_connections_with(client, connections, "--cacert /state/ca.pem https://gateway:18443/hold");
    }

    /// Does the same with connections according to curl's `arguments`.
    pub fn hold_connections_with(&self, client: &Running, connections: usize, arguments: &str) {
        let hold = format!("sleep 600 | curl --silent --upload-file - {arguments} >/dev/null 2>&1 &");
        client.exec(["sh", "-c", &format!("for _ in $(seq {connections}); do {hold} done")]);
        self.wait_for_metric(&format!("loopgate_downstream_connections_open {connections}"));
    }

    /// Waits until the metrics have this line.
    pub fn wait_for_metric(&self, line: &str) {
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
        .in_namespace_of(gateway)
        .hardened()
        .option("--restart=always")
        .mount(socket, "/run/docker-filter")
        .mount_writable(state.name(), "/var/lib/loopgate")
}

/// Sends a request from `client` to the gateway by this name; returns the gateway's response.
pub fn request_gateway(client: &Running, name: &str) -> String {
    client.exec(["curl", "--silent", "--show-error", "--cacert", "/state/ca.pem", &format!("https://{name}:18443/")])
}

/// Returns whether the gateway's response is that to an agent.
pub fn is_agent(response: &str) -> bool {
    // An agent's request has no X-Forwarded-For, so nothing follows the source address.
    response.starts_with("127.77.") && !response.trim_end().contains(' ')
}

/// Returns whether the gateway's response is that to an external client with this address.
pub fn is_external(response: &str, client: impl ToString) -> bool {
    response == format!("127.0.0.2 {}", client.to_string())
}

//! A container with a scope cap, and what its device may do: on both lanes, from other addresses,
//! and after the container was removed. The engine is a fake, the gateway is real.

use std::path::Path;

use serde_json::json;
use tokio::runtime::Runtime;

use crate::gateway::{LOOPBACK, OpenClaw, TOKEN};
use crate::openclaw::directory;
use crate::sidecar::{self, URL, WS_URL};
use loopgate_test_support::device_client::DeviceClient;
use loopgate_test_support::fake_docker::{FakeDocker, container};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::requirements::{Missing, print_now, run_exclusively};
use loopgate_test_support::sidecar::{Sidecar, loopgate};

/// The name and id of the agent's container.
pub const CONTAINER: &str = "capped-agent";
/// A header that marks a request as caused by a web page, so that it gets the external lane.
const PAGE: (&str, &str) = ("Sec-Fetch-Site", "none");
/// Headers that a client could send to get another cap or none.
const HEADERS: &[&[(&str, &str)]] = &[
    &[],
    &[PAGE],
    &[("X-OpenClaw-Scopes", "operator.admin")],
    &[("x-openclaw-scopes", "operator.admin"), PAGE],
    &[("X_OpenClaw_Scopes", "operator.admin"), PAGE],
    &[("X-Forwarded-For", "127.0.0.1"), PAGE],
    &[("Connection", "Upgrade, X-OpenClaw-Scopes")],
    &[("Origin", "https://172.18.0.2:18789")],
];

#[test]
fn an_agents_scope_cap_holds_everywhere_on_openclaw_2026_2_19() {
    run_exclusively("real", "a capped agent, OpenClaw 2026.2.19", || check_scope_cap("2026.2.19"));
}

#[test]
fn an_agents_scope_cap_holds_everywhere_on_openclaw_2026_9_6() {
    run_exclusively("real", "a capped agent, OpenClaw 2026.9.6", || check_scope_cap("2026.9.6"));
}

/// A fake engine with two containers: the gateway's, and an agent's that is trusted by its address.
pub struct Engine {
    runtime: Runtime,
    docker: FakeDocker,
}

impl Engine {
    /// Starts the engine; `scopes` is the agent's cap.
    pub fn start(scopes: Option<&str>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let engine = Self { docker: runtime.block_on(async { FakeDocker::start() }), runtime };
        engine.docker.add_silently(container("gateway", json!({}), &[("front", Host::Gateway.address())]));
        engine.start_agent(scopes);
        engine
    }

    /// Starts the agent's container, with the cap `scopes`.
    pub fn start_agent(&self, scopes: Option<&str>) {
        let mut labels = json!({"loopgate.agent": "address"});
        if let Some(scopes) = scopes {
            labels["loopgate.scopes"] = scopes.into();
        }
        self.docker.set_inspection(CONTAINER, json!({"Id": CONTAINER}));
        self.docker.run_container(container(CONTAINER, labels, &[("front", Host::Agent.address())]));
    }

    /// Stops the agent's container, which continues to exist.
    pub fn stop_agent(&self) {
        self.docker.stop_container(CONTAINER);
    }

    /// Removes the agent's container.
    pub fn remove_agent(&self) {
        self.docker.remove_container(CONTAINER);
    }

    /// The flag for a sidecar that uses this engine.
    pub fn docker_flag(&self) -> String {
        format!("--docker=unix://{}", self.docker.socket().display())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.runtime.block_on(self.docker.stop_engine(false));
    }
}

fn check_scope_cap(version: &'static str) -> Result<(), Missing> {
    let directory = directory(&format!("capped-{version}"));
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, version, &directory)?;
    let _gateway = openclaw.start(&["127.0.0.2"]);
    let engine = Engine::start(Some("operator.read"));
    let sidecar = sidecar::start_without_agents(&network, &directory, &[&engine.docker_flag()]);
    let ca = sidecar.ca_file();
    let through = |host| openclaw.client(host, WS_URL).ca(&ca);
    let device = directory.join("device.json");

    print_now("  it may not ask for more than its cap, on any lane");
    for headers in HEADERS {
        print_now(format_args!("    {headers:?}"));
        let refusal = through(Host::Agent).headers(headers).connect().refused_by_loopgate();
        assert!(refusal.contains("exceeds this client's scope cap (operator.read)"), "{refusal}");
        // For a client without a device, the gateway takes the scopes from the header.
        let backend = through(Host::Agent).headers(headers).without_device().claiming_to_be_the_backend();
        backend.call("config.set").connect().may_not_call();
    }
    print_now("  with scopes within its cap it may call no method beyond them");
    let within = |headers: &[(&str, &str)]| through(Host::Agent).headers(headers).asking_for(&["operator.read"]);
    for headers in HEADERS {
        for method in ["config.set", "config.patch", "device.pair.list", "exec.approvals.get"] {
            within(headers).call(method).connect().may_not_call();
        }
    }
    for headers in [[].as_slice(), &["sec-fetch-site: none"]] {
        http_is_refused(&network, &ca, headers);
    }

    print_now(
        "  its device is paired for the cap, and refused from other addresses, with its own token or the gateway's",
    );
    let token = within(&[]).identity(&device).connect().device_token();
    let assert_bound_elsewhere = |token: &str| {
        for headers in [[].as_slice(), &[PAGE]] {
            let client = |host| through(host).identity(&device).headers(headers).token(token);
            assert_bound(client(Host::External));
            assert_bound(client(Host::External).asking_for(&["operator.read"]));
            assert_bound(client(Host::External).over_h2().asking_for(&["operator.read"]));
            assert_bound(client(Host::Gateway).asking_for(&["operator.read"]));
        }
    };
    assert_bound_elsewhere(&token);
    assert_bound_elsewhere(TOKEN);
    // A web page in the device's own container.
    assert_bound(within(&[PAGE]).identity(&device).token(&token));
    print_now("  on the agent lane its token is still accepted");
    assert_eq!(within(&[]).identity(&device).token(&token).connect().scopes(), ["operator.read"]);

    print_now(
        "  the container is stopped and removed: its device is refused from everywhere, its own address included",
    );
    engine.stop_agent();
    engine.remove_agent();
    wait_until_external(&through);
    assert_bound_elsewhere(&token);
    assert_bound(through(Host::Agent).identity(&device).token(&token).asking_for(&["operator.read"]));
    print_now("  the gateway itself would take it");
    let local = openclaw.client(Host::Gateway, LOOPBACK).identity(&device).token(&token);
    local.asking_for(&["operator.read"]).connect().scopes();

    print_now("  `loopgate devices release` frees it, with the scopes that it was paired for");
    release_device(&sidecar, &id_of(&device));
    let released =
        |scopes: &[&str]| through(Host::External).identity(&device).token(&token).asking_for(scopes).connect();
    assert_eq!(released(&["operator.read"]).scopes(), ["operator.read"]);
    released(&["operator.admin"]).not_accepted();

    print_now("  a container whose cap lacks operator.read may not call config.get");
    engine.start_agent(Some("operator.approvals"));
    wait_until(|| through(Host::Agent).asking_for(&["operator.approvals"]).connect().is_accepted());
    for headers in HEADERS {
        through(Host::Agent).headers(headers).call("config.get").connect().refused_by_loopgate();
        let within = through(Host::Agent).headers(headers).asking_for(&["operator.approvals"]);
        within.call("config.get").connect().may_not_call();
    }
    sidecar.stop();
    Ok(())
}

/// The HTTP API gives a client with the token every right, so a container with a cap may not use
/// it.
fn http_is_refused(network: &Network, ca: &Path, headers: &[&str]) {
    for path in ["/tools/invoke", "/v1/chat/completions", "/v1/responses", "/api/x", "/sessions/x"] {
        let mut curl = network.command(Host::Agent, "curl");
        curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert"]).arg(ca);
        // The request has no body, for the reason given in `http_requests_pass`.
        curl.args(["--header", &format!("authorization: Bearer {TOKEN}"), "--request", "POST"]);
        for header in headers {
            curl.args(["--header", header]);
        }
        let output = curl.arg(format!("{URL}{path}")).output().expect("curl");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "403", "{path} {headers:?}");
    }
}

/// Fails unless loopgate refuses the client because its device is bound to the container.
#[track_caller]
pub fn assert_bound(client: DeviceClient) {
    let refusal = client.connect().refused_by_loopgate();
    assert!(refusal.contains(CONTAINER) && refusal.contains("loopgate devices release "), "{refusal}");
}

/// The id of the device in the file `device`.
pub fn id_of(device: &Path) -> String {
    let text = std::fs::read_to_string(device).expect("a device");
    let device: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    device["deviceId"].as_str().expect("an id").to_owned()
}

/// Releases a device with `loopgate devices release`.
pub fn release_device(sidecar: &Sidecar, device: &str) {
    let mut command = loopgate(["devices", "release", device]);
    let output = command.arg("--state-dir").arg(sidecar.state_dir()).output().expect("loopgate");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until a client with the agent's address is no longer an agent.
pub fn wait_until_external(through: &dyn Fn(Host) -> DeviceClient) {
    wait_until(|| !through(Host::Agent).asking_for(&["operator.read"]).connect().is_accepted());
}

/// Waits until `condition` holds.
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < std::time::Duration::from_secs(30), "not within 30 s");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

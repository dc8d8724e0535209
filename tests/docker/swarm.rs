//! docker/stack.yaml with the real gateway, on a swarm of one node. `tests/run swarm` runs this on
//! the engine of the other tests, `tests/run engines` on the newest engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use loopgate_test_support::device_client::{self, DeviceClient, End};

use crate::container::{Container, Running};
use crate::engine::{DEBIAN, docker, eventually, output, try_docker};
use crate::openclaw;

const STACK: &str = "loopgate-test-swarm";
const IMAGE: &str = "loopgate-test/claw";
const FILES: [&str; 3] = ["stack.yaml", "stack.agent.yaml", "../tests/docker/stack.openclaw.yaml"];
/// The beginning of addresses on the stack's overlay network, as stack.yaml sets it.
const SUBNET: &str = "10.77.0.";

/// The network that `docker swarm init` adds to an engine, and `docker swarm leave` does not
/// remove.
const BRIDGE: &str = "docker_gwbridge";

/// A swarm with a stack. Dropping it removes both, with the stack's volumes, configs and secret.
struct Stack {
    had_bridge: bool,
}

impl Stack {
    /// Makes the engine a swarm of one node.
    fn start() -> Self {
        let had_bridge = try_docker(&["network", "inspect", BRIDGE]).is_ok();
        docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]);
        Self { had_bridge }
    }

    /// Deploys the stack of these files.
    fn deploy(files: &[&str]) {
        let mut command = Command::new("docker");
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docker")).args([
            "stack",
            "deploy",
            "--resolve-image",
            "never",
            "--detach=true",
        ]);
        for file in files {
            command.args(["--compose-file", file]);
        }
        let tree = openclaw::install_dir(openclaw::NEW).expect("OpenClaw");
        command
            .arg(STACK)
            .env("AGENT_IMAGE", IMAGE)
            .env("HAPROXY_IMAGE", DEBIAN)
            .env("OPENCLAW_TREE", tree)
            .env("CLIENT", device_client::SCRIPT);
        let deployed = output(&mut command).expect("docker can be run");
        assert!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
    }

    /// The container of a service's running task.
    fn service(name: &str) -> Running {
        let label = format!("label=com.docker.swarm.service.name={STACK}_{name}");
        let id = eventually(&format!("{name} runs"), || {
            let ids = docker(&["ps", "--quiet", "--no-trunc", "--filter", &label, "--filter", "status=running"]);
            ids.lines().next().map(str::to_owned)
        });
        Running::of_project(docker(&["inspect", "--format", "{{slice .Name 1}}", &id]), id)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for service in ["gateway", "socket-filter", "agent"] {
                let service = format!("{STACK}_{service}");
                eprintln!(
                    "--- {}\n{:?}",
                    try_docker(&["service", "ps", "--no-trunc", &service]).unwrap_or_default(),
                    try_docker(&["service", "logs", &service])
                );
            }
        }
        let _ = try_docker(&["swarm", "leave", "--force"]);
        for volume in ["gateway-home", "docker-filter", "agent-home"] {
            remove_once_unused(&["volume", "rm", "--force", &format!("{STACK}_{volume}")]);
        }
        if !self.had_bridge {
            remove_once_unused(&["network", "rm", BRIDGE]);
        }
        let _ = try_docker(&["image", "rm", IMAGE]);
    }
}

/// Repeats the command for up to 20 s: tasks end some time after the swarm does.
fn remove_once_unused(command: &[&str]) {
    for _ in 0..100 {
        if try_docker(command).is_ok() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

fn client(container: &Running, url: &str) -> DeviceClient {
    let mut node = Command::new("docker");
    node.args(["exec", container.name(), "node"]);
    DeviceClient::new(node, Path::new("/openclaw/node_modules"), url).token(openclaw::TOKEN)
}

/// Returns whether a client in the container is paired through `loopgate` on the container's
/// loopback. The container may end meanwhile, at which the client panics.
fn is_paired_on_loopback(container: &Running) -> bool {
    let ends = catch_unwind(AssertUnwindSafe(|| client(container, "ws://127.0.0.1:18789").connect()));
    matches!(ends, Ok(End::Hello { .. }))
}

#[test]
#[ignore = "makes a swarm of the engine that it runs on: tests/run swarm"]
fn a_stack_pairs_agents_of_its_node_silently_and_others_need_approval_or_a_certificate() {
    let engine = crate::engine::Engine::start().expect("an engine with the images");
    let directory = tempfile::tempdir().unwrap();
    let build = [
        "build",
        "--quiet",
        "--file",
        "docker/agent.Dockerfile",
        "--build-arg",
        "LOOPGATE_IMAGE=loopgate-test/loopgate",
    ];
    let base = format!("AGENT_BASE={}", openclaw::IMAGE);
    let mut command = Command::new("docker");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("DOCKER_BUILDKIT", "0");
    let built =
        output(command.args(build).args(["--build-arg", &base, "--tag", IMAGE, "docker"])).expect("docker can be run");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let stack = Stack::start();
    let node = docker(&["info", "--format", "{{.Swarm.NodeID}}"]);
    docker(&["node", "update", "--label-add", "claw=true", &node]);
    let token = directory.path().join("token");
    std::fs::write(&token, openclaw::TOKEN).unwrap();
    docker(&["secret", "create", "claw-token", token.to_str().unwrap()]);
    // Deploy without the agent first, because its CA does not exist yet.
    let override_ = directory.path().join("gateway.yaml");
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/docker/stack.openclaw.yaml")).unwrap();
    std::fs::write(&override_, text.lines().filter(|line| !line.contains("agent:")).collect::<Vec<_>>().join("\n"))
        .unwrap();
    Stack::deploy(&[FILES[0], override_.to_str().unwrap()]);

    let gateway = Stack::service("gateway");
    let exported = eventually("there is a CA", || {
        let exported = gateway.try_exec(["loopgate", "cert", "export"]);
        exported.status.success().then_some(exported.stdout)
    });
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, exported).unwrap();
    docker(&["config", "create", "claw-ca", ca.to_str().unwrap()]);
    Stack::deploy(&FILES);

    let agent_is_paired = || is_paired_on_loopback(&Stack::service("agent"));
    eventually("the agent is paired silently", || agent_is_paired().then_some(()));

    // A container that is not part of the stack. Like a task on another node, the engine does not
    // know it as one.
    let network = format!("--network={STACK}_agents");
    let tree = openclaw::install_dir(openclaw::NEW).expect("OpenClaw");
    let outsider = Container::idle("outsider").image(openclaw::IMAGE).option("--tmpfs=/tmp").option(network);
    let outsider = outsider
        .mount(tree, "/openclaw")
        .mount(device_client::SCRIPT, device_client::SCRIPT)
        .mount(&ca, "/ca.pem")
        .with_loopgate();
    let outsider = engine.run(outsider.label("loopgate.agent", "address"));
    let address = outsider.ip_on(&format!("{STACK}_agents")).to_string();
    assert!(address.starts_with(SUBNET), "{address}");
    client(&outsider, "wss://gateway:18443").ca("/ca.pem".as_ref()).connect().pairing_request();
    let token = "OPENCLAW_GATEWAY_TOKEN=$(cat /run/secrets/gateway_token)";
    let devices = gateway.exec(["sh", "-c", &format!("{token} node /app/openclaw.mjs devices list --json")]);
    assert!(devices.contains(&format!("\"{address}\"")), "the gateway does not see the client's address: {devices}");

    // An agent on another node uses a certificate of `loopgate cert issue`.
    gateway.exec(["loopgate", "cert", "issue", "--name", "elsewhere", "--out", "/tmp/elsewhere"]);
    let copy = "cd /tmp/elsewhere && tar -c . | base64 --wrap=0";
    let files = gateway.exec(["sh", "-c", copy]);
    outsider.exec(["sh", "-c", &format!("mkdir /tmp/own && echo {files} | base64 -d | tar -x -C /tmp/own")]);
    let run = "/loopgate agent --cert /tmp/own/agent.pem --key /tmp/own/agent.key --ca /ca.pem --sidecar gateway:18443 \
               >/tmp/log 2>&1 &";
    outsider.exec(["sh", "-c", run]);
    eventually("a certificate makes it an agent", || is_paired_on_loopback(&outsider).then_some(()));

    // If loopgate ends, the container ends, Swarm replaces it, and agents connect to the new one.
    gateway.exec([
        "bash",
        "-c",
        "kill -KILL $(pgrep -x loopgate || for p in /proc/[0-9]*; do [ $(cat $p/comm) = loopgate ] && echo \
         ${p#/proc/}; done)",
    ]);
    eventually("the container has ended", || (!gateway.is_running()).then_some(()));
    drop(Stack::service("gateway"));
    eventually("the agent is back", || agent_is_paired().then_some(()));
    drop(outsider);
    drop(stack);
}

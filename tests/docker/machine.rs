//! The shipped compose.yaml through ordinary restarts of the engine, SIGKILLs of the engine, and
//! reboots of the machine. `tests/run upheaval` runs this on an engine that no other test uses.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use loopgate_test_support::device_client::{DeviceClient, End};

use crate::container::Running;
use crate::engine::{Engine, output, try_docker};
use crate::project::{Compose, Project};

/// The time within which the stack must work again.
const PATIENCE: Duration = Duration::from_secs(90);
const SERVICES: [&str; 5] = ["netns", "gateway", "loopgate", "socket-filter", "agent"];

/// The kinds of events: the name, the commands of `tests/setup/engine28.sh`, and the number of
/// times, which the variable TEST_NAME overrides.
const EVENTS: [(&str, &[&str], u32); 3] =
    [("RESTARTS", &["stop", "start"], 20), ("KILLS", &["kill", "start"], 10), ("REBOOTS", &["reboot"], 10)];

#[test]
#[ignore = "restarts the engine that it runs on: tests/run upheaval"]
fn the_shipped_files_come_back_after_restarts_kills_and_reboots() {
    let script = std::env::var("TEST_ENGINE_SCRIPT").expect("TEST_ENGINE_SCRIPT controls the engine of DOCKER_HOST");
    // Whether to run, after each event, the command of the systemd unit in docker/README.md.
    let with_unit = std::env::var("TEST_WITH_UNIT").as_deref() == Ok("1");
    let engine = Engine::start().expect("an engine with the images");
    let project = Project::start(Compose::V2, &["compose.yaml"]).expect("the images");
    let outsider = engine.run(project.outsider("agents").option("--restart=always"));
    assert!(is_back(&project, &outsider, Duration::from_secs(300)), "{}", container_states(&project));

    let mut missing = Vec::new();
    for (name, words, usual) in EVENTS {
        let count = std::env::var(format!("TEST_{name}")).ok().map_or(usual, |count| count.parse().expect("a number"));
        let mut back = 0;
        for number in 1..=count {
            for word in words {
                let done = output(Command::new(&script).arg(word)).expect("the script can be run");
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            }
            let start = Instant::now();
            if with_unit {
                start_by_unit(&project, start + PATIENCE);
            }
            if is_back(&project, &outsider, PATIENCE.saturating_sub(start.elapsed())) {
                back += 1;
                eprintln!("{name} {number}: back after {} s", start.elapsed().as_secs());
                continue;
            }
            let states = container_states(&project);
            eprintln!("{name} {number}: not back after {} s: {states}", PATIENCE.as_secs());
            missing.push(format!("{name} {number}: {states}"));
            project.compose(&["up", "--detach", "--no-build"]);
            let _ = try_docker(&["start", outsider.name()]);
            assert!(
                is_back(&project, &outsider, Duration::from_secs(300)),
                "not even by `up`: {}",
                container_states(&project)
            );
        }
        eprintln!("{name}: back {back} of {count}");
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Does what the unit of docker/README.md does: if the command fails, systemd repeats it after 5 s.
fn start_by_unit(project: &Project, deadline: Instant) {
    while let Err(why) = project.try_compose(&["up", "--detach", "--no-build"]) {
        eprintln!("the unit failed: {why}");
        if Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_secs(5));
    }
}

/// Returns whether, within `patience`, the agent is paired silently and another client needs an
/// approval.
fn is_back(project: &Project, outsider: &Running, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let agent =
            connect_in(&project.service("agent"), |container| project.client(container, "ws://127.0.0.1:18789"));
        if matches!(agent, Some(End::Hello { .. })) {
            let outside = connect_in(outsider, |container| {
                project.client(container, "wss://gateway:18443").ca("/ca/ca.pem".as_ref())
            });
            let needs_approval = |reason: &str| reason.starts_with("pairing required");
            if matches!(&outside, Some(End::Closed { code: 1008, reason, .. }) if needs_approval(reason)) {
                return true;
            }
            assert!(!matches!(outside, Some(End::Hello { .. })), "a client that is no agent was paired silently");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    false
}

/// Connects a client in `container`; returns how the connection ends, or `None` if the container
/// doesn't run.
fn connect_in(container: &Running, client: impl Fn(&Running) -> DeviceClient) -> Option<End> {
    if !container.try_exec(["true"]).status.success() {
        return None;
    }
    // The container may stop meanwhile, at which the client panics.
    catch_unwind(AssertUnwindSafe(|| client(container).connect())).ok()
}

/// The state of each container, with its exit status and error.
fn container_states(project: &Project) -> String {
    let state = |service: &str| {
        format!(
            "{service} {}",
            project.service(service).inspect("{{.State.Status}} ({{.State.ExitCode}}) {{.State.Error}}")
        )
    };
    SERVICES.map(state).join("; ")
}

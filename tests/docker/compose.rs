//! The compose files are understood by both generations of compose.

use std::process::Command;

use crate::engine::{output, skip};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docker");

/// What a user may start: each a list of files.
const WAYS: [&[&str]; 3] = [&["compose.yaml"], &["compose.yaml", "compose.caddy.yaml"], &["compose.yaml", "compose.traefik.yaml"]];

/// The two generations: v2, a plugin of `docker`, and docker-compose 1.29.
const GENERATIONS: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];

/// A compose command in `docker/`; `None`, said aloud, where it isn't installed.
fn compose(generation: &[&str]) -> Option<Command> {
    let command = || {
        let mut command = Command::new(generation[0]);
        command.args(&generation[1..]).current_dir(DIRECTORY);
        command
    };
    if output(command().arg("version")).is_ok_and(|output| output.status.success()) {
        return Some(command());
    }
    skip(&format!("{} is not installed", generation.join(" ")));
    None
}

#[test]
fn both_generations_of_compose_accept_every_file() {
    for generation in GENERATIONS {
        for files in WAYS {
            let Some(mut command) = compose(generation) else { break };
            for file in files {
                command.args(["-f", file]);
            }
            let output = output(command.args(["config", "--quiet"])).expect("compose can be run");
            let complaints = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && complaints.is_empty(), "{generation:?} {files:?}: {complaints}");
        }
    }
}

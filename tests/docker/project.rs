//! A compose project out of the files in docker/, with the real gateway and the image of docker/Dockerfile.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::container::Running;
use crate::engine::{DEBIAN, attempt, docker, output, skip};
use crate::openclaw;

/// A generation of compose.
#[derive(Clone, Copy, Debug)]
pub enum Compose {
    /// docker-compose 1.29, in Python.
    V1,
    /// The plugin of the docker command.
    V2,
}

impl Compose {
    /// Its command, in docker/; `None`, said aloud, where it isn't installed.
    pub fn command(self) -> Option<Command> {
        let words: &[&str] = match self {
            Self::V1 => &["docker-compose"],
            Self::V2 => &["docker", "compose"],
        };
        let command = || {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docker"));
            command
        };
        if output(command().arg("version")).is_ok_and(|output| output.status.success()) {
            return Some(command());
        }
        skip(&format!("{} is not installed", words.join(" ")));
        None
    }
}

/// A project that is up; gone in the end, with its volumes and networks.
pub struct Project {
    compose: Compose,
    files: Vec<&'static str>,
    name: String,
    tree: PathBuf,
    secrets: TempDir,
}

impl Project {
    /// Starts these files. It returns when compose does, that is, when the agent is up, for which loopgate has to be ready.
    ///
    /// `None`, said aloud, where something is missing.
    pub fn up(compose: Compose, files: &[&'static str]) -> Option<Self> {
        static PROJECTS: AtomicU32 = AtomicU32::new(0);
        attempt(&["image", "inspect", "loopgate-test/loopgate"]).map_err(|why| skip(&why)).ok()?;
        compose.command()?;
        let mut files = files.to_vec();
        files.push("../tests/docker/compose.openclaw.yaml");
        let name = format!("loopgate-test-{}-p{}", std::process::id(), PROJECTS.fetch_add(1, Ordering::Relaxed));
        let secrets = tempfile::tempdir().unwrap();
        std::fs::write(secrets.path().join("gateway-token"), openclaw::TOKEN).unwrap();
        let project = Self { compose, files, name, tree: openclaw::tree(openclaw::NEW)?, secrets };
        project.must(&["up", "--detach"]);
        Some(project)
    }

    /// A service's container. Unlike others it isn't removed by being dropped, but with its project.
    pub fn service(&self, service: &str) -> Running {
        let label = |key, value| format!("label=com.docker.compose.{key}={value}");
        let filters = [label("project", self.name.as_str()), label("service", service)];
        let id = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filters[0], "--filter", &filters[1]]);
        Running::of_project(docker(&["inspect", "--format", "{{slice .Name 1}}", &id]), id)
    }

    /// Runs compose on this project; what it printed, trimmed.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "{:?} {arguments:?}: {}", self.compose, text(&output.stderr));
        text(&output.stdout)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.compose.command().expect("it was there a moment ago");
        command.args(["--project-name", &self.name]);
        for file in &self.files {
            command.args(["--file", file]);
        }
        command
            .args(arguments)
            .env("LOOPGATE_IMAGE", "loopgate-test/loopgate")
            .env("OPENCLAW_IMAGE", "loopgate-test/openclaw")
            .env("HAPROXY_IMAGE", DEBIAN)
            .env("AGENT_IMAGE", format!("{}-agent", self.name))
            .env("GATEWAY_TOKEN_FILE", self.secrets.path().join("gateway-token"))
            // On whichever port is free: Docker takes an empty one for that.
            .env("LOOPGATE_PUBLISH", "127.0.0.1:")
            .env("OPENCLAW_TREE", &self.tree);
        output(&mut command).expect("compose can be run")
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, String::from_utf8_lossy(&self.run(&["logs", "--no-color"]).stdout));
        }
        self.run(&["down", "--volumes", "--timeout", "1"]);
        let _ = attempt(&["image", "rm", &format!("{}-agent", self.name)]);
    }
}

//! A compose project of the files in docker/, with the real gateway and the image of
//! docker/Dockerfile.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::container::{Container, Running};
use crate::engine::{DEBIAN, docker, output, skip, try_docker};
use crate::{filter, openclaw};
use loopgate_test_support::device_client::{self, DeviceClient};

/// A generation of Docker Compose.
#[derive(Clone, Copy, Debug)]
pub enum Compose {
    /// docker-compose 1.29, in Python.
    V1,
    /// The plugin of the docker command.
    V2,
}

impl Compose {
    /// The command of this generation, with docker/ as its directory. If it isn't installed, prints
    /// NOT RUN and returns `None`.
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

/// A running project. Dropping it removes its containers, volumes and networks.
pub struct Project {
    compose: Compose,
    files: Vec<&'static str>,
    name: String,
    tree: PathBuf,
    secrets: TempDir,
    /// The first three numbers of the front's network.
    front: String,
}

impl Project {
    /// Starts these files. Returns when the agent is up, which waits until loopgate is ready. If
    /// something is missing, prints NOT RUN and returns `None`.
    pub fn start(compose: Compose, files: &[&'static str]) -> Option<Self> {
        static PROJECTS: AtomicU32 = AtomicU32::new(0);
        let fronts = ["caddy", "traefik"].into_iter().filter(|front| files.iter().any(|file| file.contains(front)));
        for image in fronts.chain(["loopgate"]) {
            try_docker(&["image", "inspect", &format!("loopgate-test/{image}")]).map_err(|why| skip(&why)).ok()?;
        }
        compose.command()?;
        let mut files = files.to_vec();
        files.push("../tests/docker/compose.openclaw.yaml");
        let number = PROJECTS.fetch_add(1, Ordering::Relaxed);
        let name = format!("loopgate-test-{}-p{number}", std::process::id());
        let secrets = tempfile::tempdir().unwrap();
        std::fs::write(secrets.path().join("gateway-token"), openclaw::TOKEN).unwrap();
        let tree = openclaw::install_dir(openclaw::NEW)?;
        let mut project = Self { compose, files, name, tree, secrets, front: String::new() };
        for third in 0..=u8::MAX {
            project.front = format!("10.202.{}", (std::process::id() + number + u32::from(third)) % 256);
            match project.try_compose(&["up", "--detach"]) {
                Ok(_) => return Some(project),
                // Another run has this subnet, or one that was killed.
                Err(why) if why.contains("overlaps") => {}
                Err(why) => panic!("{why}"),
            }
        }
        panic!("no subnet of 10.202.0.0/16 is free");
    }

    /// A service's container. It is not removed on drop, but with its project.
    pub fn service(&self, service: &str) -> Running {
        let label = |key, value| format!("label=com.docker.compose.{key}={value}");
        let filters = [label("project", self.name.as_str()), label("service", service)];
        let id = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filters[0], "--filter", &filters[1]]);
        Running::of_project(docker(&["inspect", "--format", "{{slice .Name 1}}", &id]), id)
    }

    /// The full name of one of the project's networks.
    pub fn network(&self, network: &str) -> String {
        format!("{}_{network}", self.name)
    }

    /// A container that is not part of the project, on one of its networks, with OpenClaw, and
    /// loopgate's CA in /ca/ca.pem.
    pub fn outsider(&self, network: &str) -> Container {
        let container = Container::idle("outsider").image(openclaw::IMAGE).hardened().option("--tmpfs=/tmp");
        let container = container.option(format!("--network={}", self.network(network)));
        container
            .mount(&self.tree, "/openclaw")
            .mount(device_client::SCRIPT, device_client::SCRIPT)
            .mount(self.network("ca"), "/ca")
    }

    /// A client in `container`, with a new device and the right token.
    pub fn client(&self, container: &Running, url: &str) -> DeviceClient {
        let mut node = Command::new("docker");
        node.args(["exec", container.name(), "node"]);
        DeviceClient::new(node, Path::new("/openclaw/node_modules"), url).token(openclaw::TOKEN)
    }

    /// OpenClaw's `node_modules` on this machine.
    pub fn modules(&self) -> PathBuf {
        self.tree.join("node_modules")
    }

    /// Runs `openclaw` in the gateway's container, with the command in compose.yaml; returns its
    /// standard output.
    pub fn openclaw(&self, arguments: &str) -> String {
        let token = "OPENCLAW_GATEWAY_TOKEN=$(cat /run/secrets/gateway_token)";
        self.service("gateway").exec(["sh", "-c", &format!("{token} node /app/openclaw.mjs {arguments}")])
    }

    /// Runs compose on this project; returns its standard output, trimmed.
    ///
    /// # Panics
    ///
    /// If the command fails.
    pub fn compose(&self, arguments: &[&str]) -> String {
        self.try_compose(arguments).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Runs compose on this project; returns its standard output, trimmed, or the error.
    pub fn try_compose(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(format!("{:?} {arguments:?}: {}", self.compose, text(&output.stderr)))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.compose.command().expect("`start` has found this command");
        command.args(["--project-name", &self.name]);
        for file in &self.files {
            command.args(["--file", file]);
        }
        command
            .args(arguments)
            .env("COMPOSE_PROFILES", "agent")
            .env("LOOPGATE_IMAGE", "loopgate-test/loopgate")
            .env("OPENCLAW_IMAGE", "loopgate-test/openclaw")
            .env("HAPROXY_IMAGE", DEBIAN)
            .env("DOCKER_SOCKET", filter::socket())
            .env("CADDY_IMAGE", "loopgate-test/caddy")
            .env("TRAEFIK_IMAGE", "loopgate-test/traefik")
            .env("AGENT_IMAGE", format!("{}-agent", self.name))
            .env("GATEWAY_TOKEN_FILE", self.secrets.path().join("gateway-token"))
            // An empty port lets Docker choose a free one.
            .env("LOOPGATE_PUBLISH", "127.0.0.1:")
            .env("HTTP_PUBLISH", "127.0.0.1:")
            .env("HTTPS_PUBLISH", "127.0.0.1:")
            .env("FRONT", &self.front)
            .env("CLIENT", device_client::SCRIPT)
            .env("OPENCLAW_TREE", &self.tree);
        output(&mut command).expect("compose can be run")
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, String::from_utf8_lossy(&self.run(&["logs", "--no-color"]).stdout));
        }
        self.run(&["down", "--volumes", "--remove-orphans", "--timeout", "1"]);
        let _ = try_docker(&["image", "rm", &format!("{}-agent", self.name)]);
    }
}

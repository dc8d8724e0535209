//! A container: as it shall be, and as it runs.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output};

use crate::engine::{DEBIAN, Network, attempt, docker, eventually, output};

/// A container to be, for [`crate::engine::Engine::run`].
pub struct Container {
    name: String,
    image: String,
    options: Vec<String>,
    command: Vec<String>,
}

impl Container {
    /// A Debian that does nothing until it is told to ([`Running::exec`]).
    pub fn idle(name: &str) -> Self {
        Self::new(name).command(["sleep", "infinity"]).option("--init")
    }

    /// A Debian. `name` is only a part of its real name, [`Running::name`]; what others on a
    /// network call it is an [alias](Self::alias).
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), image: DEBIAN.into(), options: Vec::new(), command: Vec::new() }
    }

    /// This build's `loopgate`, with these arguments, in a Debian, which a debug build needs for its libc.
    pub fn loopgate<const N: usize>(name: &str, arguments: [&str; N]) -> Self {
        Self::new(name).with_loopgate().option("--entrypoint=/loopgate").command(arguments)
    }

    /// The same with this build's `loopgate` as `/loopgate`.
    pub fn with_loopgate(self) -> Self {
        self.mount(env!("CARGO_BIN_EXE_loopgate"), "/loopgate")
    }

    /// Made from another image.
    pub fn image(mut self, image: &str) -> Self {
        self.image = image.into();
        self
    }

    /// Runs this command.
    pub fn command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.command = command.into_iter().map(Into::into).collect();
        self
    }

    /// One argument to `docker run`, such as `--init` or `--ip=172.18.0.9`.
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// On this network, and not on the default one.
    pub fn network(self, network: &Network) -> Self {
        self.option(format!("--network={}", network.name()))
    }

    /// In the network namespace of another container.
    pub fn inside(self, owner: &Running) -> Self {
        self.option(format!("--network=container:{}", owner.name()))
    }

    /// Known by this name on its network.
    pub fn alias(self, alias: &str) -> Self {
        self.option(format!("--network-alias={alias}"))
    }

    /// With this label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.option(format!("--label={key}={value}"))
    }

    /// As if compose had started it, as this service of this project.
    pub fn of_project(self, project: &str, service: &str) -> Self {
        self.label("com.docker.compose.project", project).label("com.docker.compose.service", service)
    }

    /// With this environment variable.
    pub fn env(self, name: &str, value: &str) -> Self {
        self.option(format!("--env={name}={value}"))
    }

    /// With this file or directory of the host, or volume, read-only.
    pub fn mount(self, source: impl AsRef<Path>, target: &str) -> Self {
        let source = source.as_ref().display();
        self.option(format!("--volume={source}:{target}:ro"))
    }

    /// With this directory of the host, or volume, to write to.
    pub fn mount_writable(self, source: impl AsRef<Path>, target: &str) -> Self {
        let source = source.as_ref().display();
        self.option(format!("--volume={source}:{target}"))
    }

    /// As loopgate's own compose files have it: read-only, no capabilities, no new privileges.
    pub fn hardened(self) -> Self {
        self.option("--read-only").option("--cap-drop=ALL").option("--security-opt=no-new-privileges")
    }

    /// With this port of it published on a free port of the host ([`Running::published`]).
    pub fn publish(self, port: u16) -> Self {
        self.option(format!("--publish={port}"))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn into_arguments(self) -> Vec<String> {
        let mut arguments = self.options;
        arguments.push(self.image);
        arguments.extend(self.command);
        arguments
    }
}

/// A container that was started, removed in the end.
pub struct Running {
    name: String,
    id: String,
    ours: bool,
}

impl Running {
    pub(crate) fn new(name: String, id: String) -> Self {
        Self { name, id, ours: true }
    }

    /// One that goes with its compose project.
    pub(crate) fn of_project(name: String, id: String) -> Self {
        Self { name, id, ours: false }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id, 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in it; what it printed, trimmed.
    ///
    /// # Panics
    ///
    /// If the command fails, with what it said.
    pub fn exec<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> String {
        let output = self.try_exec(command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "in {}: {}: {}", self.name, output.status, text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command in it, which may fail.
    pub fn try_exec<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Output {
        output(Command::new("docker").args(["exec", &self.name]).args(command)).expect("docker can be run")
    }

    /// What it wrote on standard output and error so far.
    pub fn logs(&self) -> String {
        let output = output(Command::new("docker").args(["logs", &self.name])).expect("docker can be run");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Waits until it has written this.
    pub fn says(&self, text: &str) {
        eventually(&format!("{} says {text:?}", self.name), || {
            let logs = self.logs();
            // What it did say helps more than that it did not say this.
            assert!(logs.contains(text) || self.is_running(), "{} ended, and said:\n{logs}", self.name);
            logs.contains(text).then_some(())
        });
    }

    /// Its address on a network.
    pub fn ip(&self, network: &Network) -> IpAddr {
        self.ip_on(network.name())
    }

    /// Its address on the network of this name.
    pub fn ip_on(&self, network: &str) -> IpAddr {
        let text = self.inspect(&format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}"));
        text.parse().unwrap_or_else(|_| panic!("the address of {} on {network} is {text:?}", self.name))
    }

    /// The host's port that leads to this published port of it, over IPv4.
    pub fn published(&self, port: u16) -> u16 {
        let text = docker(&["port", &self.name, &format!("{port}/tcp")]);
        let first = text.lines().next().and_then(|line| line.rsplit(':').next()).and_then(|port| port.parse().ok());
        first.unwrap_or_else(|| panic!("port {port} of {} is published as {text:?}", self.name))
    }

    /// What `docker inspect` says by this template.
    pub fn inspect(&self, template: &str) -> String {
        docker(&["inspect", "--format", template, &self.name])
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.inspect("{{.State.Running}}") == "true"
    }

    /// How often its restart policy has started it again.
    pub fn restarts(&self) -> u32 {
        self.inspect("{{.RestartCount}}").parse().expect("a number")
    }

    /// Waits until it has ended; its exit status.
    pub fn ends(&self) -> i32 {
        eventually(&format!("{} ends", self.name), || (!self.is_running()).then_some(()));
        self.inspect("{{.State.ExitCode}}").parse().expect("a number")
    }

    /// `docker restart`, without a grace.
    pub fn restart(&self) {
        docker(&["restart", "--time=0", &self.name]);
    }

    /// `docker stop`, with the grace that loopgate is promised.
    pub fn stop(&self) {
        docker(&["stop", "--time=15", &self.name]);
    }

    /// `docker start`.
    pub fn start(&self) {
        docker(&["start", &self.name]);
    }

    /// Sends a signal, such as `HUP`, to its first process. Whatever it then does, its restart
    /// policy leaves it alone: to the engine that is a stop. See [`Running::crash`].
    pub fn signal(&self, signal: &str) {
        docker(&["kill", "--signal", signal, &self.name]);
    }

    /// Kills its first process behind the engine's back, which takes it for a crash. Needs root on
    /// an engine of this machine.
    pub fn crash(&self) {
        // Between two lives it is 0, and to kill 0 is to kill the tests themselves.
        let pid = eventually(&format!("{} has a process", self.name), || {
            Some(self.inspect("{{.State.Pid}}")).filter(|pid| pid != "0")
        });
        let output = output(Command::new("kill").args(["-KILL", &pid])).expect("kill can be run");
        assert!(output.status.success(), "kill {pid}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }

    /// Removes it now and not only in the end.
    pub fn remove(self) {}
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}", self.name, self.logs());
        }
        let _ = attempt(&["rm", "--force", "--volumes", &self.name]);
    }
}

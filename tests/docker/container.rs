//! Containers: their configuration, and running ones.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output};

use crate::engine::{DEBIAN, Network, docker, eventually, output, try_docker};

/// The configuration of a container, for [`crate::engine::Engine::run`].
pub struct Container {
    name: String,
    image: String,
    options: Vec<String>,
    command: Vec<String>,
}

impl Container {
    /// A Debian container that sleeps, for commands of [`Running::exec`].
    pub fn idle(name: &str) -> Self {
        Self::new(name).command(["sleep", "infinity"]).option("--init")
    }

    /// A Debian container. `name` is only a part of its real name, [`Running::name`]. Other
    /// containers on its network find it by an [alias](Self::alias).
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), image: DEBIAN.into(), options: Vec::new(), command: Vec::new() }
    }

    /// A container that runs this build's `loopgate` with these arguments. Its image is Debian,
    /// because a debug build needs its libc.
    pub fn loopgate<const N: usize>(name: &str, arguments: [&str; N]) -> Self {
        Self::new(name).with_loopgate().option("--entrypoint=/loopgate").command(arguments)
    }

    /// Mounts this build's `loopgate` as `/loopgate`.
    pub fn with_loopgate(self) -> Self {
        self.mount(env!("CARGO_BIN_EXE_loopgate"), "/loopgate")
    }

    /// Uses another image.
    pub fn image(mut self, image: &str) -> Self {
        self.image = image.into();
        self
    }

    /// Sets the command.
    pub fn command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.command = command.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an option of `docker run`, such as `--init` or `--ip=172.18.0.9`.
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Connects to this network instead of the default one.
    pub fn network(self, network: &Network) -> Self {
        self.option(format!("--network={}", network.name()))
    }

    /// Shares the network namespace of another container.
    pub fn in_namespace_of(self, owner: &Running) -> Self {
        self.option(format!("--network=container:{}", owner.name()))
    }

    /// Adds an alias on the container's network.
    pub fn alias(self, alias: &str) -> Self {
        self.option(format!("--network-alias={alias}"))
    }

    /// Adds a label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.option(format!("--label={key}={value}"))
    }

    /// Adds the labels that compose would add for this service of this project.
    pub fn of_project(self, project: &str, service: &str) -> Self {
        self.label("com.docker.compose.project", project).label("com.docker.compose.service", service)
    }

    /// Sets an environment variable.
    pub fn env(self, name: &str, value: &str) -> Self {
        self.option(format!("--env={name}={value}"))
    }

    /// Mounts a file or directory of the host or a volume, read-only.
    pub fn mount(self, source: impl AsRef<Path>, target: &str) -> Self {
        let source = source.as_ref().display();
        self.option(format!("--volume={source}:{target}:ro"))
    }

    /// Mounts a directory of the host or a volume, writable.
    pub fn mount_writable(self, source: impl AsRef<Path>, target: &str) -> Self {
        let source = source.as_ref().display();
        self.option(format!("--volume={source}:{target}"))
    }

    /// Adds the restrictions of loopgate's own compose files: read-only, no capabilities, no new
    /// privileges.
    pub fn hardened(self) -> Self {
        self.option("--read-only").option("--cap-drop=ALL").option("--security-opt=no-new-privileges")
    }

    /// Publishes a port on a free port of the host ([`Running::published_port`]).
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

/// A container that was started.
pub struct Running {
    name: String,
    id: String,
    /// Whether the container is removed on drop.
    is_removed_on_drop: bool,
}

impl Running {
    pub(crate) fn new(name: String, id: String) -> Self {
        Self { name, id, is_removed_on_drop: true }
    }

    /// A container of a compose project, which is removed with its project.
    pub(crate) fn of_project(name: String, id: String) -> Self {
        Self { name, id, is_removed_on_drop: false }
    }

    /// The container's full name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The container's id, 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in the container; returns its standard output, trimmed.
    ///
    /// # Panics
    ///
    /// If the command fails, with its standard error.
    pub fn exec<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> String {
        let output = self.try_exec(command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "in {}: {}: {}", self.name, output.status, text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command in the container, which may fail.
    pub fn try_exec<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Output {
        output(Command::new("docker").args(["exec", &self.name]).args(command)).expect("docker can be run")
    }

    /// The standard output and standard error so far.
    pub fn logs(&self) -> String {
        let output = output(Command::new("docker").args(["logs", &self.name])).expect("docker can be run");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Waits until the log contains `text`.
    pub fn wait_for_log(&self, text: &str) {
        eventually(&format!("{} logs {text:?}", self.name), || {
            let logs = self.logs();
            // A container that has ended won't log the text any more.
            assert!(logs.contains(text) || self.is_running(), "{} ended; its log:\n{logs}", self.name);
            logs.contains(text).then_some(())
        });
    }

    /// The container's address on a network.
    pub fn ip(&self, network: &Network) -> IpAddr {
        self.ip_on(network.name())
    }

    /// The container's address on the network with this name.
    pub fn ip_on(&self, network: &str) -> IpAddr {
        let text = self.inspect(&format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}"));
        text.parse().unwrap_or_else(|_| panic!("the address of {} on {network} is {text:?}", self.name))
    }

    /// The host's port for a published port of the container, over IPv4.
    pub fn published_port(&self, port: u16) -> u16 {
        let text = docker(&["port", &self.name, &format!("{port}/tcp")]);
        let first = text.lines().next().and_then(|line| line.rsplit(':').next()).and_then(|port| port.parse().ok());
        first.unwrap_or_else(|| panic!("port {port} of {} is published as {text:?}", self.name))
    }

    /// The output of `docker inspect` with this template.
    pub fn inspect(&self, template: &str) -> String {
        docker(&["inspect", "--format", template, &self.name])
    }

    /// Returns whether the container runs.
    pub fn is_running(&self) -> bool {
        self.inspect("{{.State.Running}}") == "true"
    }

    /// The number of restarts by the restart policy.
    pub fn restart_count(&self) -> u32 {
        self.inspect("{{.RestartCount}}").parse().expect("a number")
    }

    /// Waits until the container has ended; returns its exit status.
    pub fn wait_for_exit(&self) -> i32 {
        eventually(&format!("{} ends", self.name), || (!self.is_running()).then_some(()));
        self.inspect("{{.State.ExitCode}}").parse().expect("a number")
    }

    /// `docker restart`, with SIGKILL at once.
    pub fn restart(&self) {
        docker(&["restart", "--time=0", &self.name]);
    }

    /// `docker stop`, with 15 s until SIGKILL.
    pub fn stop(&self) {
        docker(&["stop", "--time=15", &self.name]);
    }

    /// `docker start`.
    pub fn start(&self) {
        docker(&["start", &self.name]);
    }

    /// Sends a signal, such as `HUP`, to the first process. The engine treats this as a stop, so
    /// the restart policy doesn't apply if the process ends. See [`Running::crash`].
    pub fn signal(&self, signal: &str) {
        docker(&["kill", "--signal", signal, &self.name]);
    }

    /// Kills the first process without the engine's API, so that the engine treats it as a crash.
    /// Needs root, and an engine on this machine.
    pub fn crash(&self) {
        // While the container restarts, its pid is 0. `kill 0` would kill the tests themselves.
        let pid = eventually(&format!("{} has a process", self.name), || {
            Some(self.inspect("{{.State.Pid}}")).filter(|pid| pid != "0")
        });
        let output = output(Command::new("kill").args(["-KILL", &pid])).expect("kill can be run");
        assert!(output.status.success(), "kill {pid}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }

    /// Removes the container now, by dropping it.
    pub fn remove(self) {}
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_removed_on_drop {
            return;
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, self.logs());
        }
        let _ = try_docker(&["rm", "--force", "--volumes", &self.name]);
    }
}

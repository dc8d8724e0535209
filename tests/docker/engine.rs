//! A real Docker Engine, used through the `docker` command. Everything that a test creates on it is
//! removed when the test ends, even if it fails.

use std::cell::Cell;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::container::{Container, Running};

/// The image of Debian bookworm with curl, HAProxy and iproute2 (`tests/setup/images.sh`).
pub const DEBIAN: &str = "loopgate-test/debian";

/// How long a test waits for a condition. The limit is high because an old gateway needs half a
/// minute of processor time to start, which takes minutes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(360);

/// The engine for one test. Names that it makes are unique, so that tests can run at the same time.
pub struct Engine {
    /// The prefix of all names of this test.
    prefix: String,
    /// How many names were made.
    name_count: Cell<u32>,
}

impl Engine {
    /// Returns the engine for a test. If no engine answers or the image is missing, prints NOT RUN
    /// and returns `None`.
    ///
    /// # Panics
    ///
    /// If one of them is missing and `CI` is `true`.
    pub fn start() -> Option<Self> {
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("loopgate-test-{}-{}", std::process::id(), TESTS.fetch_add(1, Ordering::Relaxed));
        match try_docker(&["image", "inspect", DEBIAN]) {
            Ok(_) => Some(Self { prefix, name_count: Cell::new(0) }),
            Err(why) => {
                skip(&why);
                None
            }
        }
    }

    /// Creates a bridge network.
    pub fn network(&self) -> Network {
        self.network_with(&[])
    }

    /// Creates a bridge network with additional arguments of `docker network create`.
    ///
    /// The network has an explicit subnet, because only then can a container request a certain
    /// address.
    pub fn network_with(&self, arguments: &[&str]) -> Network {
        static SUBNETS: AtomicU32 = AtomicU32::new(0);
        let name = self.name("net");
        for _ in 0..=u8::MAX {
            // The first subnet depends on the process, so that two test runs seldom try the same
            // ones.
            let third = (std::process::id() + SUBNETS.fetch_add(1, Ordering::Relaxed)) % 256;
            let (subnet, gateway) = (format!("10.201.{third}.0/24"), format!("10.201.{third}.1"));
            let mut command = vec!["network", "create", "--subnet", &subnet, "--gateway", &gateway];
            command.extend(arguments);
            command.push(&name);
            match try_docker(&command) {
                Ok(_) => return Network { name },
                Err(why) if why.contains("overlaps") => {}
                Err(why) => panic!("{why}"),
            }
        }
        panic!("no subnet of 10.201.0.0/16 is free");
    }

    /// Creates a volume.
    pub fn volume(&self) -> Volume {
        let name = self.name("volume");
        docker(&["volume", "create", &name]);
        Volume { name }
    }

    /// Starts a container.
    pub fn run(&self, container: Container) -> Running {
        let name = self.name(container.name());
        let mut command = vec!["run".to_owned(), "--detach".into(), "--name".into(), name.clone()];
        command.extend(container.into_arguments());
        // A container that could not be started exists nevertheless.
        let id = try_docker(&command).unwrap_or_else(|why| {
            let _ = try_docker(&["rm", "--force", "--volumes", &name]);
            panic!("{why}")
        });
        Running::new(name, id)
    }

    /// Returns a unique name that contains `what`.
    fn name(&self, what: &str) -> String {
        self.name_count.set(self.name_count.get() + 1);
        format!("{}-{what}-{}", self.prefix, self.name_count.get())
    }
}

/// A bridge network, removed on drop. Declare it before the containers on it, because values are
/// dropped in reverse order.
pub struct Network {
    name: String,
}

impl Network {
    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The engine's own address on the network.
    pub fn gateway(&self) -> IpAddr {
        let text = docker(&["network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", &self.name]);
        text.parse().unwrap_or_else(|_| panic!("the gateway of {} is {text:?}", self.name))
    }

    /// Connects a running container, with these aliases.
    pub fn connect(&self, container: &Running, aliases: &[&str]) {
        let mut command = vec!["network", "connect"];
        for alias in aliases {
            command.extend(["--alias", alias]);
        }
        command.extend([self.name.as_str(), container.name()]);
        docker(&command);
    }

    /// Disconnects a container.
    pub fn disconnect(&self, container: &Running) {
        docker(&["network", "disconnect", &self.name, container.name()]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = try_docker(&["network", "rm", &self.name]);
    }
}

/// A named volume, removed on drop.
pub struct Volume {
    name: String,
}

impl Volume {
    /// The volume's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = try_docker(&["volume", "rm", "--force", &self.name]);
    }
}

/// Runs `docker` with these arguments; returns its standard output, trimmed.
///
/// # Panics
///
/// If the command fails, with its standard error.
pub fn docker<S: AsRef<str>>(arguments: &[S]) -> String {
    try_docker(arguments).unwrap_or_else(|why| panic!("{why}"))
}

/// Does the same as [`docker`], and returns the error message if the command fails.
pub fn try_docker<S: AsRef<str>>(arguments: &[S]) -> Result<String, String> {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    let output = output(Command::new("docker").args(&arguments)).map_err(|error| format!("docker: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("docker {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Returns whether the engine is Podman, whose responses sometimes differ from Docker's.
pub fn is_podman() -> bool {
    docker(&["version", "--format", "{{range .Server.Components}}{{.Name}} {{end}}"]).contains("Podman")
}

/// Runs a command to its end, with an empty standard input.
pub fn output(command: &mut Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).output()
}

/// Calls `happened` until it returns a value, and returns the value.
///
/// # Panics
///
/// If it has returned no value after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut happened: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = happened() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Prints that the test is not run, to the standard error that libtest does not capture.
///
/// # Panics
///
/// If `CI` is `true`.
pub fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("NOT RUN: {test}: {why}; `tests/docker/run` installs what is missing");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{line}");
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}

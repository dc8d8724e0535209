//! A real Docker Engine, through the `docker` command: what a story makes on it is gone when the
//! story ends, however it ends.

use std::cell::Cell;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::container::{Container, Running};

/// Bookworm with curl, HAProxy and iproute2 (`tests/setup/images.sh`).
pub const DEBIAN: &str = "loopgate-test/debian";

/// How long a story waits for what must come to pass. An old gateway needs half a minute of
/// processor time to start, which a busy machine takes minutes to give it; only a failure waits
/// longer.
pub const PATIENCE: Duration = Duration::from_secs(360);

/// One story's hold on the engine. Names made through it are its own, so that stories can run side by side.
pub struct Engine {
    story: String,
    made: Cell<u32>,
}

impl Engine {
    /// The engine for a story; `None`, said aloud, where there is none or it lacks an image.
    ///
    /// # Panics
    ///
    /// Instead of that, where `CI` is `true`.
    pub fn start() -> Option<Self> {
        static STORIES: AtomicU32 = AtomicU32::new(0);
        let story = format!("loopgate-test-{}-{}", std::process::id(), STORIES.fetch_add(1, Ordering::Relaxed));
        match attempt(&["image", "inspect", DEBIAN]) {
            Ok(_) => Some(Self { story, made: Cell::new(0) }),
            Err(why) => {
                skip(&why);
                None
            }
        }
    }

    /// A new bridge network.
    pub fn network(&self) -> Network {
        self.network_with(&[])
    }

    /// A new bridge network, with arguments to `docker network create`.
    ///
    /// Its subnet is stated: only on such a network may a container ask for an address of its choice.
    pub fn network_with(&self, arguments: &[&str]) -> Network {
        static SUBNETS: AtomicU32 = AtomicU32::new(0);
        let name = self.name("net");
        for _ in 0..=u8::MAX {
            // Beginning elsewhere in each process, so that two test runs seldom want the same one.
            let third = (std::process::id() + SUBNETS.fetch_add(1, Ordering::Relaxed)) % 256;
            let (subnet, gateway) = (format!("10.201.{third}.0/24"), format!("10.201.{third}.1"));
            let mut command = vec!["network", "create", "--subnet", &subnet, "--gateway", &gateway];
            command.extend(arguments);
            command.push(&name);
            match attempt(&command) {
                Ok(_) => return Network { name },
                Err(why) if why.contains("overlaps") => {}
                Err(why) => panic!("{why}"),
            }
        }
        panic!("no subnet of 10.201.0.0/16 is free");
    }

    /// A new volume.
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
        // One that could not be started is there nevertheless.
        let id = attempt(&command).unwrap_or_else(|why| {
            let _ = attempt(&["rm", "--force", "--volumes", &name]);
            panic!("{why}")
        });
        Running::new(name, id)
    }

    fn name(&self, what: &str) -> String {
        self.made.set(self.made.get() + 1);
        format!("{}-{what}-{}", self.story, self.made.get())
    }
}

/// A bridge network, removed in the end. Declare it before the containers on it: values are dropped last to first.
pub struct Network {
    name: String,
}

impl Network {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address that the engine itself has on it.
    pub fn gateway(&self) -> IpAddr {
        let text = docker(&["network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", &self.name]);
        text.parse().unwrap_or_else(|_| panic!("the gateway of {} is {text:?}", self.name))
    }

    /// Connects a running container, which gets these aliases on it.
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
        let _ = attempt(&["network", "rm", &self.name]);
    }
}

/// A named volume, removed in the end.
pub struct Volume {
    name: String,
}

impl Volume {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = attempt(&["volume", "rm", "--force", &self.name]);
    }
}

/// Runs `docker` with these arguments; what it printed, trimmed.
///
/// # Panics
///
/// If it fails, with what it said.
pub fn docker<S: AsRef<str>>(arguments: &[S]) -> String {
    attempt(arguments).unwrap_or_else(|why| panic!("{why}"))
}

/// Like [`docker`], for what may fail: what went wrong.
pub fn attempt<S: AsRef<str>>(arguments: &[S]) -> Result<String, String> {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    let output = output(Command::new("docker").args(&arguments)).map_err(|error| format!("docker: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("docker {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Returns whether the engine is Podman, whose API is Docker's but for some answers.
pub fn is_podman() -> bool {
    docker(&["version", "--format", "{{range .Server.Components}}{{.Name}} {{end}}"]).contains("Podman")
}

/// Runs a command to its end, with nothing on its standard input.
pub fn output(command: &mut Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).output()
}

/// Waits until `happened` gives something.
///
/// # Panics
///
/// If it still has not after [`PATIENCE`].
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

/// Says that a story is not run, on the real standard error, which libtest does not capture.
///
/// # Panics
///
/// Where `CI` is `true`: there everything has to be run.
pub fn skip(why: &str) {
    let story = std::thread::current().name().unwrap_or("a story").to_owned();
    let line = format!("NOT RUN: {story}: {why}; `tests/docker/run` brings what is missing");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{line}");
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}

//! Hosts on a bridge, as Docker has them, made of network namespaces. The bridge has a namespace of
//! its own, so tests change neither the machine's network nor each other's, and can use the same
//! addresses.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::requirements::{Missing, find_program};

/// A host on the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The host of the gateway and the sidecar: 172.18.0.2.
    Gateway,
    /// Another container, which is to be an agent: 172.18.0.3.
    Agent,
    /// The host of a public front: 172.18.0.4.
    Front,
    /// Another client: 172.18.0.9, and 172.18.1.0 to 172.18.1.7 for tests with many clients.
    External,
}

impl Host {
    const ALL: [Host; 4] = [Host::Gateway, Host::Agent, Host::Front, Host::External];

    /// Its address on the bridge.
    pub fn address(self) -> &'static str {
        match self {
            Host::Gateway => "172.18.0.2",
            Host::Agent => "172.18.0.3",
            Host::Front => "172.18.0.4",
            Host::External => "172.18.0.9",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Host::Gateway => "gateway",
            Host::Agent => "agent",
            Host::Front => "front",
            Host::External => "external",
        }
    }
}

/// The bridge and its hosts. They are removed on drop.
pub struct Network {
    prefix: String,
}

impl Network {
    /// Creates the network.
    pub fn new() -> Result<Self, Missing> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        find_program("ip")?;
        if !nix::unistd::Uid::effective().is_root() {
            return Err(Missing("network namespaces need root".into()));
        }
        remove_leftovers();
        let network =
            Self { prefix: format!("loopgate-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)) };
        let bridge = network.namespace("bridge");
        ip(&format!("netns add {bridge}"))?;
        ip(&format!("-n {bridge} link add br0 type bridge"))?;
        ip(&format!("-n {bridge} link set br0 up"))?;
        for host in Host::ALL {
            let (name, own) = (host.name(), network.namespace(host.name()));
            ip(&format!("netns add {own}"))?;
            ip(&format!("-n {own} link set lo up"))?;
            ip(&format!("-n {bridge} link add {name} type veth peer name eth0 netns {own}"))?;
            ip(&format!("-n {bridge} link set {name} master br0 up"))?;
            ip(&format!("-n {own} address add {}/16 dev eth0", host.address()))?;
            ip(&format!("-n {own} link set eth0 up"))?;
        }
        for last in 0..8 {
            ip(&format!("-n {} address add 172.18.1.{last}/16 dev eth0", network.namespace(Host::External.name())))?;
        }
        Ok(network)
    }

    /// A command that will run on a host.
    pub fn command(&self, host: Host, program: impl AsRef<Path>) -> Command {
        self.command_wrapper(host, program.as_ref())()
    }

    /// A function that makes commands that will run on a host.
    pub fn command_wrapper(&self, host: Host, program: impl Into<PathBuf>) -> impl Fn() -> Command + 'static {
        let (file, program) = (self.file(host), program.into());
        move || {
            let mut command = Command::new("setpriv");
            // If the tests are killed, the kernel kills their processes on the hosts too.
            command.args(["--pdeathsig", "KILL", "nsenter"]).arg(format!("--net={file}")).arg("--").arg(&program);
            command
        }
    }

    /// Runs a closure on a host, so that its sockets belong to that host.
    pub fn run_on<T: Send + 'static>(
        &self,
        host: Host,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = File::open(self.file(host)).expect("a namespace");
        thread::spawn(move || {
            // `setns` moves only this thread, which ends with the closure.
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
            run()
        })
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn file(&self, host: Host) -> String {
        format!("/run/netns/{}", self.namespace(host.name()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in Host::ALL.map(Host::name).into_iter().chain(["bridge"]) {
            // The namespace may not exist, and then there is nothing to remove.
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(name)]).output();
        }
    }
}

/// Removes what killed tests have left; their processes have ended with them.
fn remove_leftovers() {
    let names = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    for name in names {
        // Namespaces of engines have a name in place of the process id.
        let owner = name.strip_prefix("loopgate-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

fn ip(arguments: &str) -> Result<(), Missing> {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().map_err(|error| Missing(format!("ip: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Missing(format!("`ip {arguments}`: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

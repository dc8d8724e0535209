//! The sides: how each is configured, started and stopped.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ClientConfig;
use serde::Serialize;

use crate::client::{Target, head};
use crate::process::Tree;
use crate::tls::Certificate;

/// A side that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// loopgate as it is shipped: compiled with a profile.
    Loopgate,
    /// loopgate as `cargo build --release` makes it.
    LoopgatePlain,
    /// nginx.
    Nginx,
    /// HAProxy in HTTP mode.
    Haproxy,
    /// HAProxy in TCP mode.
    HaproxyTcp,
    /// Caddy.
    Caddy,
    /// Traefik.
    Traefik,
    /// A bare copy loop on Tokio and rustls.
    NullTls,
    /// No proxy and no TLS.
    Direct,
}

impl Peer {
    /// Returns the side's name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().expect("no variant is skipped").get_name().to_owned()
    }

    /// Returns whether the side is a build of loopgate.
    pub fn is_loopgate(self) -> bool {
        matches!(self, Self::Loopgate | Self::LoopgatePlain)
    }

    /// Returns whether the side speaks HTTP/2 with clients.
    pub fn has_h2(self) -> bool {
        !matches!(self, Self::HaproxyTcp | Self::NullTls | Self::Direct)
    }

    /// Runs the side's program to get its version; `None` for a side that is this program or has
    /// none.
    pub fn version(self, programs: &Programs) -> Option<String> {
        let argument = match self {
            Self::Loopgate | Self::LoopgatePlain => "--version",
            Self::Nginx => "-V",
            Self::Haproxy | Self::HaproxyTcp => "-v",
            Self::Caddy | Self::Traefik => "version",
            Self::NullTls | Self::Direct => return None,
        };
        let output = Command::new(programs.file(self)?).arg(argument).output().ok()?;
        let printed = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&printed).lines().take(3).map(str::trim).collect::<Vec<_>>().join("; "))
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// loopgate as it is shipped, if it is there.
    pub loopgate: Option<PathBuf>,
    /// The plain build, if it is there.
    pub loopgate_plain: Option<PathBuf>,
    /// nginx.
    pub nginx: PathBuf,
    /// HAProxy.
    pub haproxy: PathBuf,
    /// Caddy.
    pub caddy: PathBuf,
    /// Traefik.
    pub traefik: PathBuf,
}

impl Programs {
    /// The executable file of `peer`; `None` if it has no process, or is a build of loopgate that
    /// is not there.
    pub fn file(&self, peer: Peer) -> Option<PathBuf> {
        match peer {
            Peer::Loopgate => self.loopgate.clone(),
            Peer::LoopgatePlain => self.loopgate_plain.clone(),
            Peer::Nginx => Some(self.nginx.clone()),
            Peer::Haproxy | Peer::HaproxyTcp => Some(self.haproxy.clone()),
            Peer::Caddy => Some(self.caddy.clone()),
            Peer::Traefik => Some(self.traefik.clone()),
            Peer::NullTls => std::env::current_exe().ok(),
            Peer::Direct => None,
        }
    }

    fn command(&self, peer: Peer) -> io::Result<Command> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no program for {}", peer.name()));
        self.file(peer).map(Command::new).ok_or_else(missing)
    }
}

/// What a side is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be measured under a load within its limits.
    Load,
    /// To be attacked. loopgate has its default limits.
    Attack,
    /// To be attacked with client certificates, which every side requests.
    CertificateAttack,
}

/// The address of the client that loopgate treats as an agent.
pub const AGENT: &str = "127.0.0.9";

/// What all sides share.
pub struct Surroundings {
    /// Where the programs are.
    pub programs: Programs,
    /// The directory with the files of this run.
    pub directory: PathBuf,
    /// The certificate of every side.
    pub certificate: Certificate,
    /// The backend of every side.
    pub backend: SocketAddr,
    /// The number of worker threads or processes of every side.
    pub workers: usize,
}

/// Options of one loopgate process.
#[derive(Default)]
pub struct Options {
    /// A number that no other process has at the same time.
    pub number: usize,
    /// The number of workers; by default that of the other sides.
    pub workers: Option<usize>,
    /// The address of the admin listener, which serves the metrics, if there is one.
    pub admin: Option<SocketAddr>,
    /// Further arguments.
    pub arguments: Vec<OsString>,
}

/// A running side.
pub struct Running {
    /// The side's address and the client's TLS configuration.
    pub target: Target,
    /// The side's processes; `None` for [`Peer::Direct`].
    pub tree: Option<Tree>,
    /// The time from exec to the first response over TLS.
    pub start: Duration,
    child: Option<Child>,
}

impl Surroundings {
    /// Starts `peer` on a free port and waits until it answers. Clients use `config`.
    ///
    /// # Errors
    /// It does not answer within ten seconds.
    pub async fn start(&self, peer: Peer, config: &Arc<ClientConfig>) -> io::Result<Running> {
        self.start_for(Purpose::Load, self.backend, peer, config).await
    }

    /// Does the same for `purpose`, with another backend.
    ///
    /// # Errors
    /// It does not answer within ten seconds.
    pub async fn start_for(
        &self,
        purpose: Purpose,
        backend: SocketAddr,
        peer: Peer,
        config: &Arc<ClientConfig>,
    ) -> io::Result<Running> {
        if peer == Peer::Direct {
            let target = Target { address: self.backend, tls: None };
            return Ok(Running { target, tree: None, start: Duration::ZERO, child: None });
        }
        let address = free_address()?;
        self.launch(&peer.name(), self.command(purpose, backend, peer, address)?, address, config).await
    }

    /// Starts `peer`, a build of loopgate, with `options`, and waits until it answers.
    ///
    /// # Errors
    /// It does not answer within ten seconds.
    pub async fn start_with(&self, options: &Options, peer: Peer, config: &Arc<ClientConfig>) -> io::Result<Running> {
        let (address, Certificate { chain, key, .. }) = (free_address()?, &self.certificate);
        let admin = options.admin.map_or_else(|| "off".to_owned(), |admin| admin.to_string());
        let mut command = self.programs.command(peer)?;
        command.args(["run", "--admin", &admin]).args(&options.arguments);
        command.args(["--gateway", &self.backend.to_string(), "--listen", &address.to_string()]);
        command.arg("--state-dir").arg(self.directory.join(format!("state-{}", options.number)));
        command.arg("--tls-cert").arg(chain).arg("--tls-key").arg(key);
        command.env("TOKIO_WORKER_THREADS", options.workers.unwrap_or(self.workers).to_string());
        self.launch(&format!("{}-{}", peer.name(), options.number), command, address, config).await
    }

    /// Starts `command`, which listens on `address`, and waits until it answers.
    async fn launch(
        &self,
        name: &str,
        mut command: Command,
        address: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> io::Result<Running> {
        let target = Target { address, tls: Some(Arc::clone(config)) };
        let log = self.directory.join(format!("{name}.log"));
        command.current_dir(&self.directory).stdin(Stdio::null());
        command.stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
        let began = Instant::now();
        let child = command.spawn()?;
        let pid = child.id();
        let mut running = Running { target, tree: None, start: Duration::ZERO, child: Some(child) };
        while !running.answers().await {
            let exited =
                running.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            if exited || began.elapsed() > Duration::from_secs(10) {
                let log = fs::read_to_string(&log).unwrap_or_default();
                return Err(io::Error::other(format!("{name} does not answer; it printed: {log}")));
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        running.start = began.elapsed();
        running.tree = Some(Tree::of(pid));
        Ok(running)
    }

    fn command(&self, purpose: Purpose, backend: SocketAddr, peer: Peer, address: SocketAddr) -> io::Result<Command> {
        let configuration = |name: &str, template: &str| self.configuration(name, template, purpose, backend, address);
        let Certificate { chain, key, .. } = &self.certificate;
        let mut command = self.programs.command(peer)?;
        match peer {
            Peer::Loopgate | Peer::LoopgatePlain => {
                command.args(["run", "--docker", "off", "--admin", "off", "--log-level", "warn"]);
                command.args(["--max-connections", "20000"]);
                match purpose {
                    Purpose::Load => {
                        command.args(["--max-connections-per-client", "20000"]);
                        command.args(["--gateway-requests", "100000", "--gateway-websockets", "100000"]);
                    }
                    Purpose::Attack => drop(command.args(["--agent-cidr", &format!("{AGENT}/32")])),
                    Purpose::CertificateAttack => {
                        command
                            .args(["--agent-cidr", &format!("{AGENT}/32"), "--client-ca"])
                            .arg(&self.certificate.ca_file);
                    }
                }
                command.args(["--gateway", &backend.to_string(), "--listen", &address.to_string()]);
                command.arg("--state-dir").arg(self.directory.join("state"));
                command.arg("--tls-cert").arg(chain).arg("--tls-key").arg(key);
                command.env("TOKIO_WORKER_THREADS", self.workers.to_string());
            }
            Peer::Nginx => {
                command.arg("-e").arg("stderr").arg("-p").arg(&self.directory);
                command.arg("-c").arg(configuration("nginx.conf", include_str!("../peers/nginx.conf"))?);
            }
            Peer::Haproxy => {
                command.arg("-db").arg("-f").arg(configuration("haproxy.cfg", include_str!("../peers/haproxy.cfg"))?);
            }
            Peer::HaproxyTcp => {
                let file = configuration("haproxy-tcp.cfg", include_str!("../peers/haproxy-tcp.cfg"))?;
                command.arg("-db").arg("-f").arg(file);
            }
            Peer::Caddy => {
                let file = configuration("Caddyfile", include_str!("../peers/Caddyfile"))?;
                command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
                command.env("GOMAXPROCS", self.workers.to_string()).env("HOME", &self.directory);
            }
            Peer::Traefik => {
                configuration("traefik-routes.yaml", include_str!("../peers/traefik-routes.yaml"))?;
                let file = configuration("traefik.yaml", include_str!("../peers/traefik.yaml"))?;
                command.arg("--configFile").arg(file).env("GOMAXPROCS", self.workers.to_string());
            }
            Peer::NullTls => {
                command.arg("null-tls").arg(address.to_string()).arg(self.backend.to_string()).arg(chain).arg(key);
                command.arg(self.workers.to_string());
            }
            Peer::Direct => unreachable!("has no process"),
        }
        Ok(command)
    }

    /// Writes the configuration file `name`, made from `template`; returns its path.
    fn configuration(
        &self,
        name: &str,
        template: &str,
        purpose: Purpose,
        backend: SocketAddr,
        address: SocketAddr,
    ) -> io::Result<PathBuf> {
        let Certificate { chain, key, both, ca_file, .. } = &self.certificate;
        let requests_certificates = purpose == Purpose::CertificateAttack;
        let if_requested = |text: String| if requests_certificates { text } else { String::new() };
        let path = |path: &Path| path.display().to_string();
        let mut text = template.to_owned();
        for (word, value) in [
            ("@DIRECTORY@", path(&self.directory)),
            ("@PORT@", address.port().to_string()),
            ("@BACKEND@", backend.to_string()),
            ("@WORKERS@", self.workers.to_string()),
            ("@CHAIN@", path(chain)),
            ("@KEY@", path(key)),
            ("@BOTH@", path(both)),
            (
                "@NGINX_VERIFY@",
                if_requested(format!("ssl_verify_client optional; ssl_client_certificate {};", path(ca_file))),
            ),
            ("@HAPROXY_VERIFY@", if_requested(format!("verify optional ca-file {}", path(ca_file)))),
        ] {
            text = text.replace(word, &value);
        }
        let file = self.directory.join(name);
        fs::write(&file, text)?;
        Ok(file)
    }
}

impl Running {
    async fn answers(&self) -> bool {
        let Ok(mut connection) = self.target.connect().await else { return false };
        connection.exchange(&head("GET", "/", "Connection: close\r\n")).await.is_ok()
    }

    /// Returns the CPU time so far; zero for [`Peer::Direct`].
    pub fn cpu(&self) -> Duration {
        self.tree.as_ref().map_or(Duration::ZERO, Tree::cpu)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        // SIGTERM comes first, so that nginx's master ends its workers. SIGKILL follows, because
        // HAProxy and loopgate wait for their open connections.
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_millis(500);
        while Instant::now() < deadline {
            if child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Returns a loopback address that is free now.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

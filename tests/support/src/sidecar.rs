//! `loopgate run` as a process: the one launcher for every test.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::fake_gateway::FakeGateway;
use crate::process::Process;
use crate::tls_client::TlsClient;

/// The address of a client that `agents.cidrs` makes an agent.
pub const AGENT: &str = "127.0.0.9";
/// The time limit of a start. It is enough for a busy machine.
const START: Duration = Duration::from_secs(30);
/// The name of the configuration file in the sidecar's directory.
const CONFIG: &str = "loopgate.toml";
/// The name of the state directory in the sidecar's directory.
const STATE: &str = "state";

/// Returns the binary under test: `TEST_BINARY`, or the one that Cargo has built with the tests.
pub fn binary() -> PathBuf {
    let given = ["TEST_BINARY", "CARGO_BIN_EXE_loopgate"].into_iter().find_map(std::env::var_os);
    let built = || {
        let test = std::env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join("loopgate")
    };
    let binary = given.map_or_else(built, PathBuf::from);
    assert!(binary.exists(), "{} does not exist; `cargo build` makes it", binary.display());
    binary
}

/// Returns a command that runs the binary, in an environment without variables of loopgate.
pub fn loopgate<T: Into<OsString>>(arguments: impl IntoIterator<Item = T>) -> Command {
    let mut command = without_variables(Command::new(binary()));
    command.args(arguments.into_iter().map(Into::into)).stdin(Stdio::null());
    command
}

fn without_variables(mut command: Command) -> Command {
    command.env_remove("TOKIO_WORKER_THREADS");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LOOPGATE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Returns a loopback address with a port that is free, and that this process gets only once.
///
/// It is below the ports that the kernel gives out for port 0 (`net.ipv4.ip_local_port_range`), so
/// no other test gets it before it is used.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let of_process = u16::try_from(std::process::id() % 120).expect("less than 120") * 100;
    loop {
        let port = 20_000 + (of_process + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// The options of a sidecar to start. Without further options the sidecar listens on a free port of
/// loopback, follows no engine, logs as JSON, and keeps its files in a temporary directory.
#[derive(Default)]
pub struct Launch {
    gateway: Option<SocketAddr>,
    flags: Vec<String>,
    config: String,
    setup: Option<String>,
    wrapper: Option<Wrapper>,
    directory: Option<PathBuf>,
}

/// Returns a command that runs its arguments as a program, for example on another host.
type Wrapper = Box<dyn Fn() -> Command>;

impl Launch {
    /// Returns the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the gateway's address.
    pub fn gateway(self, gateway: SocketAddr) -> Self {
        Self { gateway: Some(gateway), ..self }
    }

    /// Adds flags. A flag replaces a default of the same name.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Sets the text of the configuration file.
    pub fn config(self, text: &str) -> Self {
        Self { config: text.into(), ..self }
    }

    /// Runs the shell commands `setup` before the sidecar, for example to set limits and variables.
    pub fn after_setup(self, setup: &str) -> Self {
        Self { setup: Some(setup.into()), ..self }
    }

    /// Starts the sidecar with the command that `wrapper` returns, to which the binary and its
    /// arguments are added.
    pub fn with_wrapper(self, wrapper: impl Fn() -> Command + 'static) -> Self {
        Self { wrapper: Some(Box::new(wrapper)), ..self }
    }

    /// Keeps the sidecar's files in `directory`, and does not remove them.
    pub fn directory(self, directory: &Path) -> Self {
        Self { directory: Some(directory.into()), ..self }
    }

    fn spawn(self) -> Starting {
        let (path, directory) = match self.directory {
            Some(path) => (path, None),
            None => {
                let directory = tempfile::tempdir().unwrap();
                (directory.path().to_owned(), Some(directory))
            }
        };
        fs::create_dir_all(path.join(STATE)).unwrap();
        fs::write(path.join(CONFIG), self.config).unwrap();
        let name = |flag: &str| flag.split('=').next().unwrap_or_default().to_owned();
        let given: Vec<String> = self.flags.iter().map(|flag| name(flag)).collect();
        let admin = free_address();
        let mut defaults = vec![
            "--docker=off".to_owned(),
            "--log-format=json".into(),
            "--listen=127.0.0.1:0".into(),
            format!("--admin={admin}"),
            format!("--state-dir={}", path.join(STATE).display()),
            format!("--config={}", path.join(CONFIG).display()),
        ];
        defaults.retain(|default| !given.contains(&name(default)));
        defaults.extend(self.gateway.map(|gateway| format!("--gateway={gateway}")));
        let admin = match self.flags.iter().find_map(|flag| flag.strip_prefix("--admin=")) {
            None => Some(admin),
            Some("off") => None,
            Some(address) => Some(address.parse().unwrap()),
        };
        let arguments = [vec!["run".to_owned()], defaults, self.flags].concat();
        let command = match (self.setup, &self.wrapper) {
            (Some(setup), None) => {
                let mut shell = without_variables(Command::new("sh"));
                shell.arg("-c").arg(format!("{setup}; exec \"$0\" \"$@\"")).arg(binary()).args(arguments);
                shell
            }
            (_, Some(wrapper)) => {
                let mut command = wrapper();
                command.args(arguments);
                command
            }
            (None, None) => loopgate(arguments),
        };
        let process = Process::start("loopgate", command, &path.join("log"));
        Starting { process, admin, path, directory, wrapper: self.wrapper }
    }

    /// Starts the sidecar and waits until it is ready. Without an admin listener, waits only until
    /// it runs. Blocks.
    pub fn start(self) -> Sidecar {
        let mut starting = self.spawn();
        let wrapper = starting.wrapper.take();
        let line = starting.process.wait_for_log_blocking(RUNNING);
        let sidecar = starting.running(&line);
        if sidecar.admin.is_some() {
            sidecar.wait_until_ready(wrapper);
        }
        sidecar
    }

    /// Starts the sidecar and waits until it runs.
    pub async fn start_async(self) -> Sidecar {
        let starting = self.spawn();
        let line = starting.process.wait_for_log(RUNNING).await;
        starting.running(&line)
    }

    /// Starts the sidecar in front of a fake gateway, with [`AGENT`] as an agent and without an
    /// admin listener, and waits until it runs.
    pub async fn start_with_gateway(self) -> SidecarWithGateway {
        let gateway = FakeGateway::start().await;
        let agents = format!("--agent-cidr={AGENT}/32");
        let mut flags = vec![agents.as_str()];
        flags.extend(Some("--admin=off").filter(|_| !self.flags.iter().any(|flag| flag.starts_with("--admin="))));
        let sidecar = self.gateway(gateway.address).flags(&flags).start_async().await;
        SidecarWithGateway { sidecar, gateway }
    }
}

/// The log message of a sidecar that has begun to listen.
const RUNNING: &str = "loopgate is running";

struct Starting {
    process: Process,
    admin: Option<SocketAddr>,
    path: PathBuf,
    directory: Option<TempDir>,
    wrapper: Option<Wrapper>,
}

impl Starting {
    fn running(self, line: &str) -> Sidecar {
        let Self { process, admin, path, directory, .. } = self;
        let listening = match serde_json::from_str::<Value>(line) {
            Ok(line) => line["listening"].as_str().unwrap().to_owned(),
            Err(_) => line
                .split_once("listening=\"")
                .and_then(|(_, rest)| rest.split('"').next())
                .unwrap_or_default()
                .to_owned(),
        };
        let address = listening.split(',').next().and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address to connect to in {line}"));
        let ca = path.join(STATE).join("ca.pem");
        // If the test provides the certificate, there is no CA in the state directory.
        let client = ca.exists().then(|| TlsClient::with_ca_file(address, &ca));
        Sidecar { process, address, admin, client, path, _directory: directory }
    }
}

/// A running sidecar. It is killed on drop.
pub struct Sidecar {
    process: Process,
    /// The first address that the sidecar listens on.
    pub address: SocketAddr,
    admin: Option<SocketAddr>,
    client: Option<TlsClient>,
    path: PathBuf,
    _directory: Option<TempDir>,
}

impl std::ops::Deref for Sidecar {
    type Target = TlsClient;

    fn deref(&self) -> &TlsClient {
        self.client.as_ref().expect("a sidecar with a CA of its own")
    }
}

impl Sidecar {
    /// Returns the sidecar's process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Returns the path of the configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// Returns the path of the state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// Returns the path of the CA's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.state_dir().join("ca.pem")
    }

    /// Returns the address of the admin listener.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.expect("a sidecar with an admin listener")
    }

    fn wait_until_ready(&self, wrapper: Option<Wrapper>) {
        let mut command = wrapper.map_or_else(|| loopgate([""; 0]), |wrapper| wrapper());
        command.args(["healthcheck", &format!("--admin={}", self.admin_address())]).stdin(Stdio::null());
        self.process.wait_until("ready", START, || {
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
    }

    /// Returns the whole response of the admin listener to `GET path`.
    pub fn admin_get(&self, path: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(self.admin_address()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Runs `loopgate status` for this sidecar.
    pub fn run_status(&self, arguments: &[&str]) -> Output {
        loopgate([&["status"], arguments].concat())
            .env("LOOPGATE_ADMIN", self.admin_address().to_string())
            .output()
            .unwrap()
    }

    /// Returns the output of `loopgate status --json`.
    pub fn status_json(&self) -> Value {
        let output = self.run_status(&["--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until `loopgate status --json` satisfies `condition`.
    pub fn wait_for_status(&self, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status_json();
            if condition(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:#}");
        }
    }

    /// Stops the sidecar as Docker does, and asserts that it ends with success.
    pub fn stop(self) {
        let status = self.process.stop(Duration::from_secs(15));
        assert!(status.success(), "loopgate ended with {status} on SIGTERM:\n{}", self.process.output());
    }
}

/// A running sidecar and the fake gateway behind it.
pub struct SidecarWithGateway {
    pub sidecar: Sidecar,
    pub gateway: FakeGateway,
}

impl std::ops::Deref for SidecarWithGateway {
    type Target = Sidecar;

    fn deref(&self) -> &Sidecar {
        &self.sidecar
    }
}

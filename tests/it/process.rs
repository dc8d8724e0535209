//! The sidecar as a process of its own, for what only a process shows: its memory, its log, signals and the exit status.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::gateway::Gateway;
use crate::house::{AGENT, Door};

/// Longer than anything that a process does in a story.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Process {
    pub gateway: Gateway,
    pub state: TempDir,
    door: Door,
    child: Child,
    said: Said,
}

/// What a process has said so far, line by line.
pub struct Said {
    lines: Arc<Mutex<Vec<String>>>,
    count: watch::Receiver<usize>,
}

impl std::ops::Deref for Process {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.door
    }
}

impl Process {
    /// `loopgate run` before a gateway of its own, with these flags too and with `file` as its configuration file.
    pub async fn start(flags: &[&str], file: &str) -> Self {
        Self::start_after(":", flags, file).await
    }

    /// The same after a shell has run `setup`, which can set limits.
    pub async fn start_after(setup: &str, flags: &[&str], file: &str) -> Self {
        let gateway = Gateway::start().await;
        let state = tempfile::tempdir().unwrap();
        let config = state.path().join("loopgate.toml");
        std::fs::write(&config, file).unwrap();
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("{setup}; exec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_loopgate"))
            .args(["run", "--listen=127.0.0.1:0", "--log-format=json"])
            .args(["--admin=off", "--docker=off"].iter().filter(|default| !flags.iter().any(|flag| names_the_same(flag, default))))
            .arg(format!("--gateway={}", gateway.address))
            .arg(format!("--agent-cidr={AGENT}/32"))
            .arg(format!("--state-dir={}", state.path().join("state").display()))
            .arg(format!("--config={}", config.display()))
            .args(flags)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let said = Said::by(child.stderr.take().unwrap());
        let running: serde_json::Value = serde_json::from_str(&said.line_with("loopgate is running").await).unwrap();
        let address = running["listening"].as_str().unwrap().parse().unwrap();
        let ca = CertificateDer::from_pem_file(state.path().join("state/ca.pem")).unwrap();
        Self { gateway, state, door: Door::new(address, ca), child, said }
    }

    /// Its configuration file.
    pub fn file(&self) -> std::path::PathBuf {
        self.state.path().join("loopgate.toml")
    }

    /// Waits for a line of the log that holds `text`, and returns it.
    pub async fn says(&self, text: &str) -> String {
        self.said.line_with(text).await
    }

    /// Everything that it has said.
    pub fn log(&self) -> Vec<String> {
        self.said.all()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id().expect("it is running")).unwrap())
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("the process ends").unwrap()
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> usize {
        let statm = std::fs::read_to_string(Path::new("/proc").join(self.pid().to_string()).join("statm")).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
}

/// Whether two flags, with their values, are the same but for the value.
fn names_the_same(one: &str, other: &str) -> bool {
    let name = |flag: &str| flag.split('=').next().map(str::to_owned);
    name(one) == name(other)
}

impl Said {
    /// Listens to what comes out of `stderr`, to its end.
    pub fn by(stderr: ChildStderr) -> Self {
        let (tell, count) = watch::channel(0);
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let mut reader = BufReader::new(stderr).lines();
        let kept = Arc::clone(&lines);
        loopgate::shutdown::Shutdown::new().spawn(async move {
            while let Ok(Some(line)) = reader.next_line().await {
                kept.lock().unwrap().push(line);
                tell.send_modify(|count| *count += 1);
            }
        });
        Self { lines, count }
    }

    /// Every line.
    pub fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a line that holds `text`, and returns it.
    pub async fn line_with(&self, text: &str) -> String {
        let mut count = self.count.clone();
        let looking = async {
            loop {
                count.borrow_and_update();
                let found = self.lines.lock().unwrap().iter().find(|line| line.contains(text)).cloned();
                match found {
                    Some(line) => return line,
                    None => count.changed().await.unwrap_or_else(|_| panic!("the log ended without {text:?}: {:#?}", self.lines)),
                }
            }
        };
        timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("nobody said {text:?}: {:#?}", self.lines))
    }
}

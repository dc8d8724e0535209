//! `loopgate agent` and `loopgate exec` as processes of a pod, at the pod's address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::process::Process;
use crate::raw_http::RawHttp;
use crate::sidecar::loopgate;
use crate::tls_client::TlsClient;

/// A pod in which `loopgate` runs.
pub struct Pod<'a> {
    /// A client of the sidecar that the pod uses.
    pub client: &'a TlsClient,
    /// The pod's address.
    pub source: &'a str,
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The service account's token.
    pub token: &'a Path,
}

/// A running `loopgate agent`. It is killed on drop.
pub struct AgentProcess {
    address: SocketAddr,
    /// The process.
    pub process: Process,
    _directory: TempDir,
}

impl Pod<'_> {
    async fn loopgate(&self, command: &str, arguments: &[&str]) -> Command {
        let mut command = loopgate([command, "--listen=127.0.0.1:0", "--server-name=localhost"]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/nowhere");
        command
            .arg(format!("--sidecar={}", self.client.start_forwarder(self.source).await))
            .arg(format!("--ca={}", self.ca.display()));
        command.arg(format!("--kubernetes-token={}", self.token.display())).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts `loopgate agent`, which has no certificate yet.
    pub async fn start_agent(&self) -> AgentProcess {
        let directory = tempfile::tempdir().unwrap();
        let command = self.loopgate("agent", &["--log-format=json", "--log-level=trace"]).await;
        let process = Process::start("loopgate agent", command, &directory.path().join("log"));
        let line: Value = serde_json::from_str(&process.wait_for_log("local clients may connect").await).unwrap();
        AgentProcess { address: line["address"].as_str().unwrap().parse().unwrap(), process, _directory: directory }
    }

    /// Runs `script` with `loopgate exec`, which gives up soon if it can't reach the gateway.
    pub async fn exec(&self, script: &str) -> Output {
        let arguments = ["--wait=2s", "--no-pair", "--log-level=trace", "--", "sh", "-c", script];
        let mut command = self.loopgate("exec", &arguments).await;
        let run = tokio::task::spawn_blocking(move || command.output());
        tokio::time::timeout(Duration::from_secs(30), run).await.expect("loopgate exec ends").unwrap().unwrap()
    }
}

impl AgentProcess {
    /// Opens a connection of a program in the pod.
    pub async fn connect_h1(&self) -> RawHttp<TcpStream> {
        RawHttp::new(TcpStream::connect(self.address).await.unwrap())
    }
}

//! The agent's side as the process that it is in a pod, at the pod's address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use loopgate::agent::Credentials;
use loopgate::agent::enrol::{Error, converse_by_token};
use loopgate::attest::{ALPN, Reason};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::house::Door;
use crate::process::Said;
use crate::wire::Wire;

/// Enrols from `source` with `token`.
pub async fn enrol(door: &Door, source: &str, token: &str) -> Result<Arc<Credentials>, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), token).unwrap();
    let stream = door.handshake(door.tcp(source).await, std::str::from_utf8(ALPN).unwrap()).await.unwrap();
    converse_by_token(stream, file.path()).await.map(|(credentials, _)| credentials)
}

/// Why that is refused.
pub async fn refusal(door: &Door, source: &str, token: &str) -> Reason {
    match enrol(door, source, token).await {
        Err(Error::Refused(refused)) => refused.error,
        other => panic!("{other:?}"),
    }
}

/// A pod as its programs have it: its address and what is mounted into it.
pub struct Inside<'a> {
    pub door: &'a Door,
    /// The pod's address.
    pub source: &'a str,
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The service account's token.
    pub token: &'a Path,
}

/// `loopgate agent`, until it is dropped.
pub struct Agent {
    address: SocketAddr,
    pub said: Said,
    _child: Child,
}

impl Inside<'_> {
    async fn loopgate(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/nowhere").kill_on_drop(true);
        command.arg(words[0]).args(["--listen=127.0.0.1:0", "--server-name=localhost"]);
        command.arg(format!("--sidecar={}", self.door.road(self.source).await)).arg(format!("--ca={}", self.ca.display()));
        command.arg(format!("--kubernetes-token={}", self.token.display())).args(&words[1..]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts `loopgate agent`, which has no certificate yet.
    pub async fn agent(&self) -> Agent {
        let mut child = self.loopgate(&["agent", "--log-format=json", "--log-level=trace"]).await.spawn().unwrap();
        let said = Said::by(child.stderr.take().unwrap());
        let line: serde_json::Value = serde_json::from_str(&said.line_with("local clients may connect").await).unwrap();
        Agent { address: line["address"].as_str().unwrap().parse().unwrap(), said, _child: child }
    }

    /// Runs `script` by `loopgate exec`, which gives up soon where there is no way to the gateway.
    pub async fn exec(&self, script: &str) -> Output {
        let words = ["exec", "--wait=2s", "--no-pair", "--log-level=trace", "--", "sh", "-c", script];
        timeout(Duration::from_secs(30), self.loopgate(&words).await.output()).await.expect("it ends").unwrap()
    }
}

impl Agent {
    /// The connection of a program in the pod.
    pub async fn h1(&self) -> Wire<TcpStream> {
        Wire::new(TcpStream::connect(self.address).await.unwrap())
    }
}

//! A Kubernetes API server on loopback for one test, and the etcd that stores its objects. There is
//! no kubelet and no controller: the tests do their work.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use loopgate_test_support::raw_http::RawHttp;
use loopgate_test_support::tls_client::TlsClient;

/// How long a test waits for a condition. The limit is high because an API server can take minutes
/// to start on a busy machine; a test that passes doesn't wait for it.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// The bearer token of a cluster administrator.
pub const ADMIN: &str = "the-token-of-an-administrator";

/// A running API server and its etcd. Dropping it kills both processes.
pub struct Cluster {
    directory: TempDir,
    binaries: PathBuf,
    flags: &'static [&'static str],
    etcd: Option<Child>,
    api: Option<Child>,
    etcd_address: SocketAddr,
    /// The API server's address.
    pub address: SocketAddr,
    client: TlsClient,
}

impl Cluster {
    /// Starts a cluster and waits until it serves. If its binaries are missing, prints that the
    /// test does not run and returns `None`.
    pub async fn start() -> Option<Self> {
        Self::start_with_flags(&[]).await
    }

    /// Does the same as `start`, with additional flags for the API server.
    pub async fn start_with_flags(flags: &'static [&'static str]) -> Option<Self> {
        let Some(binaries) = std::env::var_os("TEST_KUBERNETES") else {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            writeln!(std::io::stderr(), "NOT RUN: {test}: `tests/run kubernetes` installs what it needs")
                .expect("standard error");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let ca = write_credentials(directory.path());
        let mut cluster = Self {
            binaries: PathBuf::from(binaries).join("bin"),
            flags,
            etcd: None,
            api: None,
            etcd_address: free_address(),
            address: free_address(),
            client: TlsClient::new(free_address(), ca),
            directory,
        };
        cluster.start_etcd();
        cluster.start_api_server().await;
        Some(cluster)
    }

    /// The path of the file `name` in the cluster's temporary directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn spawn(&self, program: &str, flags: &[String]) -> Child {
        let log =
            std::fs::File::options().create(true).append(true).open(self.file(&format!("{program}.log"))).unwrap();
        let mut command = Command::new(self.binaries.join(program));
        command.args(flags).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
        command.spawn().unwrap()
    }

    fn start_etcd(&mut self) {
        let (data, etcd_address, peers) = (self.file("etcd"), self.etcd_address, free_address());
        // The data need not survive a power failure.
        self.etcd = Some(self.spawn(
            "etcd",
            &[
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls=http://{etcd_address}"),
                format!("--advertise-client-urls=http://{etcd_address}"),
                format!("--listen-peer-urls=http://{peers}"),
                "--unsafe-no-fsync".into(),
            ],
        ));
    }

    /// Starts the API server, on the same port each time, and waits until it serves.
    pub async fn start_api_server(&mut self) {
        let file = |name: &str| self.file(name).display().to_string();
        let mut flags = vec![
            format!("--etcd-servers=http://{}", self.etcd_address),
            format!("--secure-port={}", self.address.port()),
            format!("--tls-cert-file={}", file("api.crt")),
            format!("--tls-private-key-file={}", file("api.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            format!("--service-account-key-file={}", file("accounts.pub")),
        ];
        let constant = [
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--insecure-port=0",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
        ];
        flags.extend(constant.iter().chain(self.flags).map(|flag| (*flag).to_owned()));
        self.api = Some(self.spawn("kube-apiserver", &flags));
        let deadline = Instant::now() + PATIENCE;
        while !matches!(self.try_request(ADMIN, "GET", "/readyz", None).await, Some((200, _))) {
            let log = std::fs::read_to_string(self.file("kube-apiserver.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the API server does not start:\n{log}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops the API server, as an update does.
    pub async fn stop_api_server(&mut self) {
        let mut api = self.api.take().expect("the API server runs");
        signal(&api, Signal::SIGTERM);
        if timeout(Duration::from_secs(20), api.wait()).await.is_err() {
            api.kill().await.unwrap();
        }
    }

    /// Deletes the object that etcd has under `key` so that the API server never gets the event:
    /// the API server is stopped meanwhile, and etcd compacts its history before it continues.
    pub async fn delete_unnoticed(&mut self, key: &str) {
        let api = self.api.take().expect("the API server runs");
        signal(&api, Signal::SIGSTOP);
        self.etcd.take().expect("etcd runs").kill().await.unwrap();
        self.start_etcd();
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.etcd_address).await.is_err() {
            assert!(Instant::now() < deadline, "etcd does not start");
            sleep(Duration::from_millis(50)).await;
        }
        let deleted = self.call_etcd("deleterange", &json!({"key": BASE64_STANDARD.encode(key)})).await;
        assert_eq!(deleted["deleted"], "1", "{deleted}");
        let put = json!({"key": BASE64_STANDARD.encode("/later"), "value": ""});
        self.call_etcd("put", &put).await;
        let now = self.call_etcd("put", &put).await["header"]["revision"].clone();
        self.call_etcd("compaction", &json!({"revision": now, "physical": true})).await;
        signal(&api, Signal::SIGCONT);
        self.api = Some(api);
    }

    /// Calls the function `what` of etcd's key-value API, and waits until etcd answers it.
    async fn call_etcd(&self, what: &str, body: &Value) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stream = TcpStream::connect(self.etcd_address).await.unwrap();
            match exchange(stream, "POST", &format!("/v3/kv/{what}"), "", Some(body)).await {
                Some((200, answer)) => return answer,
                // Until etcd has a leader, it answers with an error.
                other => assert!(Instant::now() < deadline, "{what}: {other:?}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn try_request(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let stream = TcpStream::connect(self.address).await.ok()?;
        let stream = self.client.handshake(stream, "http/1.1").await.ok()?;
        exchange(stream, method, path, &format!("Authorization: Bearer {token}\r\n"), body).await
    }

    /// Sends a request with `token`, and returns the API server's status code and body.
    pub async fn request(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_request(token, method, path, body).await.expect("the API server answers")
    }

    /// Sends a request as the administrator, fails unless it succeeds, and returns the body.
    async fn request_ok(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.request(ADMIN, method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer:#}");
        answer
    }

    pub async fn get(&self, path: &str) -> Value {
        self.request_ok("GET", path, None).await
    }

    pub async fn create(&self, path: &str, object: &Value) -> Value {
        self.request_ok("POST", path, Some(object)).await
    }

    pub async fn patch(&self, path: &str, change: &Value) -> Value {
        self.request_ok("PATCH", path, Some(change)).await
    }

    pub async fn delete(&self, path: &str) -> Value {
        self.request_ok("DELETE", path, None).await
    }

    /// Writes a kubeconfig with the administrator's token for this API server, and returns its
    /// path.
    pub fn kubeconfig(&self) -> PathBuf {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("https://{}", self.address),
                "certificate-authority": self.file("ca.crt")}}],
            "users": [{"name": "u", "user": {"token": ADMIN}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        let path = self.file("kubeconfig");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }
}

/// Sends one request on `stream`, which it closes, and returns the status code and body of the
/// response; `None` if the connection breaks.
async fn exchange<S>(stream: S, method: &str, path: &str, fields: &str, body: Option<&Value>) -> Option<(u16, Value)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut wire = RawHttp::new(stream);
    let body = body.map(Value::to_string).unwrap_or_default();
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n",
        body.len()
    );
    wire.send(format!("{head}{fields}Connection: close\r\n\r\n{body}")).await.ok()?;
    let response = wire.read_response().await?;
    Some((response.status(), serde_json::from_slice(&response.body).unwrap_or_default()))
}

/// Writes the API server's certificate, the key of service-account tokens and the administrator's
/// token into `directory`; returns the CA certificate.
fn write_credentials(directory: &Path) -> rustls::pki_types::CertificateDer<'static> {
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    write("ca.crt", &ca.pem());
    write("api.crt", &leaf.pem());
    write("api.key", &key.serialize_pem());
    let accounts = KeyPair::generate().unwrap();
    write("accounts.key", &accounts.serialize_pem());
    write("accounts.pub", &accounts.public_key_pem());
    write("tokens.csv", &format!("{ADMIN},admin,admin,system:masters\n"));
    ca.der().clone()
}

/// An address of loopback on which no program listens at the moment.
pub fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().expect("the process runs");
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

//! A release of the chart, and the sidecar as the chart has it run: by its variables, and with what
//! the kubelet would mount into it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Duration, Instant, sleep};

use crate::cluster::{Cluster, PATIENCE, free_address};
use crate::pods::{NAMESPACE, path};
use loopgate_test_support::sidecar::{Launch, SidecarWithGateway};

/// What the release `claw` calls its objects.
pub const NAME: &str = "claw-loopgate";
/// The volume that the chart has for the sidecar's way to the API server.
pub const ACCESS: &str = "loopgate-api-access";

/// Fields end in this order.
pub struct ChartRelease {
    pub sidecar: SidecarWithGateway,
    admin: SocketAddr,
    /// What its container says of discovery, with what is elsewhere here.
    variables: Vec<(String, String)>,
    /// The pod that the StatefulSet wants.
    pub pod: Value,
    /// What is mounted for the way to the API server.
    pub credentials: TempDir,
    pub cluster: Cluster,
}

impl ChartRelease {
    /// Has Helm install the chart with these values, beside what stories need, and runs the sidecar
    /// that it describes. There is a service account `builder` too.
    pub async fn start(cluster: Cluster, values: &[&str]) -> Self {
        helm(&cluster, values).await;
        cluster.account("builder").await;
        let set = cluster.get(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{NAME}")).await;
        let mut pod = set["spec"]["template"].clone();
        pod["metadata"]["name"] = format!("{NAME}-0").into();
        let pod = cluster.run(&pod, "192.0.2.5").await;
        let credentials = tempfile::tempdir().unwrap();
        cluster.project(&pod, ACCESS, credentials.path()).await;

        let containers = pod["spec"]["containers"].as_array().unwrap();
        let container = containers.iter().find(|container| container["name"] == "loopgate").expect("the sidecar");
        let said = container["env"].as_array().unwrap().iter().map(|variable| {
            let text = |key: &str| variable[key].as_str().unwrap_or_default().to_owned();
            (text("name"), text("value"))
        });
        let of_discovery = |name: &str| {
            name == "LOOPGATE_DISCOVERY" || name == "LOOPGATE_DOCKER" || name.starts_with("LOOPGATE_KUBERNETES_")
        };
        let mut variables: Vec<_> = said.filter(|(name, _)| of_discovery(name)).collect();
        variables.extend([
            ("LOOPGATE_KUBERNETES_CREDENTIALS".to_owned(), credentials.path().display().to_string()),
            ("KUBERNETES_SERVICE_HOST".to_owned(), "127.0.0.1".to_owned()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), cluster.address.port().to_string()),
        ]);
        let admin = free_address();
        // The name is the one that stories ask for: what an agent asks of another may have come
        // from a page in its browser.
        let more = [
            format!("--admin={admin}"),
            "--log-level=loopgate=debug".to_owned(),
            "--tls-name=gateway.example".to_owned(),
        ];
        let given: Vec<&str> = more.iter().map(String::as_str).collect();
        let setup: Vec<String> = variables.iter().map(|(name, value)| format!("export {name}='{value}'")).collect();
        let sidecar = Launch::new().after(&setup.join("; ")).flags(&given).start_with_gateway().await;
        let release = Self { sidecar, admin, variables, pod, credentials, cluster };
        release.until("it follows the API server", |status| status["discovery"]["kubernetes"] == "live").await;
        release
    }

    /// `helm upgrade` with these values.
    pub async fn upgrade(&self, values: &[&str]) {
        helm(&self.cluster, values).await;
    }

    /// Where the certificate of the sidecar's CA is.
    pub fn ca(&self) -> PathBuf {
        self.sidecar.ca()
    }

    async fn loopgate(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate"));
        command.args(words).env("LOOPGATE_ADMIN", self.admin.to_string()).stdin(Stdio::null()).kill_on_drop(true);
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command.output().await.unwrap()
    }

    /// What `loopgate status` prints.
    pub async fn status(&self) -> String {
        String::from_utf8(self.loopgate(&["status"]).await.stdout).unwrap()
    }

    /// Waits until `loopgate status --json` is such.
    pub async fn until(&self, what: &str, such: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = serde_json::from_slice(&self.loopgate(&["status", "--json"]).await.stdout).unwrap_or_default();
            if such(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "not so in time: {what}: {status:#}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until discovery has failed with these words.
    pub async fn until_error(&self, words: &str) {
        self.until(words, |status| status["discovery"]["error"].as_str().is_some_and(|error| error.contains(words)))
            .await;
    }

    /// Waits until these and no others are agents.
    pub async fn until_agents(&self, names: &[&str]) {
        let such = |status: &Value| {
            let agents = status["agents"].as_array().into_iter().flatten();
            status["discovery"]["kubernetes"] == "live"
                && agents.map(|agent| agent["container"].as_str().unwrap()).eq(names.iter().copied())
        };
        self.until(&format!("agents are {names:?}"), such).await;
    }

    /// What `loopgate check` finds, run where the sidecar runs and without a word about it, as the
    /// chart's notes have it.
    pub async fn check(&self) -> Value {
        let output = self.loopgate(&["check", "--json"]).await;
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    /// Has a pod run at `address`, with its token in a file of the directory that is returned with it.
    pub async fn run(&self, pod: &Value, address: &str) -> (Value, TempDir) {
        let pod = self.cluster.run(pod, address).await;
        let mounted = tempfile::tempdir().unwrap();
        self.cluster.project(&pod, "loopgate-token", mounted.path()).await;
        (pod, mounted)
    }

    /// Deletes a pod; the API server has answered when this is done.
    pub async fn delete(&self, name: &str) {
        self.cluster.delete(&path(&format!("pods/{name}"))).await;
    }
}

/// `helm upgrade --install` of the release `claw`.
async fn helm(cluster: &Cluster, values: &[&str]) {
    let set: Vec<&str> = values.iter().flat_map(|value| ["--set", *value]).collect();
    let always = ["--set", "agents.discovery=kubernetes,sidecar.native=false,persistence.enabled=false"];
    install(cluster, "claw", &[&always, set.as_slice()].concat()).await;
}

/// `helm upgrade --install` of the chart as `release`, with these arguments.
pub async fn install(cluster: &Cluster, release: &str, arguments: &[&str]) {
    // The API server is older than what the chart wants, which is why it must do without native
    // sidecars, and older than the chart admits to.
    let chart = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").args(["-r", "charts/loopgate/."]).arg(chart.path()).status().await.unwrap();
    assert!(copied.success());
    let about = std::fs::read_to_string(chart.path().join("Chart.yaml")).unwrap();
    let about: String =
        about.lines().filter(|line| !line.starts_with("kubeVersion:")).map(|line| format!("{line}\n")).collect();
    std::fs::write(chart.path().join("Chart.yaml"), about).unwrap();
    let chart = chart.path().to_str().unwrap();
    ask_helm(cluster, &[&["upgrade", "--install", "--create-namespace", release, chart], arguments].concat()).await;
}

/// `helm` with these words.
pub async fn ask_helm(cluster: &Cluster, words: &[&str]) {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::var_os("TEST_HELM").expect("`tests/run kubernetes` sets it"));
    command
        .args(words)
        .args(["--namespace", NAMESPACE, "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .env("HOME", home.path());
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "helm {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A rule of RBAC, as reviews have it.
pub fn rule(verbs: &[&str], group: &str, resource: &str) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": [resource]})
}

//! A release of the chart, and a sidecar that runs as in the chart's pod: with the variables of its
//! container and the files that the kubelet would mount into it.

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

/// The name of the objects of the release `claw`.
pub const NAME: &str = "claw-loopgate";
/// The volume with the sidecar's credentials for the API server.
pub const ACCESS: &str = "loopgate-api-access";

/// An installed release and its sidecar. The order of the fields is the order in which they are
/// dropped.
pub struct ChartRelease {
    pub sidecar: SidecarWithGateway,
    admin: SocketAddr,
    /// The container's variables for discovery, with the addresses and paths of this test.
    variables: Vec<(String, String)>,
    /// The pod of the StatefulSet's template, as the API server has it.
    pub pod: Value,
    /// The directory that stands for the mounted volume [`ACCESS`].
    pub credentials: TempDir,
    pub cluster: Cluster,
}

impl ChartRelease {
    /// Installs the chart with Helm, with these values and those that every test needs, and runs
    /// the sidecar that it describes. Also creates a service account `builder`.
    pub async fn start(cluster: Cluster, values: &[&str]) -> Self {
        helm(&cluster, values).await;
        cluster.create_account("builder").await;
        let set = cluster.get(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{NAME}")).await;
        let mut pod = set["spec"]["template"].clone();
        pod["metadata"]["name"] = format!("{NAME}-0").into();
        let pod = cluster.run_pod(&pod, "192.0.2.5").await;
        let credentials = tempfile::tempdir().unwrap();
        cluster.write_projected_volume(&pod, ACCESS, credentials.path()).await;

        let containers = pod["spec"]["containers"].as_array().unwrap();
        let container = containers.iter().find(|container| container["name"] == "loopgate").expect("the sidecar");
        let set = container["env"].as_array().unwrap().iter().map(|variable| {
            let text = |key: &str| variable[key].as_str().unwrap_or_default().to_owned();
            (text("name"), text("value"))
        });
        let is_for_discovery = |name: &str| {
            name == "LOOPGATE_DISCOVERY" || name == "LOOPGATE_DOCKER" || name.starts_with("LOOPGATE_KUBERNETES_")
        };
        let mut variables: Vec<_> = set.filter(|(name, _)| is_for_discovery(name)).collect();
        variables.extend([
            ("LOOPGATE_KUBERNETES_CREDENTIALS".to_owned(), credentials.path().display().to_string()),
            ("KUBERNETES_SERVICE_HOST".to_owned(), "127.0.0.1".to_owned()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), cluster.address.port().to_string()),
        ]);
        let admin = free_address();
        // Tests send requests to this name. An agent's request to a name that the certificate lacks
        // could come from a page in its browser, and is treated as external.
        let always = [
            format!("--admin={admin}"),
            "--log-level=loopgate=debug".to_owned(),
            "--tls-name=gateway.example".to_owned(),
        ];
        let given: Vec<&str> = always.iter().map(String::as_str).collect();
        let setup: Vec<String> = variables.iter().map(|(name, value)| format!("export {name}='{value}'")).collect();
        let sidecar = Launch::new().after_setup(&setup.join("; ")).flags(&given).start_with_gateway().await;
        let release = Self { sidecar, admin, variables, pod, credentials, cluster };
        release
            .wait_for_status("the sidecar follows the API server", |status| status["discovery"]["kubernetes"] == "live")
            .await;
        release
    }

    /// `helm upgrade` with these values.
    pub async fn upgrade(&self, values: &[&str]) {
        helm(&self.cluster, values).await;
    }

    /// The path of the certificate of the sidecar's CA.
    pub fn ca(&self) -> PathBuf {
        self.sidecar.ca_file()
    }

    async fn loopgate(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate"));
        command.args(arguments).env("LOOPGATE_ADMIN", self.admin.to_string()).stdin(Stdio::null()).kill_on_drop(true);
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command.output().await.unwrap()
    }

    /// What `loopgate status` prints.
    pub async fn status(&self) -> String {
        String::from_utf8(self.loopgate(&["status"]).await.stdout).unwrap()
    }

    /// Waits until the output of `loopgate status --json` satisfies `condition`, and returns it.
    pub async fn wait_for_status(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = serde_json::from_slice(&self.loopgate(&["status", "--json"]).await.stdout).unwrap_or_default();
            if condition(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "timed out: {what}: {status:#}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the status has an error of discovery that contains `words`.
    pub async fn wait_for_discovery_error(&self, words: &str) {
        self.wait_for_status(words, |status| {
            status["discovery"]["error"].as_str().is_some_and(|error| error.contains(words))
        })
        .await;
    }

    /// Waits until exactly these pods are agents.
    pub async fn wait_for_agents(&self, names: &[&str]) {
        let condition = |status: &Value| {
            let agents = status["agents"].as_array().into_iter().flatten();
            status["discovery"]["kubernetes"] == "live"
                && agents.map(|agent| agent["container"].as_str().unwrap()).eq(names.iter().copied())
        };
        self.wait_for_status(&format!("agents are {names:?}"), condition).await;
    }

    /// Returns the report of `loopgate check --json`, which runs with the container's variables and
    /// no further options, as in the chart's notes.
    pub async fn run_check(&self) -> Value {
        let output = self.loopgate(&["check", "--json"]).await;
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    /// Creates a pod with `address`; returns it, and the directory into which its token is mounted.
    pub async fn run_pod(&self, pod: &Value, address: &str) -> (Value, TempDir) {
        let pod = self.cluster.run_pod(pod, address).await;
        let mounted = tempfile::tempdir().unwrap();
        self.cluster.write_projected_volume(&pod, "loopgate-token", mounted.path()).await;
        (pod, mounted)
    }

    /// Deletes a pod, and returns after the API server's response.
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
    // The API server is older than the chart's `kubeVersion` allows, and too old for native
    // sidecars: the copy of the chart has no `kubeVersion`, and every test turns native sidecars
    // off.
    let chart = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").args(["-r", "charts/loopgate/."]).arg(chart.path()).status().await.unwrap();
    assert!(copied.success());
    let about = std::fs::read_to_string(chart.path().join("Chart.yaml")).unwrap();
    let about: String =
        about.lines().filter(|line| !line.starts_with("kubeVersion:")).map(|line| format!("{line}\n")).collect();
    std::fs::write(chart.path().join("Chart.yaml"), about).unwrap();
    let chart = chart.path().to_str().unwrap();
    run_helm(cluster, &[&["upgrade", "--install", "--create-namespace", release, chart], arguments].concat()).await;
}

/// Runs `helm` with these arguments in the test's namespace, and fails if it does.
pub async fn run_helm(cluster: &Cluster, arguments: &[&str]) {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::var_os("TEST_HELM").expect("`tests/run kubernetes` sets it"));
    command
        .args(arguments)
        .args(["--namespace", NAMESPACE, "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .env("HOME", home.path());
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "helm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An RBAC rule, in the form of a `SelfSubjectRulesReview`.
pub fn rule(verbs: &[&str], group: &str, resource: &str) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": [resource]})
}

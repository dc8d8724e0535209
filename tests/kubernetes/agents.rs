//! Which clients are agents, by real tokens and by the API server's real pod objects.

use std::time::Duration;

use loopgate::enrolment_protocol::RefusalReason;
use serde_json::json;
use tokio::time::timeout;

use crate::chart_release::{ChartRelease, NAME};
use crate::cluster::{ADMIN, Cluster};
use crate::enrolment::{enrol, enrolment_refusal};
use crate::pods::{NAMESPACE, path, pod};
use loopgate_test_support::agent_process::Pod;
use loopgate_test_support::lanes::{assert_external, assert_local};
use loopgate_test_support::namespace::in_namespace;
use loopgate_test_support::tls_client::{PROTOCOLS, request_text};

const BUILDER: &str = "127.0.0.21";
const OTHER: &str = "127.0.0.22";
const UNLABELLED: &str = "127.0.0.24";
/// The audience of tokens that loopgate accepts by default.
const AUDIENCE: &str = "loopgate";

#[test]
fn a_pod_that_enrols_and_a_pod_that_is_trusted_by_address_are_agents() {
    in_namespace(async || {
        let Some(cluster) = Cluster::start().await else { return };
        let release = ChartRelease::start(cluster, &["agents.attested=true"]).await;
        let (_, mounted) = release.run_pod(&pod("builder", Some("true")), "198.51.100.4").await;
        release.run_pod(&pod("scout", Some("address")), "198.51.100.5").await;
        release.run_pod(&pod("unlabelled", None), "198.51.100.6").await;
        release.wait_for_agents(&["builder", "scout"]).await;
        let (client, gateway) = (&release.sidecar, &release.sidecar.gateway);

        let token = mounted.path().join("token");
        let builder_pod = Pod { client, source: "198.51.100.4", ca: release.ca(), token: &token };
        let agent = builder_pod.start_agent().await;
        let mut wire = agent.connect_h1().await;
        assert_eq!(wire.send_request(request_text("GET /work", "")).await.text(), "hello");
        assert_local(&gateway.requests().pop().unwrap(), gateway);
        let output = builder_pod.exec("echo \"at $OPENCLAW_GATEWAY_PORT\"").await;
        assert!(output.status.success() && output.stdout.starts_with(b"at "), "{output:?}");
        assert_local(&gateway.requests().pop().unwrap(), gateway);

        for protocol in PROTOCOLS {
            client.send_request(protocol, "198.51.100.5", "GET /", &[]).await;
            assert_local(&gateway.requests().pop().unwrap(), gateway);
            for source in ["198.51.100.4", "198.51.100.6", "198.51.100.7"] {
                client.send_request(protocol, source, "GET /", &[]).await;
                assert_external(&gateway.requests().pop().unwrap(), source);
            }
        }
        // No log contains the token that is mounted into the pod.
        let token = std::fs::read_to_string(token).unwrap();
        for log in [agent.process.log_lines(), release.sidecar.process().log_lines()] {
            assert!(log.iter().any(|line| line.contains("enrolled")) && !log.iter().any(|line| line.contains(&token)));
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_token_of_the_pod_at_that_address_proves_an_agent() {
    let Some(cluster) = Cluster::start().await else { return };
    let release = ChartRelease::start(cluster, &["agents.attested=true"]).await;
    let cluster = &release.cluster;
    let (builder, _) = release.run_pod(&pod("builder", Some("true")), BUILDER).await;
    let (other, _) = release.run_pod(&pod("other", Some("true")), OTHER).await;
    let (unlabelled, _) = release.run_pod(&pod("unlabelled", None), UNLABELLED).await;
    release.wait_for_agents(&["builder", "other"]).await;

    let good = cluster.token("builder", Some(&builder), Some(AUDIENCE)).await;
    let (head, signature) = good.rsplit_once('.').unwrap();
    let bad_signature = format!("{head}.{}", signature.chars().rev().collect::<String>());
    let for_the_api = cluster.token("builder", Some(&builder), None).await;
    let for_others = cluster.token("builder", Some(&builder), Some("vault")).await;
    let unbound = cluster.token("builder", None, Some(AUDIENCE)).await;
    let others = cluster.token("builder", Some(&other), Some(AUDIENCE)).await;
    let sidecars = std::fs::read_to_string(release.credentials.path().join("token")).unwrap();
    // The API server issues no token that is bound to a pod of another account.
    let (status, _) = cluster.request_token(NAME, Some(&builder), Some(AUDIENCE), 600).await;
    assert!((400..500).contains(&status), "{status}");
    for (token, which) in [
        ("forged", "nonsense"),
        (&bad_signature, "with another signature"),
        (&for_the_api, "for the API server"),
        (&for_others, "for another audience"),
        (&unbound, "bound to no pod"),
        (&others, "another pod's"),
        (&sidecars, "the sidecar's own"),
        (ADMIN, "an administrator's"),
    ] {
        assert_eq!(enrolment_refusal(&release.sidecar, BUILDER, token).await, RefusalReason::BadToken, "{which}");
    }
    assert_eq!(
        enrolment_refusal(&release.sidecar, OTHER, &good).await,
        RefusalReason::BadToken,
        "from another address"
    );
    let of_unlabelled = cluster.token("builder", Some(&unlabelled), Some(AUDIENCE)).await;
    assert_eq!(enrolment_refusal(&release.sidecar, UNLABELLED, &of_unlabelled).await, RefusalReason::NotAnAgent);
    enrol(&release.sidecar, BUILDER, &good).await.unwrap();

    // A new pod with the same name and address is another pod.
    release.delete("other").await;
    release.run_pod(&pod("other", Some("true")), OTHER).await;
    release.wait_for_agents(&["builder", "other"]).await;
    assert_eq!(enrolment_refusal(&release.sidecar, OTHER, &others).await, RefusalReason::BadToken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_open_connections_end_with_the_pod() {
    let Some(cluster) = Cluster::start().await else { return };
    let release = ChartRelease::start(cluster, &["agents.attested=true"]).await;
    let ends = ["deleted", "terminating", "without-the-label", "with-another-label", "failed", "with-another-address"];
    for (how, source) in ends.into_iter().zip(31..) {
        let source = format!("127.0.0.{source}");
        let mut wanted = pod(how, Some("true"));
        // A pod on a node gets time to end, and its object exists until then.
        if how == "terminating" {
            wanted["spec"]["nodeName"] = "node-1".into();
        }
        let (_, mounted) = release.run_pod(&wanted, &source).await;
        let builder_pod =
            Pod { client: &release.sidecar, source: &source, ca: release.ca(), token: &mounted.path().join("token") };
        let agent = builder_pod.start_agent().await;
        let mut wire = agent.connect_h1().await;
        wire.send_request(request_text("GET /", "")).await;
        let gateway = &release.sidecar.gateway;
        assert_local(&gateway.requests().pop().unwrap(), gateway);

        let (object, status) = (path(&format!("pods/{how}")), path(&format!("pods/{how}/status")));
        match how {
            "deleted" => drop(release.cluster.delete(&object).await),
            "terminating" => {
                release.cluster.delete(&object).await;
                assert!(release.cluster.get(&object).await["metadata"]["deletionTimestamp"].is_string());
            }
            "without-the-label" => drop(
                release.cluster.patch(&object, &json!({"metadata": {"labels": {"loopgate.dev/agent": null}}})).await,
            ),
            "with-another-label" => drop(
                release.cluster.patch(&object, &json!({"metadata": {"labels": {"loopgate.dev/agent": "false"}}})).await,
            ),
            "failed" => drop(release.cluster.patch(&status, &json!({"status": {"phase": "Failed"}})).await),
            _ => drop(release.cluster.set_address(how, "127.0.0.99").await),
        }
        timeout(Duration::from_secs(1), wire.until_end()).await.unwrap_or_else(|_| panic!("still open: {how}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_found_on_every_page_of_a_list() {
    const CROWD: usize = 260;
    let Some(cluster) = Cluster::start().await else { return };
    cluster.create("/api/v1/namespaces", &json!({"metadata": {"name": NAMESPACE}})).await;
    cluster.create_account("crowd").await;
    for number in 0..CROWD {
        let mut crowd_pod = pod(&format!("crowd-{number}"), Some("true"));
        crowd_pod["spec"]["serviceAccountName"] = "crowd".into();
        cluster.run_pod(&crowd_pod, &format!("192.0.{}.{}", 3 + number / 200, 1 + number % 200)).await;
    }
    let release = ChartRelease::start(cluster, &["agents.attested=true"]).await;
    let has_agents = |count: usize| {
        move |status: &serde_json::Value| status["agents"].as_array().is_some_and(|agents| agents.len() == count)
    };
    release.wait_for_status("all pods are agents", has_agents(CROWD)).await;
    release.delete("crowd-259").await;
    release.wait_for_status("all pods but one are agents", has_agents(CROWD - 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_must_have_the_audience_of_the_charts_values() {
    let Some(cluster) = Cluster::start().await else { return };
    let release = ChartRelease::start(cluster, &["agents.attested=true", "agents.audience=https://claw.example"]).await;
    let (builder, _) = release.run_pod(&pod("builder", Some("true")), BUILDER).await;
    let token = release.cluster.token("builder", Some(&builder), Some(AUDIENCE)).await;
    assert_eq!(enrolment_refusal(&release.sidecar, BUILDER, &token).await, RefusalReason::BadToken);
    let token = release.cluster.token("builder", Some(&builder), Some("https://claw.example")).await;
    enrol(&release.sidecar, BUILDER, &token).await.unwrap();
}

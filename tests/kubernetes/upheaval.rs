//! The API server restarts, loses an object without an event, and rejects a token that it accepted.

use std::time::Duration;

use loopgate::enrolment_protocol::RefusalReason;
use tokio::time::timeout;

use crate::chart_release::{ACCESS, ChartRelease};
use crate::cluster::Cluster;
use crate::enrolment::{enrol, enrolment_refusal};
use crate::pods::{NAMESPACE, pod};
use loopgate_test_support::agent_process::Pod;
use loopgate_test_support::lanes::assert_local;
use loopgate_test_support::tls_client::request_text;

const BUILDER: &str = "127.0.0.21";
const OTHER: &str = "127.0.0.22";

#[tokio::test(flavor = "multi_thread")]
async fn agents_stay_connected_while_the_api_server_restarts_and_pods_are_watched_again() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut release = ChartRelease::start(cluster, &["agents.attested=true"]).await;
    let (_, mounted) = release.run_pod(&pod("builder", Some("true")), BUILDER).await;
    let (other, _) = release.run_pod(&pod("other", Some("true")), OTHER).await;
    release.wait_for_agents(&["builder", "other"]).await;
    let others = release.cluster.token("builder", Some(&other), Some("loopgate")).await;
    let builder_pod =
        Pod { client: &release.sidecar, source: BUILDER, ca: release.ca(), token: &mounted.path().join("token") };
    let agent = builder_pod.start_agent().await;
    let mut wire = agent.connect_h1().await;
    wire.send_request(request_text("GET /", "")).await;

    release.cluster.stop_api_server().await;
    release.wait_for_discovery_error("can't be reached").await;
    wire.send_request(request_text("GET /", "")).await;
    assert_local(&release.sidecar.gateway.requests().pop().unwrap(), &release.sidecar.gateway);
    assert_eq!(enrolment_refusal(&release.sidecar, OTHER, &others).await, RefusalReason::Kubernetes);

    release.cluster.start_api_server().await;
    release.wait_for_agents(&["builder", "other"]).await;
    enrol(&release.sidecar, OTHER, &others).await.unwrap();
    wire.send_request(request_text("GET /", "")).await;
    assert_local(&release.sidecar.gateway.requests().pop().unwrap(), &release.sidecar.gateway);
    release.delete("builder").await;
    timeout(Duration::from_secs(1), wire.until_end()).await.expect("its connection ends with the pod");
}

/// Without its cache, the API server passes watches on to etcd, whose compaction ends them with
/// 410.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_deleted_without_an_event_is_no_longer_an_agent() {
    let Some(cluster) = Cluster::start_with_flags(&["--watch-cache=false"]).await else { return };
    let mut release = ChartRelease::start(cluster, &["agents.attested=true"]).await;
    let (_, mounted) = release.run_pod(&pod("builder", Some("true")), BUILDER).await;
    release.run_pod(&pod("other", Some("true")), OTHER).await;
    let builder_pod =
        Pod { client: &release.sidecar, source: BUILDER, ca: release.ca(), token: &mounted.path().join("token") };
    let agent = builder_pod.start_agent().await;
    let mut wire = agent.connect_h1().await;
    wire.send_request(request_text("GET /", "")).await;
    release.wait_for_agents(&["builder", "other"]).await;

    release.cluster.delete_unnoticed(&format!("/registry/pods/{NAMESPACE}/builder")).await;
    let ended = timeout(Duration::from_secs(20), wire.until_end()).await;
    assert!(ended.is_ok(), "{:#?}", release.sidecar.process().log_lines());
    release.wait_for_agents(&["other"]).await;
    release.sidecar.process().wait_for_log("the resource version of the watch is too old (410)").await;
    release.run_pod(&pod("later", Some("address")), "127.0.0.23").await;
    release.wait_for_agents(&["later", "other"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_is_used_at_once() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut release = ChartRelease::start(cluster, &["agents.attested=true"]).await;
    let (builder, _) = release.run_pod(&pod("builder", Some("true")), BUILDER).await;
    release.wait_for_agents(&["builder"]).await;
    let token = release.cluster.token("builder", Some(&builder), Some("loopgate")).await;

    // The sidecar's token is bound to its pod, and invalid once the pod is deleted.
    let mut recreated_pod = release.pod.clone();
    release.delete(crate::pods::name(&release.pod)).await;
    release.cluster.stop_api_server().await;
    release.cluster.start_api_server().await;
    release.wait_for_discovery_error("does not accept loopgate's own service-account token (401)").await;
    assert_eq!(enrolment_refusal(&release.sidecar, BUILDER, &token).await, RefusalReason::Kubernetes);

    recreated_pod["metadata"] =
        serde_json::json!({"name": recreated_pod["metadata"]["name"], "labels": recreated_pod["metadata"]["labels"]});
    let pod = release.cluster.run_pod(&recreated_pod, "192.0.2.5").await;
    release.cluster.write_projected_volume(&pod, ACCESS, release.credentials.path()).await;
    release.wait_for_agents(&["builder"]).await;
    enrol(&release.sidecar, BUILDER, &token).await.unwrap();
}

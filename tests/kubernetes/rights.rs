//! What the chart's service account may do, and what loopgate reports if a right is missing.

use loopgate::enrolment_protocol::RefusalReason;
use serde_json::{Value, json};

use crate::chart_release::{ChartRelease, NAME, rule};
use crate::cluster::Cluster;
use crate::enrolment::{enrol, enrolment_refusal};
use crate::pods::{NAMESPACE, path, pod};

const BUILDER: &str = "127.0.0.21";

/// Every RBAC rule that applies to the account of `token` in `namespace`.
async fn rules(cluster: &Cluster, token: &str, namespace: &str) -> Vec<Value> {
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace}});
    let (status, answer) =
        cluster.request(token, "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", Some(&review)).await;
    assert_eq!((status, &answer["status"]["incomplete"]), (201, &json!(false)), "{answer:#}");
    answer["status"]["resourceRules"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_service_account_may_do_what_the_sidecar_does_and_nothing_else() {
    let Some(cluster) = Cluster::start().await else { return };
    let release = ChartRelease::start(cluster, &["agents.attested=true"]).await;
    let cluster = &release.cluster;
    let sidecars_token = std::fs::read_to_string(release.credentials.path().join("token")).unwrap();
    let builders_token = cluster.token("builder", None, None).await;
    for (namespace, expected) in [
        (
            NAMESPACE,
            vec![rule(&["list", "watch"], "", "pods"), rule(&["create"], "authentication.k8s.io", "tokenreviews")],
        ),
        ("default", vec![rule(&["create"], "authentication.k8s.io", "tokenreviews")]),
    ] {
        let rules_of_any_account = rules(cluster, &builders_token, namespace).await;
        let mut additional = rules(cluster, &sidecars_token, namespace).await;
        additional.retain(|rule| !rules_of_any_account.contains(rule));
        additional.sort_by_key(|rule| rule["resources"] != "pods" && rule["resources"] != json!(["pods"]));
        assert_eq!(additional, expected, "in {namespace}");
    }
    // The API server applies these rules to requests.
    for (expected, method, what) in [
        (200, "GET", path("pods")),
        (403, "GET", path("pods/builder")),
        (403, "GET", path("secrets")),
        (403, "GET", path(&format!("secrets/{NAME}-token"))),
        (403, "GET", path("configmaps")),
        (403, "GET", "/api/v1/namespaces/default/pods".into()),
        (403, "GET", "/api/v1/pods".into()),
        (403, "DELETE", path("pods/builder")),
        (403, "POST", path("serviceaccounts/builder/token")),
    ] {
        let (status, answer) = cluster.request(&sidecars_token, method, &what, None).await;
        assert_eq!(status, expected, "{method} {what}: {answer:#}");
    }
    assert!(
        release.run_check().await["findings"]
            .as_array()
            .unwrap()
            .iter()
            .all(|finding| finding["id"] != "kubernetes-forbidden")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_named_and_an_upgrade_adds_it() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut release = ChartRelease::start(cluster, &["agents.attested=true"]).await;
    let (builder, _) = release.run_pod(&pod("builder", Some("true")), BUILDER).await;
    release.wait_for_agents(&["builder"]).await;
    let token = release.cluster.token("builder", Some(&builder), Some("loopgate")).await;

    // The upgrade removes the right.
    release.upgrade(&["agents.attested=false"]).await;
    assert_eq!(enrolment_refusal(&release.sidecar, BUILDER, &token).await, RefusalReason::Kubernetes);
    release
        .sidecar
        .process()
        .wait_for_log("ClusterRole with the verb create on tokenreviews of authentication.k8s.io")
        .await;
    assert_eq!(missing_rights(&release).await, ["the verb create on tokenreviews"]);

    // An open watch continues after its right was removed, so the API server is restarted.
    let role = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles/{NAME}");
    release.cluster.patch(&role, &json!({"rules": [rule(&["list"], "", "pods")]})).await;
    release.cluster.stop_api_server().await;
    release.cluster.start_api_server().await;
    release.wait_for_discovery_error("needs a Role in its namespace with the verb watch on pods").await;
    assert!(release.status().await.contains("needs a Role in its namespace with the verb watch on pods"));
    assert_eq!(missing_rights(&release).await, ["the verb watch on pods"]);
    release
        .cluster
        .delete(&format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings/{NAME}"))
        .await;
    release.wait_for_discovery_error("needs a Role in its namespace with the verb list on pods").await;
    assert_eq!(missing_rights(&release).await, ["the verb list on pods"]);

    release.cluster.delete(&role).await;
    release.upgrade(&["agents.attested=true"]).await;
    release.wait_for_agents(&["builder"]).await;
    enrol(&release.sidecar, BUILDER, &token).await.unwrap();
    assert_eq!(missing_rights(&release).await, [""; 0]);
}

/// The rights that `loopgate check` reports as missing, without the part that differs between its
/// sources.
async fn missing_rights(release: &ChartRelease) -> Vec<String> {
    let report = release.run_check().await;
    let findings = report["findings"].as_array().unwrap().iter();
    let seen = findings
        .filter(|finding| finding["id"] == "kubernetes-forbidden")
        .flat_map(|finding| finding["seen"].as_array().unwrap());
    let words = seen.map(|seen| seen.as_str().unwrap().split_once("with ").unwrap().1.split(" (").next().unwrap());
    words.map(|words| words.split(" of ").next().unwrap().to_owned()).collect()
}

//! What else the chart can make, before the API server that has to take it.

use crate::chart_release::{ask_helm, install};
use crate::cluster::Cluster;
use crate::pods::NAMESPACE;

/// Of the chart's values files those that need nothing which came after this API server, or is no part of it.
const VALUES: [&str; 6] = ["default", "discovery", "ephemeral", "existing-claims", "ingress", "sidecar-only"];

/// The names of what the API server has of a kind that belongs to `release`.
async fn made(cluster: &Cluster, path: &str, release: &str) -> Vec<String> {
    let list = cluster.get(&format!("{path}?labelSelector=app.kubernetes.io%2Finstance%3D{release}")).await;
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| format!("{} {}", list["kind"].as_str().unwrap(), crate::pods::name(item))).collect()
}

/// Everything of `release`.
async fn everything(cluster: &Cluster, release: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (group, kinds) in [
        ("api/v1", &["services", "configmaps", "secrets", "serviceaccounts"][..]),
        ("apis/apps/v1", &["statefulsets"]),
        ("apis/networking.k8s.io/v1", &["networkpolicies", "ingresses"]),
        ("apis/rbac.authorization.k8s.io/v1", &["roles", "rolebindings"]),
    ] {
        for kind in kinds {
            all.extend(made(cluster, &format!("/{group}/namespaces/{NAMESPACE}/{kind}"), release).await);
        }
    }
    for kind in ["clusterroles", "clusterrolebindings"] {
        all.extend(made(cluster, &format!("/apis/rbac.authorization.k8s.io/v1/{kind}"), release).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_what_the_chart_makes_and_its_upgrade_and_all_but_the_token_goes_with_it() {
    let Some(cluster) = Cluster::start().await else { return };
    for release in VALUES {
        let file = format!("charts/loopgate/ci/{release}-values.yaml");
        for level in ["info", "debug"] {
            let set = format!("sidecar.native=false,sidecar.logLevel={level}");
            install(&cluster, release, &["--values", &file, "--set", &set]).await;
        }
        let made = everything(&cluster, release).await;
        assert!(made.len() >= 3, "{release}: {made:?}");
        ask_helm(&cluster, &["uninstall", release]).await;
        let mut left = everything(&cluster, release).await;
        left.retain(|left| *left != format!("SecretList {release}-loopgate-token"));
        assert!(left.is_empty(), "{release}: {left:?}");
    }
}

//! The API server accepts the chart's objects with every values file that it is new enough for.

use crate::chart_release::{install, run_helm};
use crate::cluster::Cluster;
use crate::pods::NAMESPACE;

/// The chart's values files that need no kind of object that this API server lacks.
const VALUES: [&str; 6] = ["default", "discovery", "ephemeral", "existing-claims", "ingress", "sidecar-only"];

/// The kinds and names of the objects of `release` in the list at `path`.
async fn objects_at(cluster: &Cluster, path: &str, release: &str) -> Vec<String> {
    let list = cluster.get(&format!("{path}?labelSelector=app.kubernetes.io%2Finstance%3D{release}")).await;
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| format!("{} {}", list["kind"].as_str().unwrap(), crate::pods::name(item))).collect()
}

/// The kinds and names of all objects of `release`.
async fn objects_of(cluster: &Cluster, release: &str) -> Vec<String> {
    let mut objects = Vec::new();
    for (group, kinds) in [
        ("api/v1", &["services", "configmaps", "secrets", "serviceaccounts"][..]),
        ("apis/apps/v1", &["statefulsets"]),
        ("apis/networking.k8s.io/v1", &["networkpolicies", "ingresses"]),
        ("apis/rbac.authorization.k8s.io/v1", &["roles", "rolebindings"]),
    ] {
        for kind in kinds {
            objects.extend(objects_at(cluster, &format!("/{group}/namespaces/{NAMESPACE}/{kind}"), release).await);
        }
    }
    for kind in ["clusterroles", "clusterrolebindings"] {
        objects.extend(objects_at(cluster, &format!("/apis/rbac.authorization.k8s.io/v1/{kind}"), release).await);
    }
    objects
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_accepts_install_and_upgrade_and_uninstall_keeps_only_the_token() {
    let Some(cluster) = Cluster::start().await else { return };
    for release in VALUES {
        let file = format!("charts/loopgate/ci/{release}-values.yaml");
        for level in ["info", "debug"] {
            let set = format!("sidecar.native=false,sidecar.logLevel={level}");
            install(&cluster, release, &["--values", &file, "--set", &set]).await;
        }
        let created = objects_of(&cluster, release).await;
        assert!(created.len() >= 3, "{release}: {created:?}");
        run_helm(&cluster, &["uninstall", release]).await;
        let mut left = objects_of(&cluster, release).await;
        left.retain(|left| *left != format!("SecretList {release}-loopgate-token"));
        assert!(left.is_empty(), "{release}: {left:?}");
    }
}

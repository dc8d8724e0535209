//! `check`, `status`, the page and metrics with discovery by Kubernetes.

use std::time::{Duration, Instant};

use crate::check::{check, finding, ids};
use crate::harness::Harness;
use loopgate_test_support::fake_kubernetes::{FakeKubernetes, pod};

fn flags(kubernetes: &FakeKubernetes) -> [String; 3] {
    let credentials = kubernetes.credentials();
    [
        "--discovery=kubernetes".into(),
        format!("--kubernetes-api={}", kubernetes.address()),
        format!("--kubernetes-credentials={}", credentials.display()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_an_unreachable_or_forbidding_api_server() {
    let mut kubernetes = FakeKubernetes::start();
    kubernetes.put(pod("builder", Some("true"), &["198.51.100.7"]));
    let mut on_node = pod("exporter", Some("address"), &["192.0.2.99"]);
    on_node["spec"]["hostNetwork"] = true.into();
    kubernetes.put(on_node);
    let flags = flags(&kubernetes);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (report, _) = check(&flags).await;
    let found = ids(&report);
    assert!(!found.iter().any(|id| id.starts_with("kubernetes-") || id.starts_with("docker-")), "{report:#}");
    assert!(
        finding(&report, "agent-host-network")["seen"][0].as_str().unwrap().starts_with("exporter: "),
        "{report:#}"
    );
    for (what, rule) in [
        ("create tokenreviews", "the verb create on tokenreviews"),
        ("watch pods", "the verb watch on pods"),
        ("list pods", "the verb list on pods"),
    ] {
        kubernetes.forbid(what);
        let (report, success) = check(&flags).await;
        assert!(finding(&report, "kubernetes-forbidden")["seen"].to_string().contains(rule) && !success, "{report:#}");
        kubernetes.permit(what);
    }
    kubernetes.down().await;
    let (report, success) = check(&flags).await;
    assert!(
        finding(&report, "kubernetes-unreachable")["seen"][0].as_str().unwrap().contains("can't reach the API server")
            && !success,
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_the_page_and_metrics_name_kubernetes() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.put(pod("builder", Some("true"), &["198.51.100.7"]));
    let flags = flags(&kubernetes);
    let texts = tokio::task::spawn_blocking(move || {
        let sidecar = Harness::start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !sidecar.get("/metrics", "localhost").contains("loopgate_discovery_kubernetes_up 1") {
            assert!(Instant::now() < deadline, "{}", sidecar.get("/metrics", "localhost"));
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = String::from_utf8(sidecar.status(&[]).stdout).unwrap();
        (status, sidecar.get("/", "localhost"), sidecar.get("/metrics", "localhost"))
    });
    let (status, page, metrics) = texts.await.unwrap();
    assert!(
        status.contains("  kubernetes     live for ") && status.contains("builder") && !status.contains("docker"),
        "{status}"
    );
    assert!(page.contains("<dt>Kubernetes</dt>") && !page.contains("Docker"), "{page}");
    assert!(
        metrics.contains("loopgate_discovery_kubernetes_enabled 1")
            && metrics.contains("loopgate_discovery_docker_enabled 0"),
        "{metrics}"
    );
    assert!(!metrics.contains("loopgate_discovery_docker_up"), "{metrics}");
}

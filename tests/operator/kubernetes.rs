//! `check`, `status`, the page and metrics with discovery by Kubernetes.

use std::time::{Duration, Instant};

use crate::check::{finding, ids, run_check};
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
    kubernetes.put_pod(pod("builder", Some("true"), &["198.51.100.7"]));
    let mut on_node = pod("exporter", Some("address"), &["192.0.2.99"]);
    on_node["spec"]["hostNetwork"] = true.into();
    kubernetes.put_pod(on_node);
    let flags = flags(&kubernetes);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (report, _) = run_check(&flags).await;
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
        let (report, success) = run_check(&flags).await;
        assert!(finding(&report, "kubernetes-forbidden")["seen"].to_string().contains(rule) && !success, "{report:#}");
        kubernetes.permit(what);
    }
    kubernetes.stop().await;
    let (report, success) = run_check(&flags).await;
    assert!(
        finding(&report, "kubernetes-unreachable")["seen"][0].as_str().unwrap().contains("can't reach the API server")
            && !success,
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_the_page_and_metrics_name_kubernetes() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.put_pod(pod("builder", Some("true"), &["198.51.100.7"]));
    let flags = flags(&kubernetes);
    let texts = tokio::task::spawn_blocking(move || {
        let sidecar = Harness::start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !sidecar.admin_get("/metrics", "localhost").contains("loopgate_discovery_kubernetes_up 1") {
            assert!(Instant::now() < deadline, "{}", sidecar.admin_get("/metrics", "localhost"));
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = String::from_utf8(sidecar.run_status(&[]).stdout).unwrap();
        (status, sidecar.admin_get("/", "localhost"), sidecar.admin_get("/metrics", "localhost"))
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

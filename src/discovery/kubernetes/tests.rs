//! Tests of discovery with a fake API server, over real TLS.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::{AgentSourceKind, Config};
use crate::discovery::kubernetes::session::SILENCE;
use crate::discovery::{ADDRESS_GRACE, AgentKind, SourceState, View, WhyNotAgent, start};
use crate::metrics;
use crate::shutdown::Shutdown;
use loopgate_test_support::fake_kubernetes::{FakeKubernetes, pod};

/// The time limit of every wait in these tests. It is generous, since a test machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(20);
const AGENT: &str = "198.51.100.7";
const OTHER: &str = "198.51.100.8";

/// Discovery that runs with a fake API server.
struct Harness {
    view: watch::Receiver<Arc<View>>,
    metrics: metrics::DiscoveryMetrics,
    shutdown: Shutdown,
}

impl Harness {
    fn start(kubernetes: &FakeKubernetes) -> Self {
        let (shutdown, metrics) = (Shutdown::new(), metrics::DiscoveryMetrics::default());
        let mut config = Config { discovery: AgentSourceKind::Kubernetes, ..Config::default() };
        config.kubernetes.api = Some(kubernetes.address());
        config.kubernetes.credentials = kubernetes.credentials();
        Self { view: start(&config, None, &metrics, &shutdown), metrics, shutdown }
    }

    /// Waits until `is_expected` accepts the view. `what` describes that view in the message of a
    /// timeout.
    async fn wait_until(&mut self, what: &str, mut is_expected: impl FnMut(&View) -> bool) -> Arc<View> {
        let view = timeout(TIMEOUT, self.view.wait_for(|view| is_expected(view)))
            .await
            .map(|view| Arc::clone(&view.expect("discovery runs until the shutdown")));
        view.unwrap_or_else(|_| panic!("timed out waiting for: {what}: {:#?}", self.view.borrow()))
    }

    async fn wait_until_agents(&mut self, expected: &[&str]) -> Arc<View> {
        self.wait_until(&format!("agents are {expected:?}"), |view| is_live(view) && agents(view) == expected).await
    }

    async fn wait_until_error(&mut self, words: &str) -> Arc<View> {
        self.wait_until(words, |view| view.source_state.error().is_some_and(|error| error.contains(words))).await
    }

    /// Stops discovery, and checks that all of its tasks end.
    async fn stop_and_check_tasks(self) {
        self.shutdown.begin();
        assert_eq!(self.shutdown.wait_for_tasks(TIMEOUT).await, 0, "a task outlived discovery");
    }
}

fn is_live(view: &View) -> bool {
    matches!(view.source_state, SourceState::Live { .. })
}

fn agents(view: &View) -> Vec<&str> {
    let mut names: Vec<&str> = view.agents.values().map(|agent| agent.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[tokio::test]
async fn pods_are_agents_from_the_label_to_the_end() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.put_pod(pod("a", Some("address"), &[AGENT, "2001:db8::7"]));
    kubernetes.put_pod(pod("bystander", None, &["198.51.100.9"]));
    let mut harness = Harness::start(&kubernetes);
    let view = harness.wait_until_agents(&["a"]).await;
    let (v4, v6): (IpAddr, IpAddr) = (AGENT.parse().unwrap(), "2001:db8::7".parse().unwrap());
    assert_eq!(view.agents.keys().copied().collect::<Vec<_>>(), [v4, v6]);
    assert_eq!((view.agents[&v4].kind, view.agents[&v4].id.as_str()), (AgentKind::Address, "uid-of-a"));

    // A pod that is starting has no address at first.
    let mut starting = pod("b", Some("true"), &[]);
    starting["status"]["phase"] = "Pending".into();
    kubernetes.put_pod(starting);
    kubernetes.send_bookmark();
    kubernetes.put_pod(pod("c", Some("true"), &["198.51.100.10"]));
    harness.wait_until_agents(&["a", "c"]).await;
    kubernetes.put_pod(pod("b", Some("true"), &[OTHER]));
    harness.wait_until_agents(&["a", "b", "c"]).await;

    let lists = harness.metrics.lists_read.get();
    kubernetes.change_pod("a", |pod| pod["metadata"]["labels"] = json!({}));
    harness.wait_until_agents(&["b", "c"]).await;
    kubernetes.change_pod("b", |pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
    harness.wait_until_agents(&["c"]).await;
    kubernetes.change_pod("c", |pod| pod["status"]["phase"] = "Succeeded".into());
    harness.wait_until_agents(&[]).await;
    kubernetes.put_pod(pod("d", Some("address"), &[AGENT]));
    harness.wait_until_agents(&["d"]).await;
    kubernetes.delete_pod("d");
    let view = harness.wait_until_agents(&[]).await;
    assert!(view.last_known.is_empty());
    // All changes came from the watch, without another list.
    assert_eq!((harness.metrics.lists_read.get(), kubernetes.request_count("list pods")), (lists, 1));
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_list_of_many_pages_is_read_to_its_end() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.set_page_size(2);
    let names = ["a", "b", "c", "d", "e"];
    for (number, name) in names.iter().enumerate() {
        kubernetes.put_pod(pod(name, Some("true"), &[&format!("198.51.100.{}", 20 + number)]));
    }
    let mut harness = Harness::start(&kubernetes);
    harness.wait_until_agents(&names).await;
    assert_eq!(kubernetes.request_count("list pods"), 3);
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_pod_on_its_nodes_network_is_no_agent_and_the_view_has_the_reason() {
    let kubernetes = FakeKubernetes::start();
    let mut on_node = pod("node-exporter", Some("address"), &["192.0.2.99"]);
    on_node["spec"]["hostNetwork"] = true.into();
    kubernetes.put_pod(on_node);
    let mut harness = Harness::start(&kubernetes);
    let view = harness.wait_until("followed", is_live).await;
    assert!(view.agents.is_empty());
    assert_eq!(view.not_agents["node-exporter"], WhyNotAgent::HostNetwork);
    assert!(view.not_agents["node-exporter"].to_string().contains("hostNetwork"));
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_watch_whose_time_is_up_is_resumed() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.put_pod(pod("a", Some("true"), &[AGENT]));
    let mut harness = Harness::start(&kubernetes);
    harness.wait_until_agents(&["a"]).await;
    sleep(Duration::from_millis(1100)).await;
    kubernetes.end_watches();
    kubernetes.put_pod(pod("b", Some("true"), &[OTHER]));
    harness.wait_until_agents(&["a", "b"]).await;
    assert_eq!((kubernetes.request_count("list pods"), harness.metrics.lost_streams.get()), (1, 0));
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_watch_that_is_too_old_is_replaced_and_brings_no_removed_pod_back() {
    for silently in [false, true] {
        let kubernetes = FakeKubernetes::start();
        kubernetes.put_pod(pod("a", Some("address"), &[AGENT]));
        kubernetes.put_pod(pod("b", Some("address"), &[OTHER]));
        let mut harness = Harness::start(&kubernetes);
        harness.wait_until_agents(&["a", "b"]).await;
        if silently {
            sleep(Duration::from_millis(1100)).await;
        }
        // No event reports that this pod is gone. Its address may belong to another pod by now.
        kubernetes.delete_silently("a");
        if silently {
            kubernetes.forget_silently()
        } else {
            kubernetes.drop_history()
        }
        let mut ever_wider = false;
        harness
            .wait_until("a list without the deleted pod", |view| {
                ever_wider |= view.agents.len() > 2;
                is_live(view) && agents(view) == ["b"]
            })
            .await;
        assert!(!ever_wider);
        assert_eq!(
            (kubernetes.request_count("list pods"), harness.metrics.lost_streams.get()),
            (2, 1),
            "silently: {silently}"
        );
        harness.stop_and_check_tasks().await;
    }
}

#[tokio::test]
async fn without_the_api_server_new_connections_are_external_after_a_grace_and_established_ones_stay() {
    let mut kubernetes = FakeKubernetes::start();
    kubernetes.put_pod(pod("a", Some("address"), &[AGENT]));
    kubernetes.put_pod(pod("b", Some("true"), &[OTHER]));
    let mut harness = Harness::start(&kubernetes);
    harness.wait_until_agents(&["a", "b"]).await;
    kubernetes.stop().await;
    let view =
        harness.wait_until("disconnected", |view| matches!(view.source_state, SourceState::Disconnected { .. })).await;
    let since = tokio::time::Instant::now();
    assert_eq!(agents(&view), ["a", "b"], "the agents count during the grace");
    let view = harness.wait_until("the grace is over", |view| agents(view) == ["b"]).await;
    assert!(since.elapsed() >= ADDRESS_GRACE - Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!(view.last_known.len(), 2);
    assert_eq!(view.for_established().agents.len(), 2);
    // A pod that was deleted meanwhile no longer counts for established connections either.
    kubernetes.delete_silently("b");
    kubernetes.start_again();
    let view = harness.wait_until_agents(&["a"]).await;
    assert_eq!(view.last_known.len(), 1);
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_token_that_was_rotated_is_read_again() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.put_pod(pod("a", Some("true"), &[AGENT]));
    let mut harness = Harness::start(&kubernetes);
    harness.wait_until_agents(&["a"]).await;
    kubernetes.accept_only_token("own-token-2");
    kubernetes.drop_history();
    harness.wait_until_error("(401)").await;
    kubernetes.rotate_token("own-token-2");
    harness.wait_until_agents(&["a"]).await;
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_forbidden_request_is_named_with_the_missing_rule() {
    for (what, rule) in [
        ("list pods", "a Role in its namespace with the verb list on pods"),
        ("watch pods", "with the verb watch on pods"),
    ] {
        let kubernetes = FakeKubernetes::start();
        kubernetes.put_pod(pod("a", Some("address"), &[AGENT]));
        kubernetes.forbid(what);
        let mut harness = Harness::start(&kubernetes);
        let view = harness.wait_until_error(rule).await;
        // If only the watch is forbidden, the list alone is not used, since no event would report
        // the end of a pod.
        assert!(view.agents.is_empty() && view.last_known.is_empty());
        kubernetes.permit(what);
        harness.wait_until_agents(&["a"]).await;
        harness.stop_and_check_tasks().await;
    }
}

#[tokio::test]
async fn an_api_server_whose_certificate_is_not_of_the_ca_is_refused() {
    let (kubernetes, other) = (FakeKubernetes::start(), FakeKubernetes::start());
    kubernetes.put_pod(pod("a", Some("address"), &[AGENT]));
    std::fs::copy(other.credentials().join("ca.crt"), kubernetes.credentials().join("ca.crt")).unwrap();
    let mut harness = Harness::start(&kubernetes);
    let view = harness.wait_until_error("can't reach the API server").await;
    assert!(view.agents.is_empty());
    // The API server did not receive the token.
    assert_eq!(kubernetes.request_count("list pods"), 0);
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_silent_api_server_ends_agents_by_address_within_ninety_seconds() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.put_pod(pod("a", Some("address"), &[AGENT]));
    kubernetes.put_pod(pod("b", Some("true"), &[OTHER]));
    let mut harness = Harness::start(&kubernetes);
    harness.wait_until_agents(&["a", "b"]).await;
    kubernetes.stop_responding();
    tokio::time::pause();
    let frozen = tokio::time::Instant::now();
    let gone = harness.view.wait_for(|view| agents(view) == ["b"]);
    timeout(Duration::from_secs(300), gone).await.expect("the agent by address ends").unwrap();
    assert!(frozen.elapsed() < Duration::from_secs(90), "{:?}", frozen.elapsed());
}

#[tokio::test]
async fn a_watch_without_a_bookmark_is_resumed_and_loses_nothing() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.put_pod(pod("a", Some("true"), &[AGENT]));
    let mut harness = Harness::start(&kubernetes);
    harness.wait_until_agents(&["a"]).await;
    assert_eq!(kubernetes.request_count("watch pods"), 1);
    tokio::time::pause();
    tokio::time::advance(SILENCE + Duration::from_secs(1)).await;
    tokio::time::resume();
    for _ in 0..500 {
        if kubernetes.request_count("watch pods") == 2 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    kubernetes.put_pod(pod("b", Some("true"), &[OTHER]));
    harness.wait_until_agents(&["a", "b"]).await;
    assert_eq!(
        (
            kubernetes.request_count("watch pods"),
            kubernetes.request_count("list pods"),
            harness.metrics.lost_streams.get()
        ),
        (2, 1, 0)
    );
    harness.stop_and_check_tasks().await;
}

//! Tests of discovery with a fake engine and the real client.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::{Config, Engine};
use crate::discovery::interface_watcher::InterfaceWatcher;
use crate::discovery::{
    AgentKind, EXIT_ORPHANED, NamespaceState, SourceState, View, WhyNotAgent, docker_engine, start, wait_until_ready,
};
use crate::metrics;
use crate::shutdown::Shutdown;
use crate::testing::{new_namespace_command, report_skipped, run_in_own_process, run_ip};
use loopgate_test_support::fake_docker::{FakeDocker, IMAGE, container};

mod engine;
mod namespace;

/// The time limit of every wait in these tests. It is generous, since a test machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(20);
const LIST: &str = "/containers/json";
const AGENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));

/// Discovery that runs in the network namespace of this test.
struct Harness {
    view: watch::Receiver<Arc<View>>,
    metrics: metrics::DiscoveryMetrics,
    shutdown: Shutdown,
}

impl Harness {
    fn new(engine: Engine) -> Self {
        let (shutdown, metrics) = (Shutdown::new(), metrics::DiscoveryMetrics::default());
        let mut config = Config::default();
        config.docker.engine = engine;
        Self { view: start(&config, docker_engine(&config, &shutdown), &metrics, &shutdown), metrics, shutdown }
    }

    /// Starts discovery with `docker`, in which a container `gateway` has the address of this
    /// namespace; `None`, reported as skipped, if this namespace has no address.
    fn start(docker: &FakeDocker) -> Option<Self> {
        let interfaces = InterfaceWatcher::open();
        let mut addresses =
            interfaces.latest().iter().flat_map(|interface| &interface.addresses).map(ipnet::IpNet::addr);
        let Some(own) = addresses.find(|ip| ip.is_ipv4() && !ip.is_loopback()) else {
            report_skipped("this machine has no address but loopback");
            return None;
        };
        docker.add_silently(gateway(own));
        Some(Self::new(Engine::Unix(docker.socket())))
    }

    /// Waits until `is_expected` accepts the view. `what` describes that view in the message of a
    /// timeout.
    async fn wait_until(&mut self, what: &str, is_expected: impl FnMut(&View) -> bool) -> Arc<View> {
        let mut is_expected = is_expected;
        let view = timeout(TIMEOUT, self.view.wait_for(|view| is_expected(view)))
            .await
            .map(|view| Arc::clone(&view.expect("discovery runs until the shutdown")));
        view.unwrap_or_else(|_| panic!("timed out waiting for: {what}: {:#?}", self.view.borrow()))
    }

    async fn wait_until_live(&mut self) -> Arc<View> {
        self.wait_until("Docker is followed", |view| matches!(view.source_state, SourceState::Live { .. })).await
    }

    /// Stops discovery, and checks that all of its tasks end.
    async fn stop_and_check_tasks(self) {
        self.shutdown.begin();
        assert_eq!(self.shutdown.wait_for_tasks(TIMEOUT).await, 0, "a task outlived discovery");
    }
}

fn gateway(own: IpAddr) -> serde_json::Value {
    container("gateway", json!({"com.docker.compose.service": "front-door"}), &[("front", &own.to_string())])
}

fn agent(id: &str, address: IpAddr) -> serde_json::Value {
    container(id, json!({"loopgate.agent": "address"}), &[("front", &address.to_string())])
}

fn image() -> String {
    format!("/images/{IMAGE}/json")
}

fn is_agent(view: &View, id: &str) -> bool {
    view.agents.get(&AGENT).is_some_and(|agent| agent.id == id)
}

#[tokio::test]
async fn a_labelled_container_is_an_agent_from_its_start_to_its_death() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    let view = harness.wait_until_live().await;
    assert!(view.agents.is_empty() && view.own_names.contains("front-door"), "{view:?}");

    docker.run_container(agent("a", AGENT));
    let view = harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
    assert_eq!(view.agents[&AGENT].kind, AgentKind::Address);

    // No list is answered any more, so only the event can report the stop.
    docker.stop_responding_on(LIST);
    docker.stop_container("a");
    harness.wait_until("the agent is forgotten", |view| view.agents.is_empty() && view.last_known.is_empty()).await;
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn an_unlabelled_container_that_gets_an_agents_address_is_no_agent() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    docker.add_silently(agent("a", AGENT));
    harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;

    docker.stop_container("a");
    docker.run_container(container("b", json!({}), &[("front", &AGENT.to_string())]));
    harness.wait_until("no container is an agent", |view| view.agents.is_empty()).await;
    let lists = harness.metrics.lists_read.get();
    docker.send_event("container", "rename", "b", json!({}));
    wait_until_true("the containers are listed once more", || harness.metrics.lists_read.get() > lists).await;
    assert!(harness.view.borrow().agents.is_empty());
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_container_that_leaves_the_shared_network_is_no_agent() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    docker.add_silently(container(
        "a",
        json!({"loopgate.agent": "true"}),
        &[("front", &AGENT.to_string()), ("back", "198.51.100.8")],
    ));
    harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;

    docker.stop_responding_on(LIST);
    docker.send_event("network", "disconnect", "back", json!({"container": "a"}));
    docker.send_event("network", "disconnect", "front", json!({"container": "a"}));
    let view = harness.wait_until("no container is an agent", |view| view.agents.is_empty()).await;
    assert_eq!(view.not_agents.get("a"), Some(&WhyNotAgent::NoSharedNetwork));
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_label_that_the_image_has_too_is_not_the_operators() {
    let docker = FakeDocker::start();
    docker.set_image_labels(
        "sha256:hostile",
        json!({"loopgate.agent": "address", "com.docker.compose.project": "claws", "x": "y"}),
    );
    let Some(mut harness) = Harness::start(&docker) else { return };
    let mut hostile = container("hostile", json!({"loopgate.agent": "address"}), &[("front", "198.51.100.9")]);
    hostile["ImageID"] = "sha256:hostile".into();
    docker.add_silently(hostile);
    let mut renamed = container("renamed", json!({"loopgate.agent": "true"}), &[("front", "198.51.100.10")]);
    renamed["ImageID"] = "sha256:hostile".into();
    docker.add_silently(renamed);
    docker.add_silently(agent("a", AGENT));
    let view = harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
    assert_eq!(view.agents.len(), 1, "{view:?}");
    assert_eq!(view.not_agents["hostile"], WhyNotAgent::ImageLabel("address".into()));
    // The operator set the label of this container, but its project is one that the image names.
    assert!(matches!(view.not_agents["renamed"], WhyNotAgent::OtherProject { project: None, .. }), "{view:?}");
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn no_label_counts_while_images_cant_be_read() {
    let docker = FakeDocker::start();
    docker.set_response(&image(), 403, "no");
    let Some(mut harness) = Harness::start(&docker) else { return };
    docker.add_silently(agent("a", AGENT));
    let view = harness.wait_until("the view has the reason", |view| view.not_agents.contains_key("a")).await;
    assert!(view.agents.is_empty());
    assert!(view.not_agents["a"].to_string().contains("GET /images/{id}/json (403"), "{view:?}");
    docker.clear_response(&image());
    docker.send_event("container", "rename", "a", json!({}));
    harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
    let asked = docker.request_count(&image());
    docker.send_event("container", "rename", "a", json!({}));
    let lists = harness.metrics.lists_read.get();
    wait_until_true("the containers are listed once more", || harness.metrics.lists_read.get() > lists).await;
    assert_eq!(docker.request_count(&image()), asked, "the labels of an image are cached");
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_container_that_cant_be_read_is_ignored_and_discovery_goes_on() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    let mut stopped = container("stopped", json!({"note": null}), &[]);
    (stopped["State"], stopped["Health"], stopped["NetworkSettings"]["Networks"]) =
        ("stopped".into(), "".into(), json!({"x": null}));
    docker.add_silently(stopped);
    let mut unreadable = container("unreadable", json!({"loopgate.agent": "address"}), &[("front", "198.51.100.9")]);
    unreadable["NetworkSettings"]["Networks"]["front"]["IPAddress"] = 7.into();
    docker.add_silently(unreadable);
    docker.add_silently(agent("a", AGENT));
    let view = harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
    assert_eq!(view.agents.len(), 1, "{view:?}");
    docker.run_container(container(
        "b",
        json!({"loopgate.agent": "true", "empty": null}),
        &[("front", "198.51.100.10")],
    ));
    harness.wait_until("events are read", |view| view.agents.len() == 2).await;
    assert_eq!(harness.metrics.lost_streams.get(), 0);
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_container_that_lost_its_endpoint_stays_out_until_it_starts_or_connects_again() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    docker.add_silently(agent("a", AGENT));
    harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
    for (kind, action, actor) in [("container", "start", "a"), ("network", "connect", "front")] {
        // Docker Engine 28 disconnects a killed container while its list still shows the container
        // as running.
        docker.send_event("network", "disconnect", "front", json!({"container": "a"}));
        harness.wait_until("no container is an agent", |view| view.agents.is_empty()).await;
        for _ in 0..2 {
            let lists = harness.metrics.lists_read.get();
            docker.send_event("container", "rename", "another", json!({}));
            wait_until_true("the containers are listed once more", || harness.metrics.lists_read.get() > lists).await;
            assert!(harness.view.borrow().agents.is_empty(), "a list brought it back");
        }
        docker.send_event(kind, action, actor, json!({"container": "a"}));
        harness.wait_until("the agent is known again", |view| is_agent(view, "a")).await;
    }
    docker.send_event("container", "die", "a", json!({}));
    harness.wait_until("no agent after its death", |view| view.agents.is_empty()).await;
    let lists = harness.metrics.lists_read.get();
    docker.send_event("container", "rename", "another", json!({}));
    wait_until_true("the containers are listed once more", || harness.metrics.lists_read.get() > lists).await;
    assert!(harness.view.borrow().agents.is_empty(), "a list brought it back");
    docker.send_event("container", "start", "a", json!({}));
    harness.wait_until("the agent is known after its start", |view| is_agent(view, "a")).await;
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn aliases_are_known_where_inspecting_is_permitted_and_nothing_else_needs_it() {
    for permitted in [true, false] {
        let docker = FakeDocker::start();
        let networks = json!({"front": {"Aliases": ["api", "gateway"],
            "DNSNames": ["api", "gateway", "0123456789ab"]}, "back": {"Aliases": null}, "gone": null});
        docker.set_inspection("gateway", json!({"Id": "gateway", "NetworkSettings": {"Networks": networks}}));
        if !permitted {
            docker.set_response("/containers/gateway/json", 403, "no");
        }
        let Some(mut harness) = Harness::start(&docker) else { return };
        wait_until_ready(&mut harness.view, TIMEOUT).await;
        for name in ["api", "0123456789ab"] {
            assert_eq!(harness.view.borrow().own_names.contains(name), permitted, "{name}");
        }
        docker.run_container(agent("a", AGENT));
        harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
        assert_eq!(docker.request_count("/containers/gateway/json"), 1);
        let asked = docker.requested_paths();
        assert_eq!(
            asked,
            BTreeSet::from(["/containers/gateway/json", &image(), LIST, "/events"].map(String::from)),
            "discovery requests nothing else"
        );
        harness.stop_and_check_tasks().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_many_starts_and_stops_the_running_agents_are_known() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    harness.wait_until_live().await;
    let before = harness.metrics.lists_read.get();
    let address = |n: u16| IpAddr::from([10, 200, (n / 250) as u8, (n % 250) as u8 + 1]);
    let id = |n: u16| format!("{n:064x}");
    for n in 0..500 {
        docker.run_container(agent(&id(n), address(n)));
        docker.send_event("container", "exec_create: /bin/true", &id(n), json!({}));
        if n % 10 == 9 {
            tokio::task::yield_now().await;
        }
    }
    for n in (0..500).filter(|n| n % 5 != 0) {
        docker.stop_container(&id(n));
        if n % 50 == 1 {
            // Another container gets the address of one that has just stopped.
            docker.run_container(container(&id(1000 + n), json!({}), &[("front", &address(n).to_string())]));
        }
    }
    let expected: Vec<IpAddr> = (0..500).filter(|n| n % 5 == 0).map(address).collect();
    harness.wait_until("only the running agents are left", |view| view.agents.keys().eq(expected.iter())).await;
    wait_until_true("the metric counts the running agents", || harness.metrics.agent_addresses.get() == 100).await;
    assert!(
        harness.metrics.lists_read.get() - before < 60,
        "{} lists for 900 events",
        harness.metrics.lists_read.get() - before
    );
    assert_eq!(docker.subscriber_count(), 1);
    harness.stop_and_check_tasks().await;
}

/// Waits until `is_so` returns true.
async fn wait_until_true(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIMEOUT, wait).await.unwrap_or_else(|_| panic!("timed out waiting for: {what}"));
}

//! Discovery with a fake engine and the real client.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::{Config, Engine};
use crate::discovery::interface_watcher::InterfaceWatcher;
use crate::discovery::{EXIT_ORPHANED, Namespace, Proof, SourceState, View, WhyNot, start, wait_until_ready};
use crate::metrics;
use crate::shutdown::Shutdown;
use crate::testing::{in_own_process, ip, namespace_maker, skipped};
use loopgate_test_support::fake_docker::{FakeDocker, IMAGE, container};

/// How long anything may take before a test fails. Generous, since a test machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(20);
const LIST: &str = "/containers/json";
const AGENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));

/// Discovery at work in this very namespace.
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
        Self { view: start(&config, &metrics, &shutdown), metrics, shutdown }
    }

    /// Discovery with `docker`, in which a container `gateway` has the address of this namespace;
    /// `None`, reported as skipped, if it has none.
    fn with(docker: &FakeDocker) -> Option<Self> {
        let interfaces = InterfaceWatcher::open();
        let mut addresses =
            interfaces.latest().iter().flat_map(|interface| &interface.addresses).map(ipnet::IpNet::addr);
        let Some(own) = addresses.find(|ip| ip.is_ipv4() && !ip.is_loopback()) else {
            skipped("this machine has no address but loopback");
            return None;
        };
        docker.put(gateway(own));
        Some(Self::new(Engine::Unix(docker.socket())))
    }

    /// Waits until the view is such.
    async fn until(&mut self, what: &str, such: impl FnMut(&View) -> bool) -> Arc<View> {
        let mut such = such;
        let seen = timeout(TIMEOUT, self.view.wait_for(|view| such(view)))
            .await
            .map(|view| Arc::clone(&view.expect("discovery goes on")));
        seen.unwrap_or_else(|_| panic!("not so in time: {what}: {:#?}", self.view.borrow()))
    }

    async fn until_live(&mut self) -> Arc<View> {
        self.until("Docker is followed", |view| matches!(view.source_state, SourceState::Live { .. })).await
    }

    /// Ends it all, and sees that nothing is left behind.
    async fn close(self) {
        self.shutdown.begin();
        assert_eq!(self.shutdown.finished(TIMEOUT).await, 0, "a task outlived discovery");
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
    let Some(mut harness) = Harness::with(&docker) else { return };
    let view = harness.until_live().await;
    assert!(view.agents.is_empty() && view.own_names.contains("front-door"), "{view:?}");

    docker.run(agent("a", AGENT));
    let view = harness.until("the agent is known", |view| is_agent(view, "a")).await;
    assert_eq!(view.agents[&AGENT].proof, Proof::Address);

    // No list will ever tell of it: the event does.
    docker.silence(LIST);
    docker.stop("a");
    harness.until("the agent is forgotten", |view| view.agents.is_empty() && view.last_known.is_empty()).await;
    harness.close().await;
}

#[tokio::test]
async fn an_unlabelled_container_that_gets_an_agents_address_is_no_agent() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::with(&docker) else { return };
    docker.put(agent("a", AGENT));
    harness.until("the agent is known", |view| is_agent(view, "a")).await;

    docker.stop("a");
    docker.run(container("b", json!({}), &[("front", &AGENT.to_string())]));
    harness.until("no container is an agent", |view| view.agents.is_empty()).await;
    let lists = harness.metrics.lists.get();
    docker.event("container", "rename", "b", json!({}));
    eventually("it is listed once more", || harness.metrics.lists.get() > lists).await;
    assert!(harness.view.borrow().agents.is_empty());
    harness.close().await;
}

#[tokio::test]
async fn a_container_that_leaves_the_shared_network_is_no_agent() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::with(&docker) else { return };
    docker.put(container(
        "a",
        json!({"loopgate.agent": "true"}),
        &[("front", &AGENT.to_string()), ("back", "198.51.100.8")],
    ));
    harness.until("the agent is known", |view| is_agent(view, "a")).await;

    docker.silence(LIST);
    docker.event("network", "disconnect", "back", json!({"container": "a"}));
    docker.event("network", "disconnect", "front", json!({"container": "a"}));
    let view = harness.until("it is none", |view| view.agents.is_empty()).await;
    assert_eq!(view.not_agents.get("a"), Some(&WhyNot::NoSharedNetwork));
    harness.close().await;
}

#[tokio::test]
async fn a_label_that_the_image_has_too_is_not_the_operators() {
    let docker = FakeDocker::start();
    docker
        .image("sha256:hostile", json!({"loopgate.agent": "address", "com.docker.compose.project": "claws", "x": "y"}));
    let Some(mut harness) = Harness::with(&docker) else { return };
    let mut hostile = container("hostile", json!({"loopgate.agent": "address"}), &[("front", "198.51.100.9")]);
    hostile["ImageID"] = "sha256:hostile".into();
    docker.put(hostile);
    let mut renamed = container("renamed", json!({"loopgate.agent": "true"}), &[("front", "198.51.100.10")]);
    renamed["ImageID"] = "sha256:hostile".into();
    docker.put(renamed);
    docker.put(agent("a", AGENT));
    let view = harness.until("the agent is known", |view| is_agent(view, "a")).await;
    assert_eq!(view.agents.len(), 1, "{view:?}");
    assert_eq!(view.not_agents["hostile"], WhyNot::ImageLabel("address".into()));
    // The operator's label, but in a project that the image names.
    assert!(matches!(view.not_agents["renamed"], WhyNot::OtherProject { theirs: None, .. }), "{view:?}");
    harness.close().await;
}

#[tokio::test]
async fn where_images_may_not_be_read_no_label_counts_until_they_may() {
    let docker = FakeDocker::start();
    docker.answer(&image(), 403, "no");
    let Some(mut harness) = Harness::with(&docker) else { return };
    docker.put(agent("a", AGENT));
    let view = harness.until("it says why", |view| view.not_agents.contains_key("a")).await;
    assert!(view.agents.is_empty());
    assert!(view.not_agents["a"].to_string().contains("GET /images/{id}/json (403"), "{view:?}");
    docker.permit(&image());
    docker.event("container", "rename", "a", json!({}));
    harness.until("the agent is known", |view| is_agent(view, "a")).await;
    let asked = docker.asked(&image());
    docker.event("container", "rename", "a", json!({}));
    let lists = harness.metrics.lists.get();
    eventually("it is listed once more", || harness.metrics.lists.get() > lists).await;
    assert_eq!(docker.asked(&image()), asked, "an image is read once");
    harness.close().await;
}

#[tokio::test]
async fn an_engine_that_freezes_ends_agents_by_address_in_five_seconds() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::with(&docker) else { return };
    docker.put(agent("a", AGENT));
    docker.put(container("b", json!({"loopgate.agent": "true"}), &[("front", "198.51.100.8")]));
    harness.until("both are known", |view| view.agents.len() == 2).await;
    for path in [LIST, "/events"] {
        docker.silence(path);
    }
    let frozen = std::time::Instant::now();
    let view = harness.until("the address counts no longer", |view| !is_agent(view, "a")).await;
    let took = frozen.elapsed();
    // 5 s, and what a busy machine adds.
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(10), "{took:?}");
    assert!(view.agents.len() == 1 && view.last_known.len() == 2, "{view:?}");
    for path in [LIST, "/events"] {
        docker.permit(path);
    }
    harness.until("the engine is back", |view| is_agent(view, "a")).await;
    harness.close().await;
}

#[tokio::test]
async fn a_container_that_cant_be_read_is_ignored_and_discovery_goes_on() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::with(&docker) else { return };
    let mut stopped = container("stopped", json!({"note": null}), &[]);
    (stopped["State"], stopped["Health"], stopped["NetworkSettings"]["Networks"]) =
        ("stopped".into(), "".into(), json!({"x": null}));
    docker.put(stopped);
    let mut unreadable = container("unreadable", json!({"loopgate.agent": "address"}), &[("front", "198.51.100.9")]);
    unreadable["NetworkSettings"]["Networks"]["front"]["IPAddress"] = 7.into();
    docker.put(unreadable);
    docker.put(agent("a", AGENT));
    let view = harness.until("the agent is known", |view| is_agent(view, "a")).await;
    assert_eq!(view.agents.len(), 1, "{view:?}");
    docker.run(container("b", json!({"loopgate.agent": "true", "empty": null}), &[("front", "198.51.100.10")]));
    harness.until("events are read", |view| view.agents.len() == 2).await;
    assert_eq!(harness.metrics.losses.get(), 0);
    harness.close().await;
}

#[tokio::test]
async fn a_container_that_lost_its_endpoint_stays_out_until_it_starts_or_connects_again() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::with(&docker) else { return };
    docker.put(agent("a", AGENT));
    harness.until("the agent is known", |view| is_agent(view, "a")).await;
    for (kind, action, actor) in [("container", "start", "a"), ("network", "connect", "front")] {
        // Engine 28 disconnects a container that was killed while its list still shows it as running.
        docker.event("network", "disconnect", "front", json!({"container": "a"}));
        harness.until("it is none", |view| view.agents.is_empty()).await;
        for _ in 0..2 {
            let lists = harness.metrics.lists.get();
            docker.event("container", "rename", "another", json!({}));
            eventually("it is listed once more", || harness.metrics.lists.get() > lists).await;
            assert!(harness.view.borrow().agents.is_empty(), "a list brought it back");
        }
        docker.event(kind, action, actor, json!({"container": "a"}));
        harness.until("it is one again", |view| is_agent(view, "a")).await;
    }
    docker.event("container", "die", "a", json!({}));
    harness.until("it is dead", |view| view.agents.is_empty()).await;
    let lists = harness.metrics.lists.get();
    docker.event("container", "rename", "another", json!({}));
    eventually("it is listed once more", || harness.metrics.lists.get() > lists).await;
    assert!(harness.view.borrow().agents.is_empty(), "a list brought it back");
    docker.event("container", "start", "a", json!({}));
    harness.until("it lives again", |view| is_agent(view, "a")).await;
    harness.close().await;
}

#[tokio::test]
async fn events_of_health_checks_and_enrolment_cause_no_list() {
    let docker = FakeDocker::start();
    let Some(harness) = Harness::with(&docker) else { return };
    eventually("the first list is confirmed by a second one", || harness.metrics.lists.get() == 2).await;
    let before = harness.metrics.lists.get();
    for _ in 0..200 {
        for noise in [
            "exec_create: /bin/true",
            "exec_start: /bin/true",
            "exec_die",
            "health_status: healthy",
            "top",
            "archive-path",
        ] {
            docker.event("container", noise, "a", json!({}));
        }
        docker.event("volume", "mount", "v", json!({"container": "a"}));
    }
    docker.event("container", "rename", "a", json!({}));
    eventually("it is listed", || harness.metrics.lists.get() > before).await;
    assert_eq!(harness.metrics.lists.get(), before + 1);
    harness.close().await;
}

#[tokio::test]
async fn changes_while_a_filter_cuts_the_stream_are_found() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::with(&docker) else { return };
    docker.put(agent("a", AGENT));
    harness.until("the agent is known", |view| is_agent(view, "a")).await;
    for round in 0..5 {
        docker.cut_events();
        // Without an event: only a new list can tell.
        let (gone, came) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
        docker.take(gone);
        docker.put(agent(came, AGENT));
        harness
            .until("the other one is known", |view| {
                is_agent(view, came) && matches!(view.source_state, SourceState::Live { .. })
            })
            .await;
    }
    harness.close().await;
}

#[tokio::test]
async fn an_engine_that_restarts_is_followed_again_and_meanwhile_established_connections_stay() {
    let mut docker = FakeDocker::start();
    let Some(mut harness) = Harness::with(&docker) else { return };
    docker.put(agent("a", AGENT));
    harness.until("the agent is known", |view| is_agent(view, "a")).await;
    for tidy in [true, false] {
        docker.down(tidy).await;
        let expected = if tidy { "no socket at" } else { "nothing listens at" };
        let view = harness
            .until("Docker is lost", |view| view.source_state.error().is_some_and(|error| error.contains(expected)))
            .await;
        assert!(is_agent(&view.for_established(), "a"), "an established connection keeps its lane: {view:?}");
        if !tidy {
            std::fs::remove_file(docker.socket()).unwrap();
        }
        docker.up();
        harness
            .until("Docker is back", |view| {
                matches!(view.source_state, SourceState::Live { .. }) && is_agent(view, "a")
            })
            .await;
    }
    docker.down(true).await;
    docker.take("a");
    docker.up();
    harness.until("the agent ended meanwhile", |view| view.last_known.is_empty()).await;
    harness.close().await;
}

#[tokio::test]
async fn a_refused_endpoint_is_named_and_requested_again() {
    for endpoint in ["/events", LIST] {
        let docker = FakeDocker::start();
        docker.answer(endpoint, 403, "<html>\n<h1>Forbidden</h1>\n</html>");
        let Some(mut harness) = Harness::with(&docker) else { return };
        docker.put(agent("a", AGENT));
        let view = harness.until("it says what is missing", |view| view.source_state.error().is_some()).await;
        let error = view.source_state.error().unwrap();
        assert!(error.contains(&format!("refuses GET {endpoint} (403")) && error.contains("filter"), "{error}");
        assert!(view.agents.is_empty());

        docker.permit(endpoint);
        harness.until("the agent is known", |view| is_agent(view, "a")).await;
        harness.close().await;
    }
}

#[tokio::test]
async fn aliases_are_known_where_inspecting_is_permitted_and_nothing_else_needs_it() {
    for permitted in [true, false] {
        let docker = FakeDocker::start();
        let networks = json!({"front": {"Aliases": ["api", "gateway"], "DNSNames": ["api", "gateway", "0123456789ab"]}, "back": {"Aliases": null}, "gone": null});
        docker.details("gateway", json!({"Id": "gateway", "NetworkSettings": {"Networks": networks}}));
        if !permitted {
            docker.answer("/containers/gateway/json", 403, "no");
        }
        let Some(mut harness) = Harness::with(&docker) else { return };
        wait_until_ready(&mut harness.view, TIMEOUT).await;
        for name in ["api", "0123456789ab"] {
            assert_eq!(harness.view.borrow().own_names.contains(name), permitted, "{name}");
        }
        docker.run(agent("a", AGENT));
        harness.until("the agent is known", |view| is_agent(view, "a")).await;
        assert_eq!(docker.asked("/containers/gateway/json"), 1);
        let asked = docker.all_asked();
        assert_eq!(
            asked,
            BTreeSet::from(["/containers/gateway/json", &image(), LIST, "/events"].map(String::from)),
            "nothing else is needed"
        );
        harness.close().await;
    }
}

#[tokio::test]
async fn an_inspection_that_failed_is_repeated_at_the_next_list() {
    let docker = FakeDocker::start();
    docker.answer("/containers/gateway/json", 500, "busy");
    let Some(mut harness) = Harness::with(&docker) else { return };
    wait_until_ready(&mut harness.view, TIMEOUT).await;
    assert!(!harness.view.borrow().own_names.contains("api"));
    docker
        .details("gateway", json!({"Id": "gateway", "NetworkSettings": {"Networks": {"front": {"Aliases": ["api"]}}}}));
    docker.permit("/containers/gateway/json");
    docker.event("container", "rename", "a", json!({}));
    harness.until("the aliases are known", |view| view.own_names.contains("api")).await;
    harness.close().await;
}

#[tokio::test]
async fn a_filter_may_be_reached_by_tcp() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::with(&docker) else { return };
    let filter = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = filter.local_addr().unwrap().to_string();
    let (socket, relays) = (docker.socket(), harness.shutdown.clone());
    harness.shutdown.spawn(async move {
        while let Some(Ok((mut near, _))) = relays.token().run_until_cancelled(filter.accept()).await {
            let (socket, over) = (socket.clone(), relays.clone());
            relays.spawn(async move {
                let mut far = tokio::net::UnixStream::connect(socket).await.unwrap();
                let _ = over.token().run_until_cancelled(tokio::io::copy_bidirectional(&mut near, &mut far)).await;
            });
        }
    });
    let mut by_tcp = Harness::new(Engine::Tcp(address));
    docker.run(agent("a", AGENT));
    by_tcp.until("the agent is known", |view| is_agent(view, "a")).await;
    docker.stop("a");
    by_tcp.until("the agent is forgotten", |view| view.agents.is_empty()).await;
    by_tcp.close().await;
    harness.until_live().await;
    harness.close().await;
}

#[tokio::test]
async fn without_a_socket_there_is_no_agent_until_there_is_one() {
    let mut docker = FakeDocker::start();
    docker.down(true).await;
    let Some(mut harness) = Harness::with(&docker) else { return };
    docker.put(agent("a", AGENT));
    wait_until_ready(&mut harness.view, TIMEOUT).await;
    let view = Arc::clone(&harness.view.borrow());
    assert!(
        matches!(&view.source_state, SourceState::Connecting { error: Some(error) } if error.starts_with("no socket at")),
        "{view:?}"
    );
    docker.up();
    harness.until("the agent is known", |view| is_agent(view, "a")).await;
    harness.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_hundred_containers_that_come_and_go_the_right_ones_are_left() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::with(&docker) else { return };
    harness.until_live().await;
    let before = harness.metrics.lists.get();
    let address = |n: u16| IpAddr::from([10, 200, (n / 250) as u8, (n % 250) as u8 + 1]);
    let id = |n: u16| format!("{n:064x}");
    for n in 0..500 {
        docker.run(agent(&id(n), address(n)));
        docker.event("container", "exec_create: /bin/true", &id(n), json!({}));
        if n % 10 == 9 {
            tokio::task::yield_now().await;
        }
    }
    for n in (0..500).filter(|n| n % 5 != 0) {
        docker.stop(&id(n));
        if n % 50 == 1 {
            // Another one gets the address of one that has just ended.
            docker.run(container(&id(1000 + n), json!({}), &[("front", &address(n).to_string())]));
        }
    }
    let expected: Vec<IpAddr> = (0..500).filter(|n| n % 5 == 0).map(address).collect();
    harness.until("the right ones are left", |view| view.agents.keys().eq(expected.iter())).await;
    eventually("what is left is listed", || harness.metrics.agents.get() == 100).await;
    assert!(harness.metrics.lists.get() - before < 60, "{} lists for 900 events", harness.metrics.lists.get() - before);
    assert_eq!(docker.subscribers(), 1);
    harness.close().await;
}

#[test]
fn a_namespace_whose_owner_stops_is_orphaned_and_left_once_the_owner_runs_again() {
    let Some(unshare) = namespace_maker() else { return skipped("no network namespace may be made here") };
    in_own_process(
        unshare,
        "discovery::docker::tests::a_namespace_whose_owner_stops_is_orphaned_and_left_once_the_owner_runs_again",
        async || {
            let docker = FakeDocker::start();
            let own: IpAddr = "10.9.0.2".parse().unwrap();
            ip("link add eth0 type veth peer name peer0");
            ip("address add 10.9.0.2/24 dev eth0");
            ip("link set eth0 up");
            let lives =
                |started: &str| docker.details("gateway", json!({"Id": "gateway", "State": {"StartedAt": started}}));
            lives("2026-01-01T00:00:00Z");
            docker.put(gateway(own));
            let mut harness = Harness::new(Engine::Unix(docker.socket()));
            harness.until_live().await;
            assert_eq!(harness.view.borrow().namespace, Namespace::Attached);

            docker.stop("gateway");
            ip("link delete eth0");
            let view = harness.until("the namespace is an orphan", |view| view.namespace == Namespace::Orphaned).await;
            assert!(view.own_names.contains("gateway"), "names outlive the owner: {view:?}");
            lives("2026-01-01T00:01:00Z");
            docker.run(gateway(own));
            harness.until("it is left", |view| view.namespace == Namespace::Left).await;
            assert_eq!(EXIT_ORPHANED, 75);
            harness.close().await;
        },
    );
}

#[test]
fn the_bridge_is_known_by_the_routes_where_docker_is_off() {
    let Some(unshare) = namespace_maker() else { return skipped("no network namespace may be made here") };
    in_own_process(
        unshare,
        "discovery::docker::tests::the_bridge_is_known_by_the_routes_where_docker_is_off",
        async || {
            ip("link add eth0 type veth peer name peer0");
            ip("address add 172.30.9.2/24 dev eth0");
            ip("address add fd09::2/64 dev eth0 nodad");
            ip("link set eth0 up");
            ip("link set peer0 up");
            ip("route add default via 172.30.9.1");
            let mut harness = Harness::new(Engine::Off);
            let bridge = |view: &View| view.bridge_gateways.iter().map(IpAddr::to_string).collect::<Vec<_>>();
            assert_eq!(bridge(&harness.view.borrow()), ["172.30.9.1"]);

            let mut config = Config::default();
            config.agents.cidrs = vec!["172.30.9.0/24".parse().unwrap()];
            let policy = crate::lane::Policy::new(&config);
            let on = |view: &View, peer: &str| {
                let evidence = crate::lane::Evidence {
                    peer: peer.parse().unwrap(),
                    proxy_header: crate::lane::ProxyHeader::Local,
                    certificate: None,
                };
                crate::lane::decide(&evidence, view, &policy, 0).unwrap().kind().label()
            };
            for (peer, lane) in [("172.30.9.1", "external"), ("172.30.9.2", "external"), ("172.30.9.3", "agent")] {
                assert_eq!(on(&harness.view.borrow(), peer), lane, "{peer}");
            }

            ip("-6 route add default via fd09::1");
            harness.until("both are known", |view| bridge(view) == ["172.30.9.1", "fd09::1"]).await;
            ip("route replace default via 172.30.9.254");
            harness.until("the new one is known", |view| bridge(view) == ["172.30.9.254", "fd09::1"]).await;
            harness.close().await;
        },
    );
}

/// Waits for something that no view shows.
async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIMEOUT, wait).await.unwrap_or_else(|_| panic!("not so in time: {what}"));
}

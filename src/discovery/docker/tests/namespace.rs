//! Tests of the owner of this network namespace. Each test runs in a namespace of its own.

use super::*;

#[test]
fn a_namespace_whose_owner_stops_is_orphaned_and_left_once_the_owner_runs_again() {
    let Some(unshare) = new_namespace_command() else { return report_skipped("can't create a network namespace") };
    run_in_own_process(
        unshare,
        "discovery::docker::tests::namespace::a_namespace_whose_owner_stops_is_orphaned_and_left_once_the_owner_runs_again",
        async || {
            let docker = FakeDocker::start();
            let own: IpAddr = "10.9.0.2".parse().unwrap();
            run_ip("link add eth0 type veth peer name peer0");
            run_ip("address add 10.9.0.2/24 dev eth0");
            run_ip("link set eth0 up");
            let lives = |started: &str| {
                docker.set_inspection("gateway", json!({"Id": "gateway", "State": {"StartedAt": started}}))
            };
            lives("2026-01-01T00:00:00Z");
            docker.add_silently(gateway(own));
            let mut harness = Harness::new(Engine::Unix(docker.socket()));
            harness.wait_until_live().await;
            assert_eq!(harness.view.borrow().namespace, NamespaceState::Attached);

            docker.stop_container("gateway");
            run_ip("link delete eth0");
            let view = harness
                .wait_until("the namespace is an orphan", |view| view.namespace == NamespaceState::Orphaned)
                .await;
            assert!(view.own_names.contains("gateway"), "names outlive the owner: {view:?}");
            lives("2026-01-01T00:01:00Z");
            docker.run_container(gateway(own));
            harness.wait_until("it is left", |view| view.namespace == NamespaceState::Replaced).await;
            assert_eq!(EXIT_ORPHANED, 75);
            harness.stop_and_check_tasks().await;
        },
    );
}

#[test]
fn the_bridge_is_known_by_the_routes_where_docker_is_off() {
    let Some(unshare) = new_namespace_command() else { return report_skipped("can't create a network namespace") };
    run_in_own_process(
        unshare,
        "discovery::docker::tests::namespace::the_bridge_is_known_by_the_routes_where_docker_is_off",
        async || {
            run_ip("link add eth0 type veth peer name peer0");
            run_ip("address add 172.30.9.2/24 dev eth0");
            run_ip("address add fd09::2/64 dev eth0 nodad");
            run_ip("link set eth0 up");
            run_ip("link set peer0 up");
            run_ip("route add default via 172.30.9.1");
            let mut harness = Harness::new(Engine::Off);
            let bridge = |view: &View| view.bridge_gateways.iter().map(IpAddr::to_string).collect::<Vec<_>>();
            assert_eq!(bridge(&harness.view.borrow()), ["172.30.9.1"]);

            let mut config = Config::default();
            config.agents.cidrs = vec!["172.30.9.0/24".parse().unwrap()];
            let policy = crate::lane::LanePolicy::new(&config);
            let on = |view: &View, peer: &str| {
                let evidence = crate::lane::Evidence {
                    peer: peer.parse().unwrap(),
                    proxy_header: crate::lane::ProxyHeader::Local,
                    certificate: None,
                };
                crate::lane::decide_lane(&evidence, view, &policy, 0).unwrap().kind().label()
            };
            for (peer, lane) in [("172.30.9.1", "external"), ("172.30.9.2", "external"), ("172.30.9.3", "agent")] {
                assert_eq!(on(&harness.view.borrow(), peer), lane, "{peer}");
            }

            run_ip("-6 route add default via fd09::1");
            harness.wait_until("both are known", |view| bridge(view) == ["172.30.9.1", "fd09::1"]).await;
            run_ip("route replace default via 172.30.9.254");
            harness.wait_until("the new one is known", |view| bridge(view) == ["172.30.9.254", "fd09::1"]).await;
            harness.stop_and_check_tasks().await;
        },
    );
}

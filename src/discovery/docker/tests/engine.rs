//! Tests of an engine that freezes, restarts, refuses requests or is reached over TCP.

use super::*;

#[tokio::test]
async fn an_engine_that_freezes_ends_agents_by_address_in_five_seconds() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    docker.add_silently(agent("a", AGENT));
    docker.add_silently(container("b", json!({"loopgate.agent": "true"}), &[("front", "198.51.100.8")]));
    harness.wait_until("both are known", |view| view.agents.len() == 2).await;
    for path in [LIST, "/events"] {
        docker.stop_responding_on(path);
    }
    let frozen = std::time::Instant::now();
    let view = harness.wait_until("the address counts no longer", |view| !is_agent(view, "a")).await;
    let took = frozen.elapsed();
    // The grace is 5 s. The bounds leave a margin for a busy machine.
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(10), "{took:?}");
    assert!(view.agents.len() == 1 && view.last_known.len() == 2, "{view:?}");
    for path in [LIST, "/events"] {
        docker.clear_response(path);
    }
    harness.wait_until("the engine is back", |view| is_agent(view, "a")).await;
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn events_of_health_checks_and_enrolment_cause_no_list() {
    let docker = FakeDocker::start();
    let Some(harness) = Harness::start(&docker) else { return };
    wait_until_true("the first list is confirmed by a second one", || harness.metrics.lists_read.get() == 2).await;
    let before = harness.metrics.lists_read.get();
    for _ in 0..200 {
        for ignored in [
            "exec_create: /bin/true",
            "exec_start: /bin/true",
            "exec_die",
            "health_status: healthy",
            "top",
            "archive-path",
        ] {
            docker.send_event("container", ignored, "a", json!({}));
        }
        docker.send_event("volume", "mount", "v", json!({"container": "a"}));
    }
    docker.send_event("container", "rename", "a", json!({}));
    wait_until_true("the containers are listed", || harness.metrics.lists_read.get() > before).await;
    assert_eq!(harness.metrics.lists_read.get(), before + 1);
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn changes_while_a_filter_cuts_the_stream_are_found() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    docker.add_silently(agent("a", AGENT));
    harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
    for round in 0..5 {
        docker.cut_events();
        // No event reports these changes: only a new list shows them.
        let (gone, came) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
        docker.remove_silently(gone);
        docker.add_silently(agent(came, AGENT));
        harness
            .wait_until("the other one is known", |view| {
                is_agent(view, came) && matches!(view.source_state, SourceState::Live { .. })
            })
            .await;
    }
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn an_engine_that_restarts_is_followed_again_and_meanwhile_established_connections_stay() {
    let mut docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    docker.add_silently(agent("a", AGENT));
    harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
    for removes_socket in [true, false] {
        docker.stop_engine(removes_socket).await;
        let expected = if removes_socket { "no socket at" } else { "nothing listens at" };
        let view = harness
            .wait_until("Docker is lost", |view| {
                view.source_state.error().is_some_and(|error| error.contains(expected))
            })
            .await;
        assert!(is_agent(&view.for_established(), "a"), "an established connection keeps its lane: {view:?}");
        if !removes_socket {
            std::fs::remove_file(docker.socket()).unwrap();
        }
        docker.start_again();
        harness
            .wait_until("Docker is back", |view| {
                matches!(view.source_state, SourceState::Live { .. }) && is_agent(view, "a")
            })
            .await;
    }
    docker.stop_engine(true).await;
    docker.remove_silently("a");
    docker.start_again();
    harness.wait_until("the agent ended meanwhile", |view| view.last_known.is_empty()).await;
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_refused_endpoint_is_named_and_requested_again() {
    for endpoint in ["/events", LIST] {
        let docker = FakeDocker::start();
        docker.set_response(endpoint, 403, "<html>\n<h1>Forbidden</h1>\n</html>");
        let Some(mut harness) = Harness::start(&docker) else { return };
        docker.add_silently(agent("a", AGENT));
        let view = harness.wait_until("the view has the error", |view| view.source_state.error().is_some()).await;
        let error = view.source_state.error().unwrap();
        assert!(error.contains(&format!("refuses GET {endpoint} (403")) && error.contains("filter"), "{error}");
        assert!(view.agents.is_empty());

        docker.clear_response(endpoint);
        harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
        harness.stop_and_check_tasks().await;
    }
}

#[tokio::test]
async fn an_inspection_that_failed_is_repeated_at_the_next_list() {
    let docker = FakeDocker::start();
    docker.set_response("/containers/gateway/json", 500, "busy");
    let Some(mut harness) = Harness::start(&docker) else { return };
    wait_until_ready(&mut harness.view, TIMEOUT).await;
    assert!(!harness.view.borrow().own_names.contains("api"));
    docker.set_inspection(
        "gateway",
        json!({"Id": "gateway", "NetworkSettings": {"Networks": {"front": {"Aliases": ["api"]}}}}),
    );
    docker.clear_response("/containers/gateway/json");
    docker.send_event("container", "rename", "a", json!({}));
    harness.wait_until("the aliases are known", |view| view.own_names.contains("api")).await;
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn a_filter_may_be_reached_by_tcp() {
    let docker = FakeDocker::start();
    let Some(mut harness) = Harness::start(&docker) else { return };
    let filter = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = filter.local_addr().unwrap().to_string();
    let (socket, relays) = (docker.socket(), harness.shutdown.clone());
    harness.shutdown.spawn(async move {
        while let Some(Ok((mut near, _))) = relays.cancellation_token().run_until_cancelled(filter.accept()).await {
            let (socket, over) = (socket.clone(), relays.clone());
            relays.spawn(async move {
                let mut far = tokio::net::UnixStream::connect(socket).await.unwrap();
                let _ = over
                    .cancellation_token()
                    .run_until_cancelled(tokio::io::copy_bidirectional(&mut near, &mut far))
                    .await;
            });
        }
    });
    let mut by_tcp = Harness::new(Engine::Tcp(address));
    docker.run_container(agent("a", AGENT));
    by_tcp.wait_until("the agent is known", |view| is_agent(view, "a")).await;
    docker.stop_container("a");
    by_tcp.wait_until("the agent is forgotten", |view| view.agents.is_empty()).await;
    by_tcp.stop_and_check_tasks().await;
    harness.wait_until_live().await;
    harness.stop_and_check_tasks().await;
}

#[tokio::test]
async fn without_a_socket_there_is_no_agent_until_there_is_one() {
    let mut docker = FakeDocker::start();
    docker.stop_engine(true).await;
    let Some(mut harness) = Harness::start(&docker) else { return };
    docker.add_silently(agent("a", AGENT));
    wait_until_ready(&mut harness.view, TIMEOUT).await;
    let view = Arc::clone(&harness.view.borrow());
    let SourceState::Connecting { error: Some(error) } = &view.source_state else { panic!("{view:?}") };
    assert!(error.starts_with("no socket at"), "{error}");
    docker.start_again();
    harness.wait_until("the agent is known", |view| is_agent(view, "a")).await;
    harness.stop_and_check_tasks().await;
}

//! The gateway disconnects, stalls, restarts or is down: the response that each client gets, and
//! the requests that are never sent twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use loopgate_test_support::fake_gateway::FakeGateway;
use loopgate_test_support::sidecar::{Launch, loopgate};
use loopgate_test_support::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::harness::{Harness, OUTSIDER, PROTOCOLS, Protocol, request_text, start_process};

/// Returns the error type and the request id in the body of an error response by loopgate.
fn parse_error(body: &str) -> (String, String) {
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let field = |name: &str| body["error"][name].as_str().unwrap().to_owned();
    (field("type"), field("request_id"))
}

#[tokio::test]
async fn a_broken_gateway_connection_gives_502_and_a_post_is_sent_once() {
    let harness = Harness::start().await;
    for protocol in PROTOCOLS {
        for path in ["/dies", "/nonsense"] {
            let before = harness.gateway.requests().len();
            let (status, read_body) = harness.send_request(protocol, OUTSIDER, &format!("POST {path}"), &[]).await;
            assert_eq!((status, parse_error(&read_body).0.as_str()), (502, "gateway_broke_off"), "{protocol:?} {path}");
            assert_eq!(harness.gateway.requests().len(), before + 1, "a POST is not repeated");
        }
    }
}

#[tokio::test]
async fn a_request_that_breaks_the_gateway_is_not_repeated_forever() {
    let harness = Harness::start().await;
    // The sidecar sends a request a second time only if the connection may be at fault, and never
    // once a response has begun.
    for (path, times, expected) in [
        ("/dies", 2, "gateway_broke_off"),
        ("/dies-in-its-head", 1, "gateway_broke_off"),
        ("/nonsense", 1, "gateway_broke_off"),
        ("/many-fields?300", 1, "gateway_head_too_large"),
        ("/large-head?300000", 1, "gateway_head_too_large"),
    ] {
        for protocol in PROTOCOLS {
            let before = harness.gateway.requests().len();
            let (status, read_body) = harness.send_request(protocol, OUTSIDER, &format!("GET {path}"), &[]).await;
            assert_eq!((status, parse_error(&read_body).0.as_str()), (502, expected), "{protocol:?} {path}");
            assert_eq!(harness.gateway.requests().len() - before, times, "{protocol:?} {path}");
        }
        // A connection to the gateway that was used before may be stale, which allows one more
        // attempt.
        let mut client = harness.connect_h1(OUTSIDER).await;
        assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
        let before = harness.gateway.requests().len();
        assert_eq!(client.send_request(request_text(&format!("GET {path}"), "")).await.status(), 502, "{path}");
        assert_eq!(harness.gateway.requests().len() - before, times + usize::from(path == "/dies"), "{path}");
    }
}

#[tokio::test]
async fn a_gateway_that_closes_every_connection_is_not_flooded() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let harness = Harness::start_with(|config| {
        config.gateway.address = address;
        config.limits.gateway_wait = Duration::from_millis(500);
    })
    .await;
    let mut accepted = 0;
    let closing = async {
        loop {
            drop(listener.accept().await.unwrap());
            accepted += 1;
        }
    };
    let asking = async {
        for protocol in PROTOCOLS {
            for method in ["GET", "POST"] {
                let (status, _) = harness.send_request(protocol, OUTSIDER, &format!("{method} /"), &[]).await;
                assert!(matches!(status, 502 | 503), "{protocol:?} {method}: {status}");
            }
        }
    };
    tokio::select! {
        () = closing => {}
        () = asking => {}
    }
    assert!((4..=60).contains(&accepted), "{accepted} connections for four requests");
}

#[tokio::test]
async fn a_body_broken_by_the_client_is_not_reported_as_a_gateway_error() {
    let sidecar = start_process(&["--log-level=debug"], "").await;
    let head = request_text("POST /echo", "Transfer-Encoding: chunked\r\n");
    let response = sidecar.connect_h1(OUTSIDER).await.send_request(format!("{head}4\r\nbody\r\nzz\r\n")).await;
    assert_eq!((response.status(), response.field("connection")), (400, Some("close")));
    let (kind, id) = parse_error(&response.text());
    assert_eq!(kind, "bad_body");
    sidecar.process().wait_for_log(&id).await;

    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(head.replace("/echo", "/unread") + "4\r\nbody\r\n").await.unwrap();
    // The reset comes only now, because it discards bytes that the sidecar has not read.
    sidecar.gateway.wait_for_requests(2).await;
    client.stream.get_ref().0.set_zero_linger().unwrap();
    drop(client);
    let both_reported = async {
        let is_reported = |what| sidecar.process().log_lines().iter().any(|line| line.contains(what));
        while !(is_reported("body is malformed") && is_reported("left before the end of its body")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), both_reported).await.expect("both are reported");
    let complaints: Vec<_> = sidecar
        .process()
        .log_lines()
        .into_iter()
        .filter(|line| line.contains("WARN") || line.contains("gateway_broke"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// The gateway answers and closes without reading the body, so the sidecar's next write to it gets
/// a reset.
#[tokio::test]
async fn a_response_before_the_end_of_the_body_is_forwarded() {
    let harness = Harness::start().await;
    let body = vec![b'x'; 3_000_000];
    for round in 0..20 {
        let mut client = harness.connect_h1(OUTSIDER).await;
        let head = request_text("POST /unwanted", &format!("Content-Length: {}\r\n", body.len()));
        // The write may fail, because the sidecar may close the client's connection too. Only the
        // response counts.
        let _ = client.send([head.as_bytes(), &body].concat()).await;
        let response = client.read_response().await.expect("an answer");
        assert_eq!((response.status(), response.text().as_str()), (413, "too much"), "{round}");

        let mut client = harness.connect_h2(OUTSIDER).await;
        let (response, mut stream) =
            client.send_request(crate::harness::h2_request("POST /unwanted", &[]), false).unwrap();
        stream.send_data(body.clone().into(), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 413, "{round}");
        assert_eq!(
            harness.send_request(PROTOCOLS[round % 2], OUTSIDER, "POST /echo", &[]).await.0,
            200,
            "no request goes over the closed connection"
        );
    }
}

#[tokio::test]
async fn a_stalled_gateway_gives_504_after_the_request_timeout() {
    let harness = Harness::start_with(|config| config.limits.request_timeout = Duration::from_millis(200)).await;
    for protocol in PROTOCOLS {
        let (status, read_body) = harness.send_request(protocol, OUTSIDER, "GET /stalls", &[]).await;
        assert_eq!((status, parse_error(&read_body).0.as_str()), (504, "gateway_timeout"));
    }
    assert_eq!(harness.gateway.requests().len(), 2, "a request that timed out is not repeated");
    assert_eq!(harness.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
}

#[tokio::test]
async fn a_truncated_response_body_is_not_forwarded_as_complete() {
    let harness = Harness::start().await;
    for path in ["/dies-halfway", "/dies-between-chunks"] {
        let mut client = harness.connect_h1(OUTSIDER).await;
        client.send(request_text(&format!("GET {path}"), "")).await.unwrap();
        assert!(client.read_response().await.is_none(), "{path}: the connection ends before the body does");
        let mut client = harness.connect_h2(OUTSIDER).await;
        let (response, _) = client.send_request(crate::harness::h2_request(&format!("GET {path}"), &[]), true).unwrap();
        // The reset may overtake the head.
        let broken = match response.await {
            Ok(mut response) => crate::harness::read_whole_body(response.body_mut()).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(broken.is_reset(), "{path}: {broken}");
    }
}

#[tokio::test]
async fn an_unreachable_gateway_is_waited_for_and_then_gives_503() {
    let harness = Harness::start_with(|config| config.limits.gateway_wait = Duration::from_millis(300)).await;
    harness.gateway.kill();
    let begun = Instant::now();
    let mut client = harness.connect_h1(OUTSIDER).await;
    let response = client.send_request(request_text("GET /", "Accept: text/html,*/*\r\n")).await;
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!((response.status(), response.field("retry-after")), (503, Some("1")));
    assert_eq!(response.field("content-type"), Some("text/html; charset=utf-8"));
    assert!(response.text().contains(response.field("x-request-id").unwrap()));
    let response = client.send_request(request_text("POST /", "Content-Length: 0\r\n")).await;
    assert_eq!((response.status(), response.field("retry-after")), (503, Some("1")));
    let (kind, id) = parse_error(&response.text());
    assert_eq!((kind.as_str(), Some(id.as_str())), ("gateway_unavailable", response.field("x-request-id")));
    harness.gateway.restart();
    assert_eq!(client.send_request(request_text("GET /", "")).await.text(), "hello");
}

#[tokio::test]
async fn requests_wait_for_a_gateway_that_restarts() {
    let harness = Harness::start().await;
    // A connection in the pool that the restart makes stale.
    assert_eq!(harness.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
    harness.gateway.kill();
    let asking = futures_util::future::join_all((0..50).map(|number| {
        let line = ["GET /", "POST /echo", "DELETE /x"][number % 3];
        let harness = &harness;
        async move { harness.send_request(PROTOCOLS[number % 2], OUTSIDER, line, &[]).await.0 }
    }));
    let restarting = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        harness.gateway.restart();
    };
    let (statuses, ()) = tokio::join!(asking, restarting);
    assert_eq!(statuses, [200; 50]);
    assert_eq!(harness.gateway.wait_for_requests(51).await.len(), 51, "each was sent once");
}

/// Starts a gateway that relays to `tls`, which speaks TLS, while `is_tls` is set, and to `plain`
/// otherwise. Like Node.js, it closes a connection without a response if plain HTTP arrives while
/// it speaks TLS.
pub async fn with_tls_switch(tls: SocketAddr, plain: SocketAddr, is_tls: Arc<AtomicBool>, tasks: &Tasks) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Tasks::default();
    tasks.spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let is_tls = is_tls.load(Ordering::SeqCst);
            connections.spawn(async move {
                let mut first = [0];
                if matches!(client.peek(&mut first).await, Ok(1)) && (!is_tls || first == [0x16]) {
                    let mut server = TcpStream::connect(if is_tls { tls } else { plain }).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_speaks_tls_is_reported_in_responses_logs_and_readiness() {
    let (server, plain, tasks) = (Harness::start().await, FakeGateway::start().await, Tasks::default());
    let is_tls = Arc::new(AtomicBool::new(true));
    let gateway = with_tls_switch(server.sidecar.tls_addresses()[0], plain.address, Arc::clone(&is_tls), &tasks).await;
    let sidecar = Launch::new().gateway(gateway).start_async().await;
    let healthcheck = || loopgate(["healthcheck", &format!("--admin={}", sidecar.admin_address())]).output().unwrap();
    const KEY: &str = "gateway.tls.enabled";

    let checked = healthcheck();
    assert!(!checked.status.success() && String::from_utf8_lossy(&checked.stderr).contains(KEY), "{checked:?}");
    let ready = sidecar.admin_get("/readyz", "127.0.0.1");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("speaks TLS") && ready.contains(KEY), "{ready}");
    assert!(sidecar.status_json()["gateway"]["error"].as_str().unwrap().contains(KEY));
    for (protocol, line) in [(Protocol::H1, "GET /"), (Protocol::H2, "POST /echo")] {
        let (status, read_body) = sidecar.send_request(protocol, OUTSIDER, line, &[]).await;
        assert_eq!((status, parse_error(&read_body).0.as_str()), (502, "gateway_tls"), "{read_body}");
        assert!(read_body.contains(KEY), "{read_body}");
    }
    assert!(sidecar.process().wait_for_log("speaks TLS").await.contains(KEY));
    assert!(
        sidecar.admin_get("/metrics", "127.0.0.1").contains("loopgate_gateway_errors_total{reason=\"gateway_tls\"} 2")
    );

    is_tls.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
    assert!(healthcheck().status.success());

    // TLS is switched on again between two probes of the gateway, so a client's request is the
    // first to fail.
    is_tls.store(true, Ordering::SeqCst);
    plain.kill();
    assert_eq!(sidecar.send_request(Protocol::H1, OUTSIDER, "POST /echo", &[]).await.0, 502);
    assert!(!healthcheck().status.success());
}

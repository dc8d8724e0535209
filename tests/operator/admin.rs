//! The admin listener: `loopgate status`, its JSON, the page, and requests that it refuses.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Harness, free_address, loopgate};

/// A TLS connection to the sidecar that stays open.
pub fn connect(sidecar: &Harness) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let mut stream = sidecar.connect_blocking();
    stream.flush().unwrap();
    stream
}

#[test]
fn status_shows_each_connection_with_its_lane_and_why_it_is_external() {
    let sidecar = Harness::start(&[]);
    let before = sidecar.status_json();
    assert_eq!((&before["ready"], &before["gateway"]["reachable"]), (&true.into(), &true.into()), "{before:#}");
    assert_eq!(before["listening"], serde_json::json!([sidecar.address.to_string()]));
    let _client = connect(&sidecar);
    let status = sidecar.wait_for_status(|status| status["lanes"]["external"] == 1);
    let connection = &status["connections"][0];
    assert_eq!((&connection["lane"], &connection["protocol"]), (&"external".into(), &"http/1.1".into()), "{status:#}");
    assert!(connection["why_not_agent"].as_str().unwrap().contains("--own-addresses"), "{status:#}");
    let printed = String::from_utf8(sidecar.run_status(&[]).stdout).unwrap();
    assert!(printed.contains(connection["peer"].as_str().unwrap()) && !printed.contains('\x1b'), "{printed}");
    assert!(printed.contains(status["certificate"]["fingerprint"].as_str().unwrap()), "{printed}");
}

#[test]
fn clients_from_own_addresses_are_agents_with_the_flag() {
    let sidecar = Harness::start(&["--own-addresses", "agent"]);
    let _client = connect(&sidecar);
    let status = sidecar.wait_for_status(|status| status["lanes"]["agent"] == 1);
    let connection = &status["connections"][0];
    assert_eq!(
        (&connection["admitted"], &connection["source"]),
        (&"own-address".into(), &"127.0.0.1".into()),
        "{status:#}"
    );
}

#[test]
fn a_gateway_that_is_down_is_reported_by_status_page_metrics_and_log() {
    let mut sidecar = Harness::start(&["--listen=127.0.0.1:0", "--listen=nope0:28444", "--log-format=text"]);
    drop(sidecar.gateway.take());
    let status = sidecar.wait_for_status(|status| status["ready"] == false);
    assert!(status["not_ready"][0].as_str().unwrap().starts_with("the gateway accepts no connection: "), "{status:#}");
    assert!(sidecar.admin_get("/readyz", "localhost").starts_with("HTTP/1.1 503"));
    assert!(sidecar.admin_get("/", "localhost").contains("not ready"));
    assert!(sidecar.admin_get("/metrics", "localhost").contains("\nloopgate_gateway_up 0\n"));
    let printed = String::from_utf8(sidecar.run_status(&[]).stdout).unwrap();
    assert!(printed.contains("not ready") && printed.contains("nope0:28444"), "{printed}");
    let log = sidecar.process().output();
    for (once, level) in [("the gateway can't be reached", "WARN"), ("listen=\"nope0:28444\"", "WARN")] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(once)).collect();
        assert!(lines.len() == 1 && lines[0].contains(level), "{once}: {log}");
    }
    let address = status["gateway"]["address"].as_str().unwrap();
    sidecar.gateway = Some(std::net::TcpListener::bind(address).unwrap());
    sidecar.wait_for_status(|status| status["gateway"]["reachable"] == true);
    assert!(sidecar.process().output().contains("the gateway can be reached again"));
}

#[test]
fn dns_rebinding_can_not_read_the_admin_listener() {
    let sidecar = Harness::start(&["--tls-name", "gateway.example.com"]);
    for path in ["/", "/status", "/metrics", "/readyz", "/healthz"] {
        assert!(sidecar.admin_get(path, "rebound.example").starts_with("HTTP/1.1 421"), "{path}");
        assert!(sidecar.admin_get(path, "127.0.0.1:9180").starts_with("HTTP/1.1 200"), "{path}");
        assert!(sidecar.admin_get(path, "gateway.example.com:9180").starts_with("HTTP/1.1 200"), "{path}");
    }
}

#[test]
fn the_pages_content_security_policy_lets_it_load_nothing() {
    let sidecar = Harness::start(&[]);
    let page = sidecar.admin_get("/", "localhost");
    assert!(page.contains("content-security-policy: default-src 'none'; style-src 'sha256-"), "{page}");
    assert!(page.contains("x-content-type-options: nosniff") && page.contains("text/html; charset=utf-8"), "{page}");
    assert!(page.contains(&sidecar.address.to_string()), "{page}");
}

#[test]
fn clients_that_never_read_do_not_block_the_admin_listener() {
    let sidecar = Harness::start(&[]);
    let unread: Vec<_> = (0..64)
        .map(|_| {
            let mut stream = TcpStream::connect(sidecar.admin_address()).unwrap();
            // More than all buffers hold, so the write is expected to time out.
            stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            let _ = stream.write_all("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(5000).as_bytes());
            stream
        })
        .collect();
    let mut probe = TcpStream::connect(sidecar.admin_address()).unwrap();
    probe.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    probe.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    BufReader::new(probe).read_line(&mut answer).unwrap();
    assert_eq!(answer, "HTTP/1.1 200 OK\r\n");
    drop(unread);
}

#[test]
fn status_watch_ends_when_its_reader_is_gone() {
    let sidecar = Harness::start(&[]);
    let mut watcher = loopgate(["status", "--json", "--watch", "--admin", &sidecar.admin_address().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watcher.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = lines.next().unwrap().unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["ready"], true);
    }
    drop(lines);
    assert!(watcher.wait().unwrap().success());
}

#[test]
fn status_fails_with_one_line_without_a_sidecar() {
    let address = free_address().to_string();
    let output = loopgate(["status", "--admin", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error_output = String::from_utf8(output.stderr).unwrap();
    assert!(
        error_output.starts_with(&format!("loopgate: no sidecar answers at {address}; run this"))
            && error_output.lines().count() == 1,
        "{error_output}"
    );
    let missing = loopgate(["status", "--config", "/nope.toml"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8(missing.stderr).unwrap().starts_with("loopgate: --config: /nope.toml: "));
    let off = loopgate(["status", "--admin", "off"]).output().unwrap();
    assert_eq!(off.status.code(), Some(1));
}

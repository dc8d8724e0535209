//! Reloads: options that can change live do, options that need a restart are named, and an invalid
//! configuration changes nothing.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use loopgate::config::PathRule;
use loopgate_test_support::sidecar::free_address;
use loopgate_test_support::websocket::Socket;
use nix::sys::signal::Signal;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::harness::{
    AGENT, EXTERNAL_SOURCE, Harness, OUTSIDER, Protocol, TRUSTED_PROXY, h2_request, read_whole_body, request_text,
    start_process,
};

/// The time limit of steps that should take no time.
const SOON: Duration = Duration::from_secs(10);
const RELOADED: &str = "configuration reloaded";

/// Whether `received` is the close frame of a WebSocket that is no longer authorized.
fn is_policy_close(received: Option<&tungstenite::Result<Message>>) -> bool {
    matches!(received, Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Policy)
}

/// Asserts of each WebSocket whether it is still open; the others are closed with 1008.
async fn assert_which_stay<const N: usize>(sockets: &mut [Socket], which: [bool; N]) {
    assert_eq!(sockets.len(), N);
    for (socket, stays) in sockets.iter_mut().zip(which) {
        let sent = socket.send(Message::text("still there?")).await;
        let received = timeout(SOON, socket.next()).await.unwrap();
        assert_eq!(sent.is_ok() && matches!(received, Some(Ok(Message::Text(_)))), stays, "{received:?}");
        assert_eq!(is_policy_close(received.as_ref()), !stays, "{received:?}");
    }
}

/// Reloads the sidecar's configuration with a change.
async fn reload_with(harness: &Harness, change: impl FnOnce(&mut loopgate::config::Config)) {
    let mut config = (*harness.sidecar.config()).clone();
    change(&mut config);
    harness.sidecar.reload(Ok(config), |_| {});
}

#[tokio::test]
async fn a_reload_closes_connections_of_denied_clients_only() {
    let harness = Harness::start().await;
    let mut denied = harness.connect_h1(OUTSIDER).await;
    let mut other = harness.connect_h1("127.0.0.4").await;
    for client in [&mut denied, &mut other] {
        assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
    }
    reload_with(&harness, |config| config.external.deny = vec![format!("{OUTSIDER}/32").parse().unwrap()]).await;
    assert!(denied.read_rest().await.is_empty());
    assert!(harness.handshake(harness.connect_tcp(OUTSIDER).await, "http/1.1").await.is_err());
    assert_eq!(other.send_request(request_text("GET /", "")).await.status(), 200, "on the same connection");
    reload_with(&harness, |config| config.external.deny.clear()).await;
    assert_eq!(harness.send_request(Protocol::H2, OUTSIDER, "GET /", &[]).await.0, 200);
}

/// A connection that was external before its address became an agent's stays external.
#[tokio::test]
async fn a_reload_closes_a_denied_external_connection_from_the_address_of_an_agent() {
    let harness = Harness::start().await;
    let mut external = harness.connect_h1(OUTSIDER).await;
    assert_eq!(external.send_request(request_text("GET /", "")).await.status(), 200);
    let outsider = || vec![format!("{OUTSIDER}/32").parse().unwrap()];
    reload_with(&harness, |config| config.agents.cidrs = outsider()).await;
    assert_eq!(external.send_request(request_text("GET /", "")).await.status(), 200, "nothing denies it yet");
    reload_with(&harness, |config| config.external.deny = outsider()).await;
    assert!(external.read_rest().await.is_empty());
}

#[tokio::test]
async fn a_reload_ends_requests_of_denied_clients_of_a_proxy_only() {
    let harness = Harness::start().await;
    let named = [("x-forwarded-for", "203.0.113.9")];
    let mut sockets =
        harness.open_websockets(TRUSTED_PROXY, "/ws", &[&named, &[("x-forwarded-for", "198.51.100.9")]]).await;
    let page = [("origin", "https://page.example")];
    sockets.extend(harness.open_websockets(AGENT, "/ws", &[&page, &[]]).await);
    reload_with(&harness, |config| {
        config.external.deny = vec!["203.0.113.0/24".parse().unwrap(), format!("{AGENT}/32").parse().unwrap()]
    })
    .await;
    assert_which_stay(&mut sockets, [false, true, false, true]).await;
}

#[tokio::test]
async fn a_reload_ends_responses_to_denied_clients() {
    const FIELDS: [&str; 2] = ["X-Forwarded-For: 203.0.113.9\r\n", "Origin: https://page.example\r\n"];
    let harness = Harness::start().await;
    let [denied, other] = ["203.0.113.9", "198.51.100.9"].map(|client| [("x-forwarded-for", client)]);
    let mut h2 = harness.connect_h2(TRUSTED_PROXY).await;
    let mut streams = Vec::new();
    for fields in [&denied, &other] {
        streams.push(h2.send_request(h2_request("GET /events", fields), true).unwrap().0.await.unwrap().into_body());
    }
    let mut large =
        h2.send_request(h2_request("GET /large?100000000", &denied), true).unwrap().0.await.unwrap().into_body();
    let (unanswered, _) = h2.send_request(h2_request("GET /stalls", &denied), true).unwrap();
    let mut h1 = [harness.connect_h1(TRUSTED_PROXY).await, harness.connect_h1(AGENT).await];
    for (client, fields) in h1.iter_mut().zip(FIELDS) {
        client.send(request_text("GET /events", fields)).await.unwrap();
        assert_eq!(client.read_head().await.unwrap().status(), 200);
    }
    timeout(SOON, harness.gateway.wait_for_requests(6)).await.unwrap();
    reload_with(&harness, |config| {
        config.external.deny = vec!["203.0.113.0/24".parse().unwrap(), format!("{AGENT}/32").parse().unwrap()]
    })
    .await;
    assert!(timeout(SOON, read_whole_body(&mut streams[0])).await.unwrap().is_err());
    // This response is too large to be complete by now.
    assert!(timeout(SOON, read_whole_body(&mut large)).await.unwrap().is_err());
    assert_eq!(timeout(SOON, unanswered).await.unwrap().unwrap().status(), 403);
    for client in &mut h1 {
        assert_eq!(
            timeout(SOON, client.read_rest()).await.unwrap(),
            b"",
            "the response is cut off without a last chunk"
        );
    }
    harness.gateway.release_held(12);
    assert_eq!(
        timeout(SOON, read_whole_body(&mut streams[1])).await.unwrap().unwrap().len(),
        3 * "data: event 0\n".len()
    );
}

#[tokio::test]
async fn a_reload_that_denies_a_proxy_closes_only_its_own_requests() {
    let harness = Harness::start().await;
    let mut sockets =
        harness.open_websockets(TRUSTED_PROXY, "/ws", &[&[], &[("x-forwarded-for", "198.51.100.9")]]).await;
    reload_with(&harness, |config| config.external.deny = vec![format!("{TRUSTED_PROXY}/32").parse().unwrap()]).await;
    assert_which_stay(&mut sockets, [false, true]).await;
}

#[tokio::test]
async fn a_reload_closes_connections_of_agents_no_longer_listed() {
    let harness = Harness::start().await;
    let mut agent = harness.connect_h1(AGENT).await;
    let mut websockets = [
        harness.open_websocket(Protocol::H1, AGENT, "/ws").await,
        harness.open_websocket(Protocol::H2, AGENT, "/ws").await,
    ];
    assert_eq!(agent.send_request(request_text("GET /", "")).await.status(), 200);
    reload_with(&harness, |config| config.agents.cidrs.clear()).await;
    assert!(agent.read_rest().await.is_empty());
    for websocket in &mut websockets {
        let end = timeout(Duration::from_secs(2), websocket.next()).await.unwrap();
        assert!(is_policy_close(end.as_ref()), "{end:?}");
    }
    assert_eq!(harness.send_request(Protocol::H1, AGENT, "GET /", &[]).await.0, 200);
    assert_eq!(harness.gateway.requests().last().unwrap().source(), EXTERNAL_SOURCE);
}

#[tokio::test]
async fn a_reload_stops_a_proxy_no_longer_trusted_from_stating_clients() {
    let harness = Harness::start().await;
    let mut proxy = harness.connect_h1(TRUSTED_PROXY).await;
    assert_eq!(proxy.send_request(request_text("GET /", "X-Forwarded-For: 203.0.113.5\r\n")).await.status(), 200);
    assert_eq!(harness.gateway.requests()[0].field("x-forwarded-for"), Some("203.0.113.5"));
    reload_with(&harness, |config| config.external.trusted_proxies.clear()).await;
    assert!(proxy.read_rest().await.is_empty());
    let fields = [("x-forwarded-for", "203.0.113.5")];
    assert_eq!(harness.send_request(Protocol::H1, TRUSTED_PROXY, "GET /", &fields).await.0, 200);
    assert_eq!(harness.gateway.requests()[1].field("x-forwarded-for"), Some(crate::harness::UNKNOWN_CLIENT));
}

#[tokio::test]
async fn a_proxy_no_longer_trusted_is_closed_at_an_agents_address_too() {
    let harness =
        Harness::start_with(|config| config.agents.cidrs.push(format!("{TRUSTED_PROXY}/32").parse().unwrap())).await;
    let mut proxy = harness.connect_h1(TRUSTED_PROXY).await;
    assert_eq!(proxy.send_request(request_text("GET /", "X-Forwarded-For: 203.0.113.5\r\n")).await.status(), 200);
    assert_eq!(harness.gateway.requests()[0].field("x-forwarded-for"), Some("203.0.113.5"));
    reload_with(&harness, |config| config.external.trusted_proxies.clear()).await;
    assert!(timeout(SOON, proxy.read_rest()).await.unwrap().is_empty());
}

#[tokio::test]
async fn path_rules_apply_at_once_and_limits_to_new_connections() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
    reload_with(&harness, |config| {
        config.external.paths = vec![PathRule::deny("/private")];
        config.limits.request_timeout = Duration::from_millis(100);
    })
    .await;
    assert_eq!(client.send_request(request_text("GET /private", "")).await.status(), 403);
    assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
    assert_eq!(harness.send_request(Protocol::H1, OUTSIDER, "GET /stalls", &[]).await.0, 504);
}

#[tokio::test]
async fn sighup_reads_the_file_again() {
    let sidecar = start_process(&["--deny=127.0.0.5/32"], "[external]\nallow = []\n").await;
    let mut client = sidecar.connect_h1("127.0.0.4").await;
    assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
    std::fs::write(
        sidecar.config_file(),
        format!(
            "[external]\nallow = [\"127.0.0.0/24\"]\ndeny = [\"{OUTSIDER}\"]\n[docker]\nany_project = true\n[log]\n\
             level = \"debug\"\n"
        ),
    )
    .unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    sidecar.process().wait_for_log(RELOADED).await;
    let kept = sidecar.process().wait_for_log("only after a restart").await;
    assert!(kept.contains("\"keys\":\"docker\""), "{kept}");
    // A flag overrides the file, in a reload as at the start.
    assert!(sidecar.handshake(sidecar.connect_tcp("127.0.0.5").await, "http/1.1").await.is_err());
    assert_eq!(sidecar.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
    assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200, "on the same connection");
    sidecar.process().wait_for_log("\"level\":\"DEBUG\"").await;
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_is_reported() {
    let sidecar = start_process(&[], &format!("[external]\ndeny = [\"{OUTSIDER}\"]\n")).await;
    std::fs::write(sidecar.config_file(), "[external]\ndenied = []\nallow = [\"nonsense\"]\n").unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    let line = sidecar.process().wait_for_log("reload rejected, old configuration still in use").await;
    assert!(line.contains("loopgate.toml:2") && line.contains("denied") && line.contains("nonsense"), "{line}");
    assert!(sidecar.handshake(sidecar.connect_tcp(OUTSIDER).await, "http/1.1").await.is_err());
    std::fs::write(sidecar.config_file(), "[tls]\nclient_ca = \"/nowhere/ca.pem\"\n").unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    sidecar.process().wait_for_log("/nowhere/ca.pem").await;
    assert!(sidecar.handshake(sidecar.connect_tcp(OUTSIDER).await, "http/1.1").await.is_err());
    // No process ever writes to this pipe.
    std::fs::remove_file(sidecar.config_file()).unwrap();
    nix::unistd::mkfifo(&sidecar.config_file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    sidecar.process().wait_for_log("is not a regular file").await;
    std::fs::remove_file(sidecar.config_file()).unwrap();
    std::fs::write(sidecar.config_file(), "").unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    sidecar.process().wait_for_log(RELOADED).await;
    assert_eq!(sidecar.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
}

#[tokio::test]
async fn missing_gateway_files_are_reported_at_start() {
    let sidecar = start_process(&["--token-file=/nope/token", "--gateway-state-dir=/nope/state"], "").await;
    for (key, path) in [("gateway.token_file", "/nope/token"), ("gateway.state_dir", "/nope/state")] {
        let line = sidecar.process().wait_for_log(path).await;
        assert!(line.contains("WARN") && line.contains(key), "{line}");
    }
}

/// Writes a certificate for `name` and its key to `directory`, as `pair.pem` and `pair.key`.
fn write_pair(directory: &std::path::Path, name: &str) {
    let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    std::fs::write(directory.join("pair.pem"), pair.cert.pem()).unwrap();
    std::fs::write(directory.join("pair.key"), pair.signing_key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn a_new_certificate_is_served_once_the_client_ca_is_readable_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    write_pair(directory.path(), "one.example");
    std::fs::copy(file("pair.pem"), file("clients.pem")).unwrap();
    let admin = free_address();
    let flag = |name: &str, file: std::path::PathBuf| format!("--{name}={}", file.display());
    let flags = [
        flag("tls-cert", file("pair.pem")),
        flag("tls-key", file("pair.key")),
        flag("client-ca", file("clients.pem")),
        format!("--admin={admin}"),
    ];
    let sidecar = start_process(&flags.each_ref().map(String::as_str), "").await;
    let certificate = async || {
        let status =
            tokio::task::spawn_blocking(move || loopgate::admin::client::fetch_status(admin)).await.unwrap().unwrap();
        status.certificate
    };
    std::fs::rename(file("clients.pem"), file("away.pem")).unwrap();
    write_pair(directory.path(), "two.example");
    sidecar.process().wait_for_log("can't apply the new TLS settings").await;
    let line = certificate().await;
    assert_eq!(line.names, ["one.example"], "the certificate that is served, not the new one");
    assert!(line.problem.as_deref().is_some_and(|problem| problem.contains("clients.pem")), "{line:?}");
    std::fs::rename(file("away.pem"), file("clients.pem")).unwrap();
    sidecar.process().wait_for_log("serving this certificate").await;
    let line = certificate().await;
    assert_eq!((line.names, line.problem), (vec!["two.example".to_owned()], None));
}

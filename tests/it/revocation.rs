//! Revoked certificates of loopgate's own CA.

use std::path::Path;
use std::time::Duration;

use loopgate::pki::offline;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

use crate::harness::{Harness, OUTSIDER, Protocol, TlsClient, request};
use crate::lanes::assert_is_agents_request;
use loopgate_test_support::raw_http::RawHttp;

/// Issues a certificate for `name` into `out`; returns a client with it.
fn issued(harness: &Harness, name: &str, out: &Path) -> TlsClient {
    let agent = offline::Agent { trust_domain: "loopgate.local", name, life: Duration::from_secs(3600) };
    offline::issue(harness.state.path(), &agent, out).unwrap();
    let chain = CertificateDer::pem_file_iter(out.join("agent.pem")).unwrap().collect::<Result<_, _>>().unwrap();
    harness.with_certificate(chain, PrivateKeyDer::from_pem_file(out.join("agent.key")).unwrap())
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_at_once_and_its_connections_are_closed() {
    let harness =
        Harness::with(|config| config.agents.certificate_from = vec![format!("{OUTSIDER}/32").parse().unwrap()]).await;
    let out = tempfile::tempdir().unwrap();
    let (robot, other) =
        (issued(&harness, "robot", &out.path().join("robot")), issued(&harness, "other", &out.path().join("other")));
    let mut h1 = robot.h1(OUTSIDER).await;
    let mut websocket = robot.websocket(Protocol::H2, OUTSIDER, "/ws").await;
    let mut unaffected = other.h1(OUTSIDER).await;
    for client in [&mut h1, &mut unaffected] {
        assert_eq!(client.ask(request("GET /", "")).await.status(), 200);
        assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
    }
    let before = harness.gateway.requests().len();

    let serial = offline::serial_of(&out.path().join("robot/agent.pem")).unwrap();
    assert!(offline::revoke(harness.state.path(), &serial).unwrap());
    assert!(timeout(Duration::from_secs(20), h1.rest()).await.expect("the connection is closed").is_empty());
    let end = async { while let Some(Ok(_)) = futures_util::StreamExt::next(&mut websocket).await {} };
    timeout(Duration::from_secs(20), end).await.expect("the WebSocket is closed");
    if let Ok(stream) = robot.handshake(robot.tcp(OUTSIDER).await, "http/1.1").await {
        let mut wire = RawHttp::new(stream);
        let _ = wire.send(request("GET /", "")).await;
        wire.until_end().await;
    }
    assert_eq!(harness.gateway.requests().len(), before, "a revoked certificate got through");
    assert_eq!(unaffected.ask(request("GET /", "")).await.status(), 200, "on the same connection");
    assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
    // A renewed certificate for the same key is another one.
    let again = issued(&harness, "robot", &out.path().join("robot"));
    assert_eq!(again.h1(OUTSIDER).await.ask(request("GET /", "")).await.status(), 200);
}

//! Revoked certificates of loopgate's own CA.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use loopgate::pki::offline;
use loopgate_test_support::raw_http::RawHttp;
use loopgate_test_support::tls_client::Tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

use crate::harness::{Harness, OUTSIDER, Protocol, TlsClient, request_text};
use crate::lanes::assert_is_agents_request;

/// How long a revocation may take: the documented 2 s, and 3 s for a loaded machine.
const SOON: Duration = Duration::from_secs(5);

/// Issues a certificate for `name` into `out`; returns a client with it.
fn client_with_issued_certificate(harness: &Harness, name: &str, out: &Path) -> TlsClient {
    let agent = offline::Agent { trust_domain: "loopgate.local", name, life: Duration::from_secs(3600) };
    offline::issue(harness.state.path(), &agent, out).unwrap();
    let chain = CertificateDer::pem_file_iter(out.join("agent.pem")).unwrap().collect::<Result<_, _>>().unwrap();
    harness.with_certificate(chain, PrivateKeyDer::from_pem_file(out.join("agent.key")).unwrap())
}

/// Revokes the certificate that was issued into `out`.
fn revoke(harness: &Harness, out: &Path) {
    let serial = offline::read_serial(&out.join("agent.pem")).unwrap();
    assert!(offline::revoke(harness.state.path(), &serial).unwrap());
}

/// Asserts that the gateway answers `client`, as an agent.
async fn assert_served_as_agent(harness: &Harness, client: &mut RawHttp<Tls>) {
    assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
    assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), harness);
}

/// Asserts that `client` sends nothing to the gateway on a new connection.
async fn assert_refused(harness: &Harness, client: &TlsClient) {
    let before = harness.gateway.requests().len();
    if let Ok(stream) = client.handshake(client.connect_tcp(OUTSIDER).await, "http/1.1").await {
        let mut wire = RawHttp::new(stream);
        let _ = wire.send(request_text("GET /", "")).await;
        wire.until_end().await;
    }
    assert_eq!(harness.gateway.requests().len(), before, "a revoked certificate got through");
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_at_once_and_its_connections_are_closed() {
    let harness =
        Harness::start_with(|config| config.agents.certificate_from = vec![format!("{OUTSIDER}/32").parse().unwrap()])
            .await;
    let out = tempfile::tempdir().unwrap();
    let (robots, others) = (out.path().join("robot"), out.path().join("other"));
    let (robot, other) = (
        client_with_issued_certificate(&harness, "robot", &robots),
        client_with_issued_certificate(&harness, "other", &others),
    );
    let (mut h1, mut unaffected) = (robot.connect_h1(OUTSIDER).await, other.connect_h1(OUTSIDER).await);
    let mut websocket = robot.open_websocket(Protocol::H2, OUTSIDER, "/ws").await;
    assert_served_as_agent(&harness, &mut h1).await;
    assert_served_as_agent(&harness, &mut unaffected).await;

    revoke(&harness, &robots);

    assert!(timeout(SOON, h1.read_rest()).await.expect("the connection is closed").is_empty());
    let end = async { while let Some(Ok(_)) = websocket.next().await {} };
    timeout(SOON, end).await.expect("the WebSocket is closed");
    assert_refused(&harness, &robot).await;
    assert_served_as_agent(&harness, &mut unaffected).await;
    // A new certificate for the same agent is accepted.
    let again = client_with_issued_certificate(&harness, "robot", &robots);
    assert_served_as_agent(&harness, &mut again.connect_h1(OUTSIDER).await).await;
}

//! A connection whose client certificate expires is closed, unless it carries a tunnel.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::PrivateKeyDer;
use tokio::time::{sleep, timeout};

use crate::harness::{Harness, OUTSIDER, Protocol, TlsClient, h2_request, request_text};
use loopgate_test_support::websocket::assert_echo;

/// Makes a CA; returns a file with its certificate, and the issuer that signs certificates with its
/// key.
pub fn authority() -> (tempfile::NamedTempFile, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), params.self_signed(&key).unwrap().pem()).unwrap();
    (ca, Issuer::new(params, key))
}

/// Returns `client` with a certificate by `issuer` that expires in 3 to 4 seconds.
pub fn short_lived(client: &TlsClient, issuer: &Issuer<'static, KeyPair>) -> TlsClient {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::Rfc822Name("ann@corp.example".try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::seconds(4);
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, issuer).unwrap();
    client.with_certificate(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

#[tokio::test]
async fn a_connection_whose_certificate_has_expired_carries_no_new_request_but_keeps_its_tunnels() {
    let (ca, issuer) = authority();
    let harness = Harness::start_with(|config| config.tls.client_ca = Some(ca.path().to_owned())).await;
    let client = short_lived(&harness, &issuer);
    let mut h1 = client.connect_h1(OUTSIDER).await;
    let mut h2 = client.connect_h2(OUTSIDER).await;
    let mut tunnels = [
        client.open_websocket(Protocol::H1, OUTSIDER, "/ws").await,
        client.open_websocket(Protocol::H2, OUTSIDER, "/ws").await,
    ];
    let mut anonymous = harness.connect_h1(OUTSIDER).await;
    assert_eq!(h1.send_request(request_text("GET /", "")).await.status(), 200);
    let (response, _) = h2.send_request(h2_request("GET /", &[]), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    let before = harness.gateway.requests().len();

    assert!(
        timeout(Duration::from_secs(20), h1.read_rest()).await.expect("closed when the certificate expires").is_empty()
    );
    // Meanwhile the HTTP/2 client reads the GOAWAY.
    sleep(Duration::from_secs(1)).await;
    let refused = async {
        let (response, _) = h2.ready().await?.send_request(h2_request("GET /", &[]), true)?;
        response.await
    };
    assert!(timeout(Duration::from_secs(10), refused).await.unwrap().is_err());
    assert_eq!(harness.gateway.requests().len(), before, "no request reached the gateway");
    for tunnel in &mut tunnels {
        assert_echo(tunnel, "still open".into()).await;
    }
    assert_eq!(
        anonymous.send_request(request_text("GET /", "")).await.status(),
        200,
        "a connection that does not depend on a certificate"
    );
}

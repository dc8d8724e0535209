//! Certificates of people, from `loopgate cert issue --user`, as curl uses them.

use std::path::Path;
use std::time::Duration;

use loopgate::pki::offline::{self, Encryption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::process::Command;

use crate::harness::{AGENT, EXTERNAL_SOURCE, Harness, OUTSIDER};
use crate::lanes::assert_is_agents_request;

const PASSWORD: &str = "correct horse battery";

/// Issues a certificate for Ann into `file`; returns its serial number.
fn issue_for_ann(harness: &Harness, file: &Path, encryption: Encryption) -> String {
    let user = offline::User { mail: "ann@example.com", life: Duration::from_secs(3600), encryption };
    let (content, description) = offline::issue_user(harness.state.path(), &user, PASSWORD, file).unwrap();
    offline::write_secret(file, &content).unwrap();
    description.serial
}

/// Requests `/` with curl from `source`, with the certificate in `file`; returns whether there was
/// a response, and curl's message.
async fn curl(harness: &Harness, source: &str, file: Option<&Path>, arguments: &[&str]) -> (bool, String) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20", "--output", "/dev/null", "--interface", source])
        .args(arguments);
    curl.arg("--cacert").arg(harness.state.path().join("ca.pem"));
    if let Some(file) = file {
        curl.args(["--cert-type", "P12", "--cert", &format!("{}:{PASSWORD}", file.display())]);
    }
    let url = format!("https://{}/", harness.sidecar.tls_addresses()[0]);
    let output = curl.arg(url).output().await.expect("curl");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn the_holder_of_a_users_certificate_is_external_and_named_to_the_gateway() {
    let harness = Harness::start_with(|config| config.tls.client_ca = Some(config.state_dir.join("ca.pem"))).await;
    let out = tempfile::tempdir().unwrap();
    for (name, encryption) in [("3des.p12", Encryption::TripleDes), ("aes256.p12", Encryption::Aes256)] {
        let file = out.path().join(name);
        issue_for_ann(&harness, &file, encryption);
        for protocol in ["--http1.1", "--http2"] {
            let (ok, message) =
                curl(&harness, OUTSIDER, Some(&file), &[protocol, "--header", "X-Forwarded-User: root"]).await;
            assert!(ok, "{name}: {message}");
            let received = harness.gateway.requests().pop().unwrap();
            assert_eq!(
                (received.source(), received.field("x-forwarded-user")),
                (EXTERNAL_SOURCE, Some("ann@example.com"))
            );
        }
    }
    // A client without a certificate gets no user name, and an agent by address stays an agent.
    let (ok, message) = curl(&harness, OUTSIDER, None, &["--header", "X-Forwarded-User: root"]).await;
    assert!(ok, "{message}");
    assert_eq!(harness.gateway.requests().pop().unwrap().field("x-forwarded-user"), None);
    let (ok, message) = curl(&harness, AGENT, Some(&out.path().join("3des.p12")), &[]).await;
    assert!(ok, "{message}");
    assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
}

#[tokio::test]
async fn a_users_certificate_counts_only_where_clients_are_asked_for_one() {
    let harness =
        Harness::start_with(|config| config.agents.certificate_from = vec![format!("{OUTSIDER}/32").parse().unwrap()])
            .await;
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("ann.p12");
    issue_for_ann(&harness, &file, Encryption::TripleDes);
    for (source, user) in [(OUTSIDER, Some("ann@example.com")), ("127.0.0.8", None)] {
        let (ok, message) = curl(&harness, source, Some(&file), &[]).await;
        assert!(ok, "{message}");
        let received = harness.gateway.requests().pop().unwrap();
        assert_eq!((received.source(), received.field("x-forwarded-user")), (EXTERNAL_SOURCE, user));
    }
}

#[tokio::test]
async fn a_users_revoked_certificate_is_refused() {
    let harness = Harness::start_with(|config| config.tls.client_ca = Some(config.state_dir.join("ca.pem"))).await;
    let out = tempfile::tempdir().unwrap();
    let (ann, other) = (out.path().join("ann.p12"), out.path().join("other.p12"));
    let serial = issue_for_ann(&harness, &ann, Encryption::TripleDes);
    issue_for_ann(&harness, &other, Encryption::TripleDes);
    assert!(curl(&harness, OUTSIDER, Some(&ann), &[]).await.0);
    assert!(offline::revoke(harness.state.path(), &offline::parse_serial(&serial).unwrap()).unwrap());
    // The documented 2 s, and 3 s for a loaded machine.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while curl(&harness, OUTSIDER, Some(&ann), &[]).await.0 {
        assert!(tokio::time::Instant::now() < deadline, "5 s after its revocation the certificate is still accepted");
    }
    let before = harness.gateway.requests().len();
    assert!(!curl(&harness, OUTSIDER, Some(&ann), &[]).await.0);
    assert_eq!(harness.gateway.requests().len(), before, "a revoked certificate got through");
    assert!(curl(&harness, OUTSIDER, Some(&other), &[]).await.0);
}

#[tokio::test]
async fn a_reload_without_client_ca_ends_the_connections_of_its_users() {
    let harness = Harness::start_with(|config| config.tls.client_ca = Some(config.state_dir.join("ca.pem"))).await;
    let user =
        offline::User { mail: "ann@example.com", life: Duration::from_secs(3600), encryption: Encryption::Aes256 };
    let (content, _) = offline::issue_user(harness.state.path(), &user, PASSWORD, Path::new("-")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let (file, pem) = (out.path().join("ann.p12"), out.path().join("ann.pem"));
    offline::write_secret(&file, &content).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["pkcs12", "-nodes", "-passin", &format!("pass:{PASSWORD}"), "-in"]).arg(&file).arg("-out").arg(&pem);
    assert!(openssl.output().await.expect("openssl").status.success());
    let chain = CertificateDer::pem_file_iter(&pem).unwrap().collect::<Result<_, _>>().unwrap();
    let ann = harness.with_certificate(chain, PrivateKeyDer::from_pem_file(&pem).unwrap());
    let mut connection = ann.connect_h1(OUTSIDER).await;
    assert_eq!(connection.send_request("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.status(), 200);
    assert_eq!(harness.gateway.requests().pop().unwrap().field("x-forwarded-user"), Some("ann@example.com"));
    let mut config = (*harness.sidecar.config()).clone();
    config.tls.client_ca = None;
    harness.sidecar.reload(Ok(config), |_| {});
    let received = tokio::time::timeout(Duration::from_secs(20), connection.read_rest()).await;
    assert!(received.expect("the connection is closed").is_empty());
}

//! `external.serve_ca`: loopgate's CA certificate, as devices install it, and nothing else of its
//! files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use loopgate::config::{CertificateFiles, PathRule};
use loopgate::fingerprint::Fingerprint;
use tokio::process::Command;

use crate::harness::{
    AGENT, Harness, OUTSIDER, PROTOCOLS, Protocol, TRUSTED_PROXY, h2_request, read_whole_body, request_text,
    start_process,
};

const PAGE: &str = "/.well-known/loopgate/ca";

/// A response as curl received it.
struct Answer {
    status: u16,
    /// The fields, in lower case.
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Requests `path` of `localhost` with curl from `source`.
async fn curl(harness: &Harness, source: &str, path: &str, arguments: &[&str]) -> Answer {
    let directory = tempfile::tempdir().unwrap();
    let (head, body) = (directory.path().join("head"), directory.path().join("body"));
    let port = harness.address.port();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20", "--interface", source, "--write-out", "%{http_code}"])
        .args(["--connect-to", &format!("localhost:{port}:{}", harness.address)])
        .arg("--cacert")
        .arg(harness.state.path().join("ca.pem"))
        .arg("--dump-header")
        .arg(&head)
        .arg("--output")
        .arg(&body)
        .args(arguments)
        .arg(format!("https://localhost:{port}{path}"));
    let output = curl.output().await.expect("curl");
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    Answer {
        status: String::from_utf8(output.stdout).unwrap().parse().unwrap(),
        head: std::fs::read_to_string(head).unwrap().to_lowercase(),
        body: std::fs::read(body).unwrap_or_default(),
    }
}

/// The SHA-256 fingerprint of the certificate in `content`, as openssl reads it.
async fn openssl_fingerprint(content: &[u8], form: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let arguments = ["x509", "-noout", "-fingerprint", "-sha256", "-inform", form, "-in"];
    let output = Command::new("openssl").args(arguments).arg(file.path()).output().await.expect("openssl");
    assert!(output.status.success(), "{form}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().rsplit_once('=').unwrap().1.to_owned()
}

/// Returns the certificate in a configuration profile.
fn certificate_in_profile(profile: &str) -> Vec<u8> {
    let data = profile.split_once("<data>").unwrap().1.split_once("</data>").unwrap().0;
    STANDARD.decode(data).unwrap()
}

async fn start_serving_ca() -> Harness {
    Harness::start_with(|config| config.external.serve_ca = true).await
}

fn curl_flag(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::H1 => "--http1.1",
        Protocol::H2 => "--http2",
    }
}

#[tokio::test]
async fn openssl_reads_the_ca_in_each_form() {
    let harness = start_serving_ca().await;
    let fingerprint = Fingerprint::of(harness.sidecar.identity().ca.as_ref().unwrap()).to_string();
    for protocol in PROTOCOLS {
        for source in [OUTSIDER, AGENT] {
            let harness = &harness;
            let get = async |path| curl(harness, source, path, &[curl_flag(protocol)]).await;
            let pem = get("/.well-known/loopgate/ca.pem").await;
            assert!(pem.head.contains("content-type: application/x-pem-file"), "{}", pem.head);
            assert_eq!(openssl_fingerprint(&pem.body, "PEM").await, fingerprint);
            let der = get("/.well-known/loopgate/ca.crt").await;
            assert!(der.head.contains("content-type: application/x-x509-ca-cert"), "{}", der.head);
            assert_eq!(openssl_fingerprint(&der.body, "DER").await, fingerprint);
            let profile = get("/.well-known/loopgate/ca.mobileconfig").await;
            assert!(profile.head.contains("content-type: application/x-apple-aspen-config"), "{}", profile.head);
            assert_eq!(openssl_fingerprint(&certificate_in_profile(profile.text()), "DER").await, fingerprint);
            let page = get(PAGE).await;
            assert!(page.text().contains(&fingerprint), "{}", page.text());
            for file in [&pem, &der, &profile, &page] {
                assert!(file.status == 200 && file.head.contains("cache-control: no-store"), "{}", file.head);
                assert!(!String::from_utf8_lossy(&file.body).contains("PRIVATE"));
            }
        }
    }
    assert_eq!(harness.gateway.requests().len(), 0, "the gateway receives no request");
}

#[tokio::test]
async fn the_page_has_a_qr_code_of_its_own_address_and_of_no_other() {
    let harness = start_serving_ca().await;
    let page = curl(&harness, OUTSIDER, PAGE, &[]).await;
    let url = format!("https://localhost:{}{PAGE}", harness.address.port());
    assert!(page.text().contains("<svg") && page.text().contains(&url), "{}", page.text());
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    let page = curl(&harness, OUTSIDER, PAGE, &["--header", "Host: evil.example"]).await;
    assert!(page.status == 200 && !page.text().contains("<svg") && !page.text().contains("evil"), "{}", page.text());
}

#[tokio::test]
async fn only_get_and_head_are_answered() {
    let harness = start_serving_ca().await;
    for protocol in PROTOCOLS {
        for path in [PAGE, "/.well-known/loopgate/ca.pem"] {
            // If a request over HTTP/2 has a body, curl 7.88 fails at the reset that ends the
            // stream.
            let with_body = &["--data", "x"][..];
            for arguments in [&["--request", "POST"][..], &["--request", "DELETE"], with_body] {
                if arguments == with_body && protocol == Protocol::H2 {
                    continue;
                }
                let refused = curl(&harness, OUTSIDER, path, &[&[curl_flag(protocol)], arguments].concat()).await;
                assert_eq!(refused.status, 405, "{protocol:?} {arguments:?}");
                assert!(refused.head.contains("allow: get, head"), "{}", refused.head);
            }
        }
    }
    // The body of a response to HEAD would be read as the next response.
    let line = format!("HEAD {PAGE}");
    let length = curl(&harness, OUTSIDER, PAGE, &["--header", "Host: gateway.example:18789"]).await.body.len();
    let mut h1 = harness.connect_h1(OUTSIDER).await;
    for _ in 0..2 {
        let head = h1.ask_head(request_text(&line, "")).await;
        assert_eq!((head.status(), head.field("content-length")), (200, Some(length.to_string().as_str())));
    }
    let (response, _) = harness.connect_h2(OUTSIDER).await.send_request(h2_request(&line, &[]), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    assert_eq!((head.status.as_u16(), &head.headers["content-length"]), (200, &length.to_string().parse().unwrap()));
    assert!(read_whole_body(&mut body).await.unwrap().is_empty());
    assert_eq!(harness.gateway.requests().len(), 0);
}

#[tokio::test]
async fn other_paths_go_to_the_gateway_and_by_default_all_paths_do() {
    let harness = start_serving_ca().await;
    for path in ["/.well-known/loopgate/ca.key", "/.well-known/loopgate/", "/.well-known/loopgate/ca/"] {
        assert_eq!(harness.send_request(Protocol::H1, OUTSIDER, &format!("GET {path}"), &[]).await.0, 200);
        assert!(harness.gateway.requests().pop().unwrap().start_line().contains(path));
    }
    // A request to upgrade goes to the gateway, whatever its path.
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    harness.connect_h1(OUTSIDER).await.ask_head(request_text(&format!("GET {PAGE}"), upgrade)).await;
    assert!(harness.gateway.requests().pop().unwrap().start_line().contains(PAGE));
    let without = Harness::start().await;
    for path in [PAGE, "/.well-known/loopgate/ca.pem"] {
        assert_eq!(without.send_request(Protocol::H2, OUTSIDER, &format!("GET {path}"), &[]).await.0, 200);
        assert!(without.gateway.requests().pop().unwrap().start_line().contains(path));
    }
}

#[tokio::test]
async fn a_client_that_may_not_use_the_gateway_gets_no_ca() {
    let harness = Harness::start_with(|config| {
        config.external.serve_ca = true;
        config.external.deny = vec!["203.0.113.0/24".parse().unwrap()];
        config.external.paths = vec![PathRule::deny("/.well-known/loopgate/ca.crt")];
    })
    .await;
    let named = |client| [("x-forwarded-for", client)];
    let get = |path: &str| format!("GET {path}");
    for protocol in PROTOCOLS {
        assert_eq!(harness.send_request(protocol, TRUSTED_PROXY, &get(PAGE), &named("203.0.113.9")).await.0, 403);
        assert_eq!(harness.send_request(protocol, TRUSTED_PROXY, &get(PAGE), &named("198.51.100.9")).await.0, 200);
        assert_eq!(harness.send_request(protocol, OUTSIDER, "GET /.well-known/loopgate/ca.crt", &[]).await.0, 403);
    }
}

#[tokio::test]
async fn a_reload_switches_serve_ca_unless_the_operators_own_certificate_is_served() {
    let harness = Harness::start().await;
    let set = |serves| {
        let mut config = (*harness.sidecar.config()).clone();
        config.external.serve_ca = serves;
        harness.sidecar.reload(Ok(config), |_| {});
    };
    let is_served = async || curl(&harness, OUTSIDER, PAGE, &[]).await.text().contains("certificate authority");
    for serves in [true, false, true] {
        set(serves);
        assert_eq!(is_served().await, serves);
    }
    let file = |name: &str| harness.state.path().join(name);
    let with_own_certificate = Harness::start_with(|config| {
        config.tls.provided = Some(CertificateFiles { chain: file("server.pem"), key: file("server.key") });
    })
    .await;
    // Validation refuses both options together. This reload sets `serve_ca` and removes the
    // operator's pair, but the pair stays in use until a restart.
    let mut config = (*with_own_certificate.sidecar.config()).clone();
    (config.tls.provided, config.external.serve_ca) = (None, true);
    with_own_certificate.sidecar.reload(Ok(config), |_| {});
    assert!(with_own_certificate.sidecar.config().external.serve_ca);
    std::fs::copy(file("ca.pem"), with_own_certificate.state.path().join("ca.pem")).unwrap();
    assert!(!curl(&with_own_certificate, OUTSIDER, PAGE, &[]).await.text().contains("certificate authority"));
}

#[tokio::test]
async fn a_request_for_the_ca_is_logged_as_complete() {
    let sidecar = start_process(&["--access-log", "--serve-ca"], "").await;
    for protocol in PROTOCOLS {
        assert_eq!(sidecar.send_request(protocol, OUTSIDER, &format!("GET {PAGE}"), &[]).await.0, 200);
    }
    let logged = || {
        let lines = sidecar.process().log_lines();
        lines.iter().filter(|line| line.contains(PAGE) && line.contains("\"end\":\"complete\"")).count()
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while logged() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "{:#?}", sidecar.process().log_lines());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

//! The sidecar asks a client for a certificate only if it can matter, and rejects a hostile chain
//! at little cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use loopgate::config::Config;
use loopgate::tls::signature_check_count;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::harness::{AGENT, Harness, OUTSIDER, TRUSTED_PROXY, request_text};
use loopgate_test_support::raw_http::RawHttp;

/// Remembers whether the server asked for a certificate, and sends none.
#[derive(Debug, Default)]
struct Asked(AtomicBool);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

async fn is_asked_for_certificate(harness: &Harness, source: &str) -> bool {
    let asked = Arc::new(Asked::default());
    let client = harness.with_certificate_resolver(Arc::clone(&asked) as Arc<dyn ResolvesClientCert>);
    client.handshake(client.connect_tcp(source).await, "http/1.1").await.unwrap();
    asked.0.load(Ordering::Relaxed)
}

#[tokio::test]
async fn only_clients_whose_certificate_can_matter_are_asked_for_one() {
    let ca = tempfile::NamedTempFile::new().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(ca.path(), params.self_signed(&key).unwrap().pem()).unwrap();
    let ca = ca.into_temp_path();
    type Change<'a> = Box<dyn FnOnce(&mut Config) + 'a>;
    let table: [(Change<'_>, [(&str, bool); 3]); 3] = [
        (Box::new(|_| {}), [(OUTSIDER, false), (TRUSTED_PROXY, false), (AGENT, true)]),
        (
            Box::new(|config| config.agents.certificate_from = vec!["127.0.0.0/8".parse().unwrap()]),
            [(OUTSIDER, true), (TRUSTED_PROXY, false), (AGENT, true)],
        ),
        (
            Box::new(|config| config.tls.client_ca = Some(ca.to_owned())),
            [(OUTSIDER, true), (TRUSTED_PROXY, true), (AGENT, true)],
        ),
    ];
    for (number, (change, expected)) in table.into_iter().enumerate() {
        let harness = Harness::start_with(change).await;
        for (source, asked) in expected {
            assert_eq!(is_asked_for_certificate(&harness, source).await, asked, "case {number}: {source}");
        }
    }
}

/// Makes a chain of a leaf and `intermediates` CA certificates. Each claims to be issued by `name`,
/// which is also the subject of the CA certificates, but each is signed by a key that is not in the
/// chain.
fn hostile_chain(
    name: &rcgen::DistinguishedName,
    intermediates: usize,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let mut params = CertificateParams::default();
    params.distinguished_name = name.clone();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let forger = Issuer::new(params.clone(), KeyPair::generate().unwrap());
    let mut leaf = CertificateParams::default();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let mut chain = vec![leaf.signed_by(&key, &forger).unwrap().der().clone()];
    chain.extend(
        (0..intermediates).map(|_| params.signed_by(&KeyPair::generate().unwrap(), &forger).unwrap().der().clone()),
    );
    (chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

#[tokio::test]
async fn hostile_chains_are_refused_with_few_signature_checks_and_do_not_delay_agents() {
    let harness =
        Harness::start_with(|config| config.agents.certificate_from = vec!["127.0.0.0/8".parse().unwrap()]).await;
    let ca = harness.sidecar.identity().ca.clone().unwrap();
    let (_, ca) = x509_parser::parse_x509_certificate(&ca).unwrap();
    let common_name = |name: &str| {
        let mut names = rcgen::DistinguishedName::new();
        names.push(rcgen::DnType::CommonName, name);
        names
    };
    let loopgate_ca = common_name(ca.subject().iter_common_name().next().unwrap().as_str().unwrap());
    let before = signature_check_count();
    let mut handshakes = 0;
    for name in [loopgate_ca, common_name("unknown CA")] {
        for intermediates in [1, 3, 4, 10, 60] {
            let (chain, key) = hostile_chain(&name, intermediates);
            let client = harness.with_certificate(chain, key);
            for _ in 0..20 {
                handshakes += 1;
                if let Ok(stream) = client.handshake(client.connect_tcp(OUTSIDER).await, "http/1.1").await {
                    let mut wire = RawHttp::new(stream);
                    let _ = wire.send(request_text("GET /", "")).await;
                    wire.until_end().await;
                }
            }
        }
    }
    assert!(harness.gateway.requests().is_empty(), "a hostile client reached the gateway");
    // Other tests of this process verify some certificates at the same time.
    let checks = signature_check_count() - before;
    assert!(checks <= 2 * handshakes + 200, "{checks} signatures were checked in {handshakes} handshakes");
    let answer = tokio::time::timeout(
        Duration::from_secs(5),
        harness.connect_h1(AGENT).await.send_request(request_text("GET /", "")),
    )
    .await
    .unwrap();
    assert_eq!(answer.status(), 200);
}

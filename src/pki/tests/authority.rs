//! Tests of the client certificates that the CA signs for agents and users.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData,
};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, UnixTime};

use super::super::CertificateAuthority;
use super::super::certificate::{CertificateFields, verify_server_chain};
use super::super::offline::{self, Agent};
use super::{create_home, error_chain, names, now, read_files};

const HOUR: Duration = Duration::from_secs(3600);
const URI: &str = "spiffe://loopgate.local/docker/shop/worker/0123456789ab";

fn request(key: &KeyPair) -> CertificateSigningRequestDer<'static> {
    let mut params = CertificateParams::new(["gateway.example".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serialize_request(key).unwrap().into()
}

fn client_verifies(chain: &[CertificateDer<'static>], ca: &CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider())).build().unwrap();
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).is_ok()
}

#[test]
fn a_users_certificate_has_an_e_mail_address_and_no_other_name() {
    let home = create_home();
    let authority = CertificateAuthority::load_or_create(&home.state).unwrap();
    let chain =
        authority.issue_user(&KeyPair::generate().unwrap(), "ann@example.com", Duration::from_secs(3600)).unwrap();
    let facts = CertificateFields::parse(&chain[0]).unwrap();
    assert_eq!((facts.emails, facts.uris, facts.names.len()), (vec!["ann@example.com".to_owned()], Vec::new(), 0));
    assert!(!facts.is_ca);
}

#[test]
fn only_plain_e_mail_addresses_name_a_user() {
    for (text, fine) in [
        ("ann@example.com", true),
        ("a.b+c_d-e@mail.example.com", true),
        ("ann@localhost", true),
        ("ann", false),
        ("@example.com", false),
        ("ann@", false),
        ("ann@example.com@evil.example", false),
        ("../ann@example.com", false),
        ("a/b@example.com", false),
        ("-ann@example.com", false),
        ("ann @example.com", false),
        ("ann@example.com\r\nX-Admin: 1", false),
        ("ann@exa\0mple.com", false),
        ("größe@example.com", false),
        (&format!("{}@example.com", "a".repeat(65)), false),
    ] {
        assert_eq!(super::super::authority::parse_user_email(text).is_ok(), fine, "{text:?}");
    }
}

#[test]
fn only_the_key_of_a_request_is_used() {
    let ca = CertificateAuthority::load_or_create(&create_home().state).unwrap();
    let key = KeyPair::generate().unwrap();
    let chain = ca.issue_client(&request(&key), URI, HOUR).unwrap();
    let facts = CertificateFields::parse(&chain[0]).unwrap();
    assert_eq!(facts.uris, [URI]);
    assert!(facts.names.is_empty() && !facts.is_ca);
    assert_eq!(facts.public_key, key.subject_public_key_info());
    assert!(facts.validity.not_after - now() <= time::Duration::HOUR);
    assert!(client_verifies(&chain, ca.certificate()));
    assert!(
        verify_server_chain(&chain, ca.certificate(), now(), &names("")).is_err(),
        "a client certificate is not accepted for a server"
    );
}

#[test]
fn a_request_that_its_key_did_not_sign_or_for_another_kind_of_key_is_refused() {
    let ca = CertificateAuthority::load_or_create(&create_home().state).unwrap();
    let good = request(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
    assert!(ca.issue_client(&good, URI, HOUR).is_ok());
    let mut forged = good.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let mut cases = vec![Vec::new(), b"not DER".to_vec(), good[..good.len() - 1].to_vec(), forged];
    for kind in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        cases.push(request(&KeyPair::generate_for(kind).unwrap()).to_vec());
    }
    for case in cases {
        assert!(ca.issue_client(&case.into(), URI, HOUR).is_err());
    }
}

#[test]
fn lifetimes_that_no_client_would_accept_are_refused() {
    let ca = CertificateAuthority::load_or_create(&create_home().state).unwrap();
    let request = request(&KeyPair::generate().unwrap());
    for (life, fine) in [
        (Duration::ZERO, false),
        (HOUR, true),
        (HOUR * 24 * 397, true),
        (HOUR * 24 * 398, false),
        (Duration::MAX, false),
    ] {
        assert_eq!(ca.issue_client(&request, URI, life).is_ok(), fine, "{life:?}");
    }
}

#[test]
fn an_issued_agent_certificate_is_renewed_for_the_same_key() {
    let home = create_home();
    let out = home.state.join("worker");
    let agent = Agent { trust_domain: "loopgate.local", name: "worker-1", life: HOUR };
    let first = offline::issue(&home.state, &agent, &out).unwrap();
    assert_eq!(first.names, ["spiffe://loopgate.local/agent/worker-1"]);
    let before = read_files(&out);
    let second = offline::issue(&home.state, &agent, &out).unwrap();
    assert_eq!(second.public_key, first.public_key);
    assert_ne!(second.serial, first.serial);
    let after = read_files(&out);
    assert_eq!((&after["agent.key"], &after["ca.pem"]), (&before["agent.key"], &before["ca.pem"]));
    assert_eq!(after["ca.pem"], offline::export(&home.state).unwrap().as_bytes());
}

#[test]
fn an_agent_name_is_a_single_path_segment() {
    let home = create_home();
    for name in ["", "../ca", "a/b", ".hidden", "a b", "ä", &"x".repeat(64)] {
        let agent = Agent { trust_domain: "loopgate.local", name, life: HOUR };
        let error = offline::issue(&home.state, &agent, &home.state.join(name)).unwrap_err();
        assert!(error_chain(&error).contains("SPIFFE"), "{name:?}");
        assert!(!home.state.exists());
    }
}

#[test]
fn show_changes_nothing_and_reads_no_key() {
    let home = create_home();
    super::load_at_start(&home.state, "localhost 172.18.0.2").unwrap();
    for name in [".lock", "ca.key", "server.key"] {
        std::fs::remove_file(home.state.join(name)).unwrap();
    }
    let before = read_files(&home.state);
    let report = offline::show(&home.state, None).unwrap();
    assert_eq!(report.server.names, ["localhost", "172.18.0.2"]);
    assert!((89..=90).contains(&report.server.days_left));
    assert_eq!(report.server.fingerprint.len(), 95);
    assert!(report.to_string().contains(&report.ca.unwrap().fingerprint));
    assert_eq!(read_files(&home.state), before);
    assert!(!home.state.join(".lock").exists());
    assert!(offline::show(&home.state.join("elsewhere"), None).is_err());
    assert!(!home.state.join("elsewhere").exists());
}

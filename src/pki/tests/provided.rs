//! Tests of the operator's pair: which files are refused at the start, and how a running sidecar
//! follows changes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use tokio::sync::watch;

use super::super::{Error, Pki, ServerIdentity, SubjectName, open};
use super::{Home, create_home, error_chain, names};
use crate::config::{CertificateFiles, Tls};
use crate::shutdown::Shutdown;

/// Returns a self-signed certificate and its key as PEM.
fn make_pair(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(if name == "expired" { -1 } else { 30 });
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

struct Fixture {
    home: Home,
    chain: PathBuf,
    key: PathBuf,
    shutdown: Shutdown,
    _names: watch::Sender<BTreeSet<SubjectName>>,
    names: watch::Receiver<BTreeSet<SubjectName>>,
}

fn fixture() -> Fixture {
    let home = create_home();
    let place = home.state.parent().unwrap();
    let (sender, receiver) = watch::channel(BTreeSet::new());
    let (chain, key) = (place.join("tls.crt"), place.join("tls.key"));
    Fixture { chain, key, shutdown: Shutdown::new(), _names: sender, names: receiver, home }
}

impl Fixture {
    fn write(&self, (chain, key): &(String, String)) {
        fs::write(&self.chain, chain).unwrap();
        fs::write(&self.key, key).unwrap();
    }

    fn open(&self) -> Result<Pki, Error> {
        let files = CertificateFiles { chain: self.chain.clone(), key: self.key.clone() };
        let tls = Tls { provided: Some(files), ..crate::config::Config::default().tls };
        open(&tls, &self.home.state, self.names.clone(), &self.shutdown)
    }
}

async fn wait_until_served(identity: &mut watch::Receiver<Arc<ServerIdentity>>, name: &str) {
    identity.wait_for(|identity| identity.names == names(name)).await.unwrap();
}

async fn wait_for_problem(pki: &Pki, part: &str) {
    pki.problem()
        .wait_for(|problem| problem.as_ref().is_some_and(|error| error_chain(error).contains(part)))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_unusable_pair_is_an_error_that_names_the_file() {
    let (good, other) = (make_pair("good"), make_pair("other"));
    let cases = [
        ("", good.1.as_str(), "tls.crt"),
        (good.0.as_str(), "", "tls.key"),
        ("hello", good.1.as_str(), "tls.crt"),
        (&good.0[..good.0.len() / 2], good.1.as_str(), "tls.crt"),
        (good.0.as_str(), "hello", "tls.key"),
        (good.0.as_str(), good.0.as_str(), "tls.key"),
        (good.0.as_str(), other.1.as_str(), "tls.key"),
    ];
    for (chain, key, named) in cases {
        let fixture = fixture();
        fixture.write(&(chain.to_owned(), key.to_owned()));
        let error = error_chain(&fixture.open().unwrap_err());
        assert!(error.contains(named), "{named}: {error}");
    }
    let error = error_chain(&fixture().open().unwrap_err());
    assert!(error.contains("tls.crt") && error.contains("read"), "{error}");
}

#[tokio::test]
async fn beside_a_provided_pair_there_is_a_ca_if_there_can_be_one() {
    let fixture = fixture();
    fixture.write(&make_pair("good"));
    let pki = fixture.open().unwrap();
    assert_eq!(pki.identity().borrow().ca.as_ref(), Some(pki.authority().unwrap().certificate()));

    fs::remove_dir_all(&fixture.home.state).unwrap();
    fs::write(&fixture.home.state, b"no directory").unwrap();
    let pki = fixture.open().unwrap();
    assert!(pki.identity().borrow().ca.is_none() && pki.authority().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pair_changed_in_place_is_reloaded() {
    let fixture = fixture();
    fixture.write(&make_pair("first"));
    let mut identity = fixture.open().unwrap().identity();
    wait_until_served(&mut identity, "first").await;
    fixture.write(&make_pair("second"));
    wait_until_served(&mut identity, "second").await;
}

#[tokio::test(start_paused = true)]
async fn a_pair_swapped_by_symlinks_is_reloaded() {
    let mut fixture = fixture();
    let place: PathBuf = fixture.home.state.parent().unwrap().into();
    let publish = |version: &str| {
        let (chain, key) = make_pair(version);
        fs::create_dir(place.join(version)).unwrap();
        fs::write(place.join(version).join("tls.crt"), chain).unwrap();
        fs::write(place.join(version).join("tls.key"), key).unwrap();
        std::os::unix::fs::symlink(version, place.join("..data_tmp")).unwrap();
        fs::rename(place.join("..data_tmp"), place.join("..data")).unwrap();
    };
    publish("v1");
    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(name), place.join(name)).unwrap();
    }
    fixture.chain = place.join("tls.crt");
    fixture.key = place.join("tls.key");
    let mut identity = fixture.open().unwrap().identity();
    wait_until_served(&mut identity, "v1").await;
    publish("v2");
    wait_until_served(&mut identity, "v2").await;
}

#[tokio::test(start_paused = true)]
async fn with_an_invalid_pair_the_old_one_is_served_and_the_problem_reported_until_it_is_fixed() {
    let fixture = fixture();
    fixture.write(&make_pair("first"));
    let pki = fixture.open().unwrap();
    let mut identity = pki.identity();

    let second = make_pair("second");
    fs::write(&fixture.chain, &second.0).unwrap();
    wait_for_problem(&pki, "tls.key").await;
    wait_until_served(&mut identity, "first").await;
    fs::write(&fixture.key, &second.1).unwrap();
    wait_until_served(&mut identity, "second").await;
    pki.problem().wait_for(Option::is_none).await.unwrap();

    fixture.write(&make_pair("expired"));
    wait_for_problem(&pki, "expired").await;
    wait_until_served(&mut identity, "second").await;
    fs::remove_file(&fixture.chain).unwrap();
    wait_for_problem(&pki, "can't read").await;
    wait_until_served(&mut identity, "second").await;
}

#[tokio::test]
async fn a_reload_checks_the_files_at_once() {
    let fixture = fixture();
    fixture.write(&make_pair("first"));
    let pki = fixture.open().unwrap();
    fixture.write(&("hello".to_owned(), "hello".to_owned()));
    pki.check_files_now();
    wait_for_problem(&pki, "tls.crt").await;
    fixture.write(&make_pair("second"));
    pki.check_files_now();
    wait_until_served(&mut pki.identity(), "second").await;
    fixture.shutdown.begin();
    assert_eq!(fixture.shutdown.wait_for_tasks(std::time::Duration::from_secs(10)).await, 0);
}

/// Returns a chain from a leaf up to its root, each certificate as PEM, and the leaf's key.
fn issue_chain(intermediates: usize) -> (Vec<String>, String) {
    let ca = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
    };
    let key = KeyPair::generate().unwrap();
    let root = ca("Test Root");
    let mut chain = vec![root.self_signed(&key).unwrap().pem()];
    let mut issuer = rcgen::Issuer::new(root, key);
    for number in 1..=intermediates {
        let key = KeyPair::generate().unwrap();
        let params = ca(&format!("Test Intermediate {number}"));
        chain.insert(0, params.signed_by(&key, &issuer).unwrap().pem());
        issuer = rcgen::Issuer::new(params, key);
    }
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(["leaf".to_owned()]).unwrap();
    leaf.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(30);
    chain.insert(0, leaf.signed_by(&key, &issuer).unwrap().pem());
    (chain, key.serialize_pem())
}

fn der(pem: &str) -> rustls_pki_types::CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[tokio::test]
async fn files_as_editors_and_copying_leave_them_are_served() {
    let (chain, key) = issue_chain(2);
    let [leaf, second, first, root] = &chain[..] else { panic!() };
    let whole = chain[..3].concat();
    let bom = "\u{feff}";
    let cases = [
        (whole.clone(), key.clone()),
        (format!("{bom}{whole}"), format!("{bom}{key}")),
        (format!("{bom}{leaf}{bom}{second}{bom}{first}"), key.replace('\n', "\r\n")),
        (whole.replace('\n', "\r\n"), key.clone()),
        (format!("{key}{whole}"), format!("{key}{whole}")),
        (format!("{whole}{key}"), format!("{whole}{key}")),
        ([first, leaf, second].map(String::as_str).concat(), key.clone()),
        ([first, second, leaf].map(String::as_str).concat(), key.clone()),
    ];
    for (number, (certificates, key)) in cases.into_iter().enumerate() {
        let fixture = fixture();
        fixture.write(&(certificates, key));
        let pki = fixture.open().unwrap_or_else(|error| panic!("case {number}: {}", error_chain(&error)));
        assert_eq!(
            pki.identity().borrow().certified_key.cert,
            [leaf, second, first].map(|pem| der(pem)),
            "case {number}"
        );
    }
    let fixture = fixture();
    fixture.write(&([root, first, second, leaf].map(String::as_str).concat(), key));
    assert_eq!(
        fixture.open().unwrap().identity().borrow().certified_key.cert,
        [leaf, second, first, root].map(|pem| der(pem))
    );
}

#[test]
fn a_leaf_without_its_issuer_is_reported_with_the_issuers_name() {
    let (chain, _) = issue_chain(1);
    let [leaf, intermediate, root] = &chain[..] else { panic!() };
    let (unrelated, _) = make_pair("unrelated");
    for (certificates, missing) in [
        (leaf.clone(), true),
        (format!("{leaf}{root}"), true),
        (format!("{leaf}{unrelated}"), true),
        (format!("{leaf}{intermediate}"), false),
        (format!("{intermediate}{leaf}"), false),
        (format!("{leaf}{intermediate}{root}"), false),
        (unrelated.clone(), false),
    ] {
        let fixture = fixture();
        fixture.write(&(certificates, String::new()));
        let report = super::super::offline::show(&fixture.home.state, Some(&fixture.chain)).unwrap();
        assert_eq!(report.missing_issuer.is_some_and(|issuer| issuer.contains("Test Intermediate 1")), missing);
    }
}

#[tokio::test]
async fn a_file_in_another_format_or_with_a_refused_key_is_named_with_the_reason() {
    let (certificate, key) = make_pair("good");
    let utf16: Vec<u8> = [0xfeff].into_iter().chain(certificate.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let rsa1024 = include_bytes!("data/rsa1024.pem").to_vec();
    let secp256k1 = include_bytes!("data/secp256k1.pem").to_vec();
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHsMFcGCSqGSIb3DQEFDTBK\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let encrypted_rsa = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,73AC\n\nMIHs\n\
                         -----END RSA PRIVATE KEY-----\n";
    let [certificate, key] = [certificate, key].map(String::into_bytes);
    let (binary, other) = (der(std::str::from_utf8(&certificate).unwrap()), make_pair("other").1);
    let cases: [(&[u8], &[u8], &str, &str); 8] = [
        (&certificate, encrypted.as_bytes(), "tls.key", "encrypted"),
        (&certificate, encrypted_rsa.as_bytes(), "tls.key", "encrypted"),
        (&utf16, &key, "tls.crt", "UTF-16"),
        (&binary, &key, "tls.crt", "binary"),
        (&certificate, &[0x30, 0x82, 1, 1, 2], "tls.key", "binary"),
        (&rsa1024, &rsa1024, "tls.key", "RSA with 1024 bits"),
        (&secp256k1, &secp256k1, "tls.key", "1.3.132.0.10"),
        (&certificate, other.as_bytes(), "tls.key", "not the key of a certificate in"),
    ];
    for (chain, key, file, reason) in cases {
        let fixture = fixture();
        fs::write(&fixture.chain, chain).unwrap();
        fs::write(&fixture.key, key).unwrap();
        let error = error_chain(&fixture.open().unwrap_err());
        assert!(error.contains(&format!("can't use {}", fixture.chain.with_file_name(file).display())), "{error}");
        assert!(error.contains(reason), "{error}");
        assert!(!fixture.home.state.exists(), "a refused start created the state directory");
    }
}

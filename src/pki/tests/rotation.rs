//! Tests of a running sidecar with a certificate that loopgate issues.

use std::collections::BTreeSet;
use std::fs;

use tokio::sync::watch;

use super::super::offline;
use super::super::{Pki, RotateKey, SubjectName, open};
use super::{Home, create_home, names};
use crate::config::{Config, Tls};
use crate::shutdown::Shutdown;

struct Sidecar {
    home: Home,
    pki: Pki,
    names: watch::Sender<BTreeSet<SubjectName>>,
    _shutdown: Shutdown,
}

fn start_sidecar() -> Sidecar {
    start_sidecar_with(|_| {})
}

fn start_sidecar_with(change: impl FnOnce(&mut Tls)) -> Sidecar {
    let home = create_home();
    let shutdown = Shutdown::new();
    let (sender, receiver) = watch::channel(names("172.18.0.2"));
    let mut tls = Tls { names: vec!["Gateway.Example".into()], ..Config::default().tls };
    change(&mut tls);
    let pki = open(&tls, &home.state, receiver, &shutdown).unwrap();
    Sidecar { home, pki, names: sender, _shutdown: shutdown }
}

#[tokio::test]
async fn the_first_certificate_has_the_found_names_the_configured_ones_and_localhost() {
    let sidecar = start_sidecar();
    assert_eq!(sidecar.pki.identity().borrow().names, names("172.18.0.2 gateway.example localhost"));
    assert!(sidecar.pki.problem().borrow().is_none());
}

#[tokio::test]
async fn a_new_address_is_added_to_the_certificate_at_once_and_a_vanished_one_stays() {
    let sidecar = start_sidecar();
    let mut identity = sidecar.pki.identity();
    let before = identity.borrow_and_update().clone();
    sidecar.names.send_replace(names("172.19.0.2"));
    identity.changed().await.unwrap();
    let after = identity.borrow_and_update().clone();
    assert_eq!(after.names, names("172.18.0.2 172.19.0.2 gateway.example localhost"));
    assert_eq!(after.certified_key.key.public_key(), before.certified_key.key.public_key());
}

#[tokio::test]
async fn an_invalid_name_is_left_out_of_the_certificate() {
    let sidecar = start_sidecar();
    let mut identity = sidecar.pki.identity();
    identity.mark_unchanged();
    let strange = [SubjectName::Dns("no name!".into()), SubjectName::Dns("Fine".into())];
    sidecar.names.send_replace(strange.into());
    identity.changed().await.unwrap();
    assert_eq!(identity.borrow().names, names("172.18.0.2 fine gateway.example localhost"));
}

#[tokio::test(start_paused = true)]
async fn a_rotation_by_command_is_noticed() {
    let sidecar = start_sidecar();
    let mut identity = sidecar.pki.identity();
    let first = identity.borrow_and_update().clone();
    offline::rotate(&sidecar.home.state, RotateKey::Keep).unwrap();
    identity.changed().await.unwrap();
    let second = identity.borrow_and_update().clone();
    assert_eq!(second.certified_key.key.public_key(), first.certified_key.key.public_key());
    offline::rotate(&sidecar.home.state, RotateKey::Replace).unwrap();
    identity.changed().await.unwrap();
    let third = identity.borrow_and_update().clone();
    assert_ne!(third.certified_key.key.public_key(), first.certified_key.key.public_key());
    assert_eq!((third.names.clone(), third.ca.clone()), (first.names.clone(), first.ca.clone()));
}

#[tokio::test(start_paused = true)]
async fn a_state_directory_that_is_damaged_or_removed_while_running_is_reported_and_not_created_again() {
    let sidecar = start_sidecar();
    let identity = sidecar.pki.identity();
    let before = identity.borrow().clone();
    fs::write(sidecar.home.state.join("server.pem"), b"").unwrap();
    sidecar.pki.problem().wait_for(Option::is_some).await.unwrap();
    assert_eq!(fs::read(sidecar.home.state.join("server.pem")).unwrap(), b"");

    // The directory is replaced in one step, since the sidecar may check the files at any moment.
    fs::rename(&sidecar.home.state, sidecar.home.state.with_extension("away")).unwrap();
    let mut problem = sidecar.pki.problem();
    problem
        .wait_for(|problem| problem.as_ref().is_some_and(|error| super::error_chain(error).contains("server.key")))
        .await
        .unwrap();
    assert!(!sidecar.home.state.exists());
    assert_eq!(identity.borrow().certified_key.cert, before.certified_key.cert);
}

#[tokio::test(start_paused = true)]
async fn without_follow_names_the_certificate_stays_as_it_is() {
    let sidecar = start_sidecar_with(|tls| tls.follow_names = false);
    let before = sidecar.pki.identity().borrow().clone();
    sidecar.names.send_replace(names("172.19.0.2"));
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert_eq!(sidecar.pki.identity().borrow().certified_key.cert, before.certified_key.cert);
    assert!(sidecar.pki.problem().borrow().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_constrained_ca_signs_for_the_names_at_its_creation_only_and_clients_enforce_that() {
    let sidecar = start_sidecar_with(|tls| tls.constrain_names = true);
    let first = sidecar.pki.identity().borrow().clone();
    let ca = first.ca.clone().unwrap();
    for name in ["172.18.0.2", "gateway.example", "localhost"] {
        super::handshake(&first, &ca, name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    sidecar.names.send_replace(names("172.19.0.2 other.example chat.gateway.example"));
    let mut identity = sidecar.pki.identity();
    identity
        .wait_for(|identity| identity.names.contains(&SubjectName::Dns("chat.gateway.example".into())))
        .await
        .unwrap();
    let second = identity.borrow().clone();
    assert_eq!(second.names, names("172.18.0.2 gateway.example chat.gateway.example localhost"));
    super::handshake(&second, &ca, "chat.gateway.example").unwrap();

    // A certificate for another name, signed with a stolen CA key, is refused by clients that trust
    // the CA.
    let authority = sidecar.pki.authority().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let now = time::OffsetDateTime::now_utc();
    for name in ["bank.example", "203.0.113.7"] {
        let chain = authority.issue_server(&key, &names(name), now).unwrap();
        assert!(super::super::certificate::verify_server_chain(&chain, &ca, now, &names(name)).is_err(), "{name}");
    }
    // Certificates of agents have URIs, which are not constrained.
    let agent = authority.issue_agent(&key, "loopgate.local", "robot", std::time::Duration::from_secs(3600)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), super::default_provider().into())
            .build()
            .unwrap();
    verifier.verify_client_cert(&agent[0], &[], rustls_pki_types::UnixTime::now()).unwrap();
}

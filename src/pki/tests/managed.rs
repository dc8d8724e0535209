//! Tests of the certificate that loopgate issues: its contents, its lifetime, and handshakes with
//! it.

use std::collections::BTreeSet;

use time::Duration;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::super::managed::{Managed, RotateKey};
use super::{create_home, handshake, load_at_start, names, now, read_files};

#[test]
fn a_client_that_trusts_the_ca_connects_under_every_name_and_no_other() {
    let home = create_home();
    let made = load_at_start(&home.state, "localhost my_gateway *.example.org 172.18.0.2 fd00::2").unwrap();
    let ca = made.identity.ca.clone().unwrap();
    for name in ["localhost", "my_gateway", "www.example.org", "172.18.0.2", "fd00::2"] {
        handshake(&made.identity, &ca, name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in ["gateway", "172.18.0.3", "example.org"] {
        assert!(handshake(&made.identity, &ca, name).is_err(), "{name}");
    }
    let stranger = load_at_start(&super::create_home().state, "localhost").unwrap().identity.ca.unwrap();
    assert!(handshake(&made.identity, &stranger, "localhost").is_err());
}

#[test]
fn certificates_follow_the_rules_of_browsers_and_platforms() {
    let home = create_home();
    let identity = load_at_start(&home.state, "localhost 172.18.0.2").unwrap().identity;
    let (_, leaf) = X509Certificate::from_der(&identity.certified_key.cert[0]).unwrap();
    let (_, ca) = X509Certificate::from_der(&identity.certified_key.cert[1]).unwrap();

    assert!(leaf.validity().time_to_expiration().unwrap() < Duration::days(398));
    assert!(identity.not_after - identity.not_before < Duration::days(398));
    assert!(identity.not_before <= now() - Duration::minutes(59), "valid for clients with a slow clock");
    assert!(!leaf.is_ca() && leaf.basic_constraints().unwrap().is_some());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && usage.value.flags == 1);
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && !extended.client_auth && !extended.any);

    let constraints = ca.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0));
    let usage = ca.key_usage().unwrap().unwrap();
    assert!(
        usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign() && !usage.value.digital_signature()
    );

    let key_id = |certificate: &X509Certificate<'_>| {
        certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
    };
    let issuer_id = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    assert!(key_id(&leaf).is_some());
    assert_eq!(issuer_id, key_id(&ca));
    assert_eq!(leaf.issuer(), ca.subject());
    assert_ne!(leaf.subject(), ca.subject());
}

#[test]
fn two_cas_have_different_names() {
    let subject = |state| {
        let identity = load_at_start(state, "localhost").unwrap().identity;
        X509Certificate::from_der(&identity.ca.unwrap()).unwrap().1.subject().to_string()
    };
    assert_ne!(subject(&create_home().state), subject(&create_home().state));
}

#[test]
fn no_serial_is_used_twice_though_the_key_stays() {
    let home = create_home();
    load_at_start(&home.state, "localhost").unwrap();
    let made = Managed::open(&home.state, now()).unwrap();
    let key = std::fs::read(home.state.join("server.key")).unwrap();
    let mut serials = BTreeSet::new();
    for _ in 0..50 {
        let identity = made.rotate(RotateKey::Keep, now()).unwrap().identity;
        let (_, leaf) = X509Certificate::from_der(&identity.certified_key.cert[0]).unwrap();
        assert_eq!(leaf.raw_serial().len(), 16);
        assert!(leaf.raw_serial()[0] & 0x80 == 0, "positive");
        assert!(serials.insert(leaf.raw_serial().to_vec()));
    }
    assert_eq!(std::fs::read(home.state.join("server.key")).unwrap(), key);
}

#[test]
fn a_restart_serves_the_same_certificate() {
    let home = create_home();
    load_at_start(&home.state, "localhost 172.18.0.2").unwrap();
    let before = read_files(&home.state);
    load_at_start(&home.state, "localhost").unwrap();
    assert_eq!(read_files(&home.state), before);
    assert_eq!(before.keys().collect::<Vec<_>>(), ["ca.key", "ca.pem", "server.key", "server.pem"]);
}

#[test]
fn a_new_name_leads_to_a_new_leaf_for_the_same_key() {
    let home = create_home();
    let before = load_at_start(&home.state, "localhost 172.18.0.2").unwrap().identity;
    let after = load_at_start(&home.state, "localhost 172.19.0.2").unwrap().identity;
    assert_eq!(after.names, names("localhost 172.18.0.2 172.19.0.2"));
    assert_ne!(after.certified_key.cert[0], before.certified_key.cert[0]);
    assert_eq!(after.certified_key.key.public_key(), before.certified_key.key.public_key());
    assert_eq!(after.ca, before.ca);
}

#[test]
fn a_leaf_is_renewed_at_two_thirds_of_its_life_and_after_a_clock_that_was_wrong() {
    let home = create_home();
    let made = Managed::open(&home.state, now()).unwrap();
    let wanted = names("localhost");
    let leaf_at = |days| {
        let identity = made.load(&wanted, now() + Duration::days(days)).unwrap().identity;
        identity.certified_key.cert[0].clone()
    };
    let first = leaf_at(0);
    assert_eq!(leaf_at(59), first);
    let second = leaf_at(61);
    assert_ne!(second, first, "two thirds of its life have elapsed");
    assert_eq!(leaf_at(61), second);
    assert_ne!(leaf_at(0), second, "the clock went back to before it was valid");
}

#[test]
fn a_leaf_does_not_outlive_its_ca_which_signs_nothing_once_it_has_expired() {
    let home = create_home();
    let made = Managed::open(&home.state, now()).unwrap();
    let late = made.load(&names("localhost"), now() + Duration::days(3640)).unwrap().identity;
    assert!(late.not_after - now() <= Duration::days(3650));
    let error = made.load(&names("localhost"), now() + Duration::days(3651)).unwrap_err();
    assert!(error.to_string().contains("ca.pem"), "{error}");
}

#[test]
fn a_ca_is_not_dated_by_a_clock_that_was_never_set() {
    let home = create_home();
    let error = Managed::open(&home.state, time::OffsetDateTime::UNIX_EPOCH + Duration::hours(3)).unwrap_err();
    assert!(error.to_string().contains("the clock says 1970"), "{error}");
    assert!(read_files(&home.state).is_empty());
}

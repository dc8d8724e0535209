//! Verifies chains of client certificates, and counts the signature checks that each causes.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, NameConstraints, SanType,
};

use super::*;

/// A CA certificate and its key.
struct Signer {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn params(subject: &str, ca: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    if ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    } else {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    }
    params
}

fn root(subject: &str) -> Signer {
    let key = KeyPair::generate().unwrap();
    let params = params(subject, true);
    Signer { certificate: params.self_signed(&key).unwrap().der().clone(), issuer: Issuer::new(params, key) }
}

impl Signer {
    fn intermediate(&self, subject: &str) -> Signer {
        self.intermediate_with(subject, |_| {})
    }

    fn intermediate_with(&self, subject: &str, change: impl FnOnce(&mut CertificateParams)) -> Signer {
        let key = KeyPair::generate().unwrap();
        let mut params = params(subject, true);
        change(&mut params);
        Signer {
            certificate: params.signed_by(&key, &self.issuer).unwrap().der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn leaf(&self) -> CertificateDer<'static> {
        self.leaf_with(|_| {})
    }

    fn leaf_with(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let mut params = params("client", false);
        change(&mut params);
        params.signed_by(&key, &self.issuer).unwrap().der().clone()
    }
}

/// Returns a chain with many possible paths by name, none of which leads to a trusted CA.
fn hostile_chain(names: &[&str], issuer: &str, intermediates: usize) -> Vec<CertificateDer<'static>> {
    let signers = (0..intermediates).map(|i| root(issuer).intermediate(names[i % names.len()]).certificate);
    std::iter::once(root(names[0]).leaf()).chain(signers).collect()
}

fn verify(verifier: &ClientVerifier, chain: &[CertificateDer<'static>]) -> Result<(), rustls::Error> {
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map(drop)
}

/// These cases are in one test, since the counter is global to the process.
#[test]
fn each_chain_is_judged_at_a_bounded_cost() {
    let (own, operator, other) = (root("own"), root("operator"), root("other"));
    let verifier = ClientVerifier::trusting(
        Some(&own.certificate),
        &[operator.certificate.clone(), other.certificate.clone()],
        Arc::default(),
    )
    .unwrap()
    .unwrap();
    let first = operator.intermediate("first");
    let second = first.intermediate("second");
    let third = second.intermediate("third");
    let cross_signed = own.intermediate("first");
    let good = [
        vec![own.leaf()],
        vec![own.leaf(), own.certificate.clone()],
        vec![operator.leaf()],
        vec![first.leaf(), first.certificate.clone()],
        vec![first.leaf(), first.certificate.clone(), operator.certificate.clone()],
        vec![third.leaf(), third.certificate.clone(), second.certificate.clone(), first.certificate.clone()],
        vec![third.leaf(), first.certificate.clone(), third.certificate.clone(), second.certificate.clone()],
        vec![first.leaf(), cross_signed.certificate.clone(), first.certificate.clone()],
    ];
    for (number, chain) in good.iter().enumerate() {
        let before = signature_check_count();
        verify(&verifier, chain).unwrap_or_else(|error| panic!("chain {number}: {error}"));
        assert!(signature_check_count() - before <= 4, "chain {number}");
    }

    let intermediate_of_own = own.intermediate("sub");
    let bad = [
        // loopgate's CA signs leaves only.
        vec![intermediate_of_own.leaf(), intermediate_of_own.certificate.clone()],
        // Another CA with the name of loopgate's, an unknown CA, a missing intermediate, and an
        // invalid leaf.
        vec![root("own").leaf()],
        vec![root("stranger").leaf()],
        vec![first.leaf()],
        vec![CertificateDer::from(b"not a certificate".to_vec())],
    ];
    for chain in bad {
        assert!(verify(&verifier, &chain).is_err());
    }

    for intermediates in [1, 2, 3, 4, 7, 11, 30, 60] {
        for names in [&["operator"][..], &["own"], &["operator", "other"], &["hub"], &["hub", "own"], &["x", "y", "z"]]
        {
            for issuer in ["operator", "own", "hub"] {
                let chain = hostile_chain(names, issuer, intermediates);
                let before = signature_check_count();
                assert!(verify(&verifier, &chain).is_err());
                let checked = signature_check_count() - before;
                let most = if intermediates > MAX_INTERMEDIATES { 0 } else { 3 };
                assert!(
                    checked <= most,
                    "{checked} signatures checked: {intermediates} intermediates named {names:?}, issued by {issuer}"
                );
            }
        }
    }
}

/// Chains with correct signatures that RFC 5280 forbids.
#[test]
fn chains_that_are_signed_but_not_valid_are_refused() {
    let (own, operator) = (root("own"), root("operator"));
    let operators = [operator.certificate.clone()];
    let verifier = ClientVerifier::trusting(Some(&own.certificate), &operators, Arc::default()).unwrap().unwrap();
    let (past, future) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2090, 1, 1));
    let server = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let expired = |params: &mut CertificateParams| params.not_after = past;
    let not_yet = |params: &mut CertificateParams| (params.not_before, params.not_after) = (future, future);
    let below = |change: &dyn Fn(&mut CertificateParams)| {
        let intermediate = operator.intermediate_with("sub", change);
        vec![intermediate.leaf(), intermediate.certificate]
    };
    let (alone, constrained) = (
        operator.intermediate_with("alone", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
        operator.intermediate_with("constrained", |params| {
            let permitted_subtrees = vec![GeneralSubtree::DnsName("a.example".into())];
            params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        }),
    );
    let named = |name: &str| {
        let name = SanType::DnsName(name.try_into().unwrap());
        let leaf = constrained.leaf_with(|params| params.subject_alt_names = vec![name]);
        vec![leaf, constrained.certificate.clone()]
    };
    let sub = alone.intermediate("sub");
    for (number, (chain, accepted)) in [
        (vec![own.leaf_with(server)], false),
        (vec![own.leaf_with(expired)], false),
        (vec![own.leaf_with(not_yet)], false),
        (vec![operator.leaf_with(server)], false),
        (vec![operator.leaf_with(expired)], false),
        (below(&|_| {}), true),
        (below(&expired), false),
        (below(&not_yet), false),
        (below(&|params| params.is_ca = IsCa::ExplicitNoCa), false),
        (below(&|params| params.is_ca = IsCa::NoCa), false),
        (below(&server), false),
        (vec![alone.leaf(), alone.certificate.clone()], true),
        (vec![sub.leaf(), sub.certificate.clone(), alone.certificate.clone()], false),
        (named("x.a.example"), true),
        (named("b.example"), false),
        // A certificate that occurs twice makes no difference.
        (vec![alone.leaf(), alone.certificate.clone(), alone.certificate.clone()], true),
        (vec![operator.leaf(), operator.leaf(), operator.certificate.clone()], true),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(verify(&verifier, &chain).is_ok(), accepted, "chain {number}");
    }
}

#[test]
fn a_chain_above_16_kib_is_refused_before_it_is_parsed() {
    let own = root("own");
    let verifier = ClientVerifier::trusting(Some(&own.certificate), &[], Arc::default()).unwrap().unwrap();
    let leaf = own.leaf();
    let with = |bytes: usize| [leaf.clone(), CertificateDer::from(vec![0; bytes - leaf.len()])];
    verify(&verifier, &with(MAX_CHAIN_BYTES)).unwrap();
    let error = verify(&verifier, &with(MAX_CHAIN_BYTES + 1)).unwrap_err().to_string();
    assert!(error.contains("more than 16384"), "{error}");
}

//! Chains of client certificates, and what verifying them costs.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

use super::*;

/// A certificate and the means to sign others with it.
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
        let key = KeyPair::generate().unwrap();
        let params = params(subject, true);
        Signer {
            certificate: params.signed_by(&key, &self.issuer).unwrap().der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn leaf(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        params("client", false).signed_by(&key, &self.issuer).unwrap().der().clone()
    }
}

/// A chain without a path to any CA, whose names promise many.
fn hostile(names: &[&str], issuer: &str, intermediates: usize) -> Vec<CertificateDer<'static>> {
    let signers = (0..intermediates).map(|i| root(issuer).intermediate(names[i % names.len()]).certificate);
    std::iter::once(root(names[0]).leaf()).chain(signers).collect()
}

fn verify(verifier: &ClientVerifier, chain: &[CertificateDer<'static>]) -> Result<(), rustls::Error> {
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map(drop)
}

/// One test, since the counter is the process's.
#[test]
fn each_chain_is_judged_at_a_bounded_cost() {
    let (own, operator, other) = (root("own"), root("operator"), root("other"));
    let verifier = ClientVerifier::new(
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
        let before = signature_checks();
        verify(&verifier, chain).unwrap_or_else(|error| panic!("chain {number}: {error}"));
        assert!(signature_checks() - before <= 4, "chain {number}");
    }

    let intermediate_of_own = own.intermediate("sub");
    let bad = [
        // loopgate's CA signs leaves only.
        vec![intermediate_of_own.leaf(), intermediate_of_own.certificate.clone()],
        vec![root("own").leaf()],
        vec![root("stranger").leaf()],
        vec![first.leaf()],
        vec![CertificateDer::from(b"no certificate".to_vec())],
    ];
    for chain in bad {
        assert!(verify(&verifier, &chain).is_err());
    }

    for intermediates in [1, 2, 3, 4, 7, 11, 30, 60] {
        for names in [&["operator"][..], &["own"], &["operator", "other"], &["hub"], &["hub", "own"], &["x", "y", "z"]]
        {
            for issuer in ["operator", "own", "hub"] {
                let chain = hostile(names, issuer, intermediates);
                let before = signature_checks();
                assert!(verify(&verifier, &chain).is_err());
                let checked = signature_checks() - before;
                let most = if intermediates > MAX_INTERMEDIATES { 0 } else { 3 };
                assert!(
                    checked <= most,
                    "{checked} signatures of {intermediates} intermediates named {names:?}, issued by {issuer}"
                );
            }
        }
    }
}

#[test]
fn a_chain_above_16_kib_is_refused_unread() {
    let own = root("own");
    let verifier = ClientVerifier::new(Some(&own.certificate), &[], Arc::default()).unwrap().unwrap();
    let chain = [own.leaf(), CertificateDer::from(vec![0; MAX_CHAIN])];
    let error = verify(&verifier, &chain).unwrap_err().to_string();
    assert!(error.contains("more than 16384"), "{error}");
}

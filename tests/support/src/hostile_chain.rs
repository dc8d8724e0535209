//! Certificate chains that make a verifier search: many certificates that each could have issued
//! the others.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// How the certificates of a chain name each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each has the same subject and issuer.
    OneName,
    /// Two names, each of which issues the other.
    TwoNames,
    /// Three names, each of which issues all three.
    Star,
    /// A path that never reaches a trusted CA: each certificate has its own name, and is issued by
    /// the next one.
    AllDifferent,
}

/// All shapes.
pub const SHAPES: [Shape; 4] = [Shape::OneName, Shape::TwoNames, Shape::Star, Shape::AllDifferent];

impl Shape {
    /// Returns the numbers of the subject and of the issuer of the intermediate certificate with
    /// this number.
    fn names(self, number: usize) -> (usize, usize) {
        match self {
            Self::OneName => (0, 0),
            Self::TwoNames => (number % 2, (number + 1) % 2),
            Self::Star => (number % 3, number / 3 % 3),
            Self::AllDifferent => (number, number + 1),
        }
    }
}

/// Makes a chain of this number of `certificates`, the leaf included, and the leaf's key. `name` is
/// the name of the leaf's issuer, and can be the name of a CA that the verifier trusts. All
/// signatures are valid under one key, so the verifier rejects no path early.
pub fn hostile_chain(
    shape: Shape,
    certificates: usize,
    name: &str,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let distinguished_name_of = |number: usize| {
        let mut names = DistinguishedName::new();
        names.push(DnType::CommonName, if number == 0 { name.to_owned() } else { format!("{name} {number}") });
        names
    };
    let authority = |number: usize| {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name_of(number);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let signed = |params: CertificateParams, issuer: usize| {
        params.signed_by(&key, &Issuer::new(authority(issuer), &key)).unwrap().der().clone()
    };
    let mut leaf = CertificateParams::default();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let intermediates = (0..certificates.saturating_sub(1)).map(|number| {
        let (subject, issuer) = shape.names(number);
        signed(authority(subject), issuer)
    });
    let chain = [signed(leaf, 0)].into_iter().chain(intermediates).collect();
    (chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

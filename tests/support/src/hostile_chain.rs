//! Certificate chains that make a verifier search: many certificates that each could have issued the others.

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
    /// Three names, each of which issues each.
    Star,
    /// A path without an end that is trusted: each certificate has a name of its own and is issued by the next.
    AllDifferent,
}

/// All of them.
pub const SHAPES: [Shape; 4] = [Shape::OneName, Shape::TwoNames, Shape::Star, Shape::AllDifferent];

impl Shape {
    /// The numbers of the subject and of the issuer of the intermediate certificate with this number.
    fn names(self, number: usize) -> (usize, usize) {
        match self {
            Self::OneName => (0, 0),
            Self::TwoNames => (number % 2, (number + 1) % 2),
            Self::Star => (number % 3, number / 3 % 3),
            Self::AllDifferent => (number, number + 1),
        }
    }
}

/// Makes a chain of so many `certificates`, the leaf included, and the leaf's key. The first name
/// is `name`; if that is the name of a CA that the verifier trusts, the leaf could be its. All
/// signatures are valid under one key, so that no path is given up early.
pub fn hostile_chain(
    shape: Shape,
    certificates: usize,
    name: &str,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let named = |number: usize| {
        let mut names = DistinguishedName::new();
        names.push(DnType::CommonName, if number == 0 { name.to_owned() } else { format!("{name} {number}") });
        names
    };
    let authority = |number: usize| {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(number);
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

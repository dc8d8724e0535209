//! Puts a certificate chain in order, and finds what is missing from it.

use rustls_pki_types::CertificateDer;

use super::certificate::CertificateFields;
use super::error::InvalidFile;

/// An ordered chain: the leaf first, and each certificate followed by its issuer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OrderedChain {
    /// The chain. Certificates that are not the issuer of another follow at the end.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// Whether the file had another order.
    pub(super) was_unordered: bool,
    /// The name of the leaf's issuer, if its certificate is not in the chain and the leaf is not
    /// self-issued. Clients that don't trust this issuer itself can't verify the leaf.
    pub(super) missing_issuer: Option<String>,
}

/// Orders `chain`; `None` if it has no leaf.
///
/// The leaf is the certificate for `public_key` (a SubjectPublicKeyInfo). Without a key it is the
/// first certificate that is not a CA's, else the first of all.
pub(super) fn order_chain(
    chain: &[CertificateDer<'static>],
    public_key: Option<&[u8]>,
) -> Result<Option<OrderedChain>, InvalidFile> {
    let facts = chain.iter().map(CertificateFields::parse).collect::<Result<Vec<_>, _>>()?;
    let leaf = match public_key {
        Some(key) => facts.iter().position(|facts| facts.public_key == key),
        None => facts.iter().position(|facts| !facts.is_ca).or((!facts.is_empty()).then_some(0)),
    };
    let Some(leaf) = leaf else { return Ok(None) };
    let mut order = vec![leaf];
    let mut topmost = leaf;
    while !facts[topmost].is_self_issued() {
        let issues_last =
            |index: &usize| !order.contains(index) && facts[*index].raw_subject == facts[topmost].raw_issuer;
        let Some(issuer) = (0..facts.len()).find(issues_last) else { break };
        order.push(issuer);
        topmost = issuer;
    }
    let missing_issuer = (topmost == leaf && !facts[leaf].is_self_issued()).then(|| facts[leaf].issuer.clone());
    let was_unordered = order.iter().enumerate().any(|(position, index)| position != *index);
    order.extend((0..facts.len()).filter(|index| !order.contains(index)).collect::<Vec<_>>());
    let certificates = order.into_iter().map(|index| chain[index].clone()).collect();
    Ok(Some(OrderedChain { certificates, was_unordered, missing_issuer }))
}

//! The name constraints of a CA certificate (RFC 5280 section 4.2.1.10).

use std::collections::BTreeSet;
use std::net::IpAddr;

use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::error::InvalidFile;
use super::name::SubjectName;

/// The DNS names (with their subdomains) and IP addresses for which a CA may sign server
/// certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PermittedNames {
    /// The permitted DNS names; `None` if all are permitted.
    dns: Option<Vec<String>>,
    /// The permitted networks, each as address and mask; `None` if all addresses are permitted.
    addresses: Option<Vec<Vec<u8>>>,
}

impl PermittedNames {
    /// Parses the name constraints of a CA certificate. Excluded names, which a CA of loopgate
    /// never has, are ignored.
    pub(super) fn parse(certificate: &CertificateDer<'_>) -> Result<Self, InvalidFile> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|_| InvalidFile::Certificate(x509_parser::error::X509Error::InvalidCertificate))?;
        let mut permitted = Self::default();
        let extension = parsed.name_constraints().map_err(InvalidFile::Certificate)?;
        for subtree in extension.iter().filter_map(|extension| extension.value.permitted_subtrees.as_ref()).flatten() {
            match &subtree.base {
                GeneralName::DNSName(name) => permitted.dns.get_or_insert_default().push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(network) => permitted.addresses.get_or_insert_default().push(network.to_vec()),
                _ => {}
            }
        }
        Ok(permitted)
    }

    /// Returns whether the CA may sign a certificate for `name`.
    pub(super) fn permits(&self, name: &SubjectName) -> bool {
        match name {
            SubjectName::Dns(name) => self.dns.as_ref().is_none_or(|permitted| {
                let name = name.strip_prefix("*.").unwrap_or(name);
                permitted.iter().any(|base| {
                    name == base || name.strip_suffix(base.as_str()).is_some_and(|left| left.ends_with('.'))
                })
            }),
            SubjectName::Ip(address) => {
                let octets = match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                let within = |network: &Vec<u8>| {
                    let (base, mask) = network.split_at(network.len() / 2);
                    base.len() == octets.len()
                        && octets.iter().zip(base).zip(mask).all(|((octet, base), mask)| octet & mask == base & mask)
                };
                self.addresses.as_ref().is_none_or(|permitted| permitted.iter().any(within))
            }
        }
    }
}

/// Returns name constraints for a new CA that permit only `names`, and 127.0.0.1 if there is no
/// address among them. One of `names` must be a DNS name: without one, all would be permitted.
pub(super) fn constraints_permitting(names: &BTreeSet<SubjectName>) -> NameConstraints {
    let subtree = |name: &SubjectName| match name {
        SubjectName::Dns(name) => GeneralSubtree::DnsName(name.strip_prefix("*.").unwrap_or(name).to_owned()),
        SubjectName::Ip(IpAddr::V4(v4)) => GeneralSubtree::IpAddress(CidrSubnet::V4(v4.octets(), [0xff; 4])),
        SubjectName::Ip(IpAddr::V6(v6)) => GeneralSubtree::IpAddress(CidrSubnet::V6(v6.octets(), [0xff; 16])),
    };
    let mut permitted: Vec<_> = names.iter().map(subtree).collect();
    // A list without an address would permit all addresses.
    if !names.iter().any(|name| matches!(name, SubjectName::Ip(_))) {
        permitted.push(GeneralSubtree::IpAddress(CidrSubnet::V4([127, 0, 0, 1], [0xff; 4])));
    }
    NameConstraints { permitted_subtrees: permitted, excluded_subtrees: Vec::new() }
}

//! DNS names and IP addresses in certificates.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls_pki_types::DnsName;

use super::error::Error;

/// A subject alternative name of a server leaf (RFC 5280 section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectName {
    /// A DNS name in lower case.
    Dns(String),
    /// An IP address.
    Ip(IpAddr),
}

impl SubjectName {
    /// Returns the name in its form in a certificate: lower case, no final dot, `*` only as the
    /// whole first label; an IPv4-mapped address as the IPv4 address.
    ///
    /// # Errors
    /// The name is not valid in a certificate.
    pub fn checked(&self) -> Result<Self, Error> {
        match self {
            // A client compares the address with the one that it connected to, which is never
            // IPv4-mapped.
            Self::Ip(address) => Ok(Self::Ip(address.to_canonical())),
            Self::Dns(name) => {
                let lower = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                match DnsName::try_from(lower.strip_prefix("*.").unwrap_or(&lower)) {
                    Ok(_) => Ok(Self::Dns(lower)),
                    Err(_) => Err(Error::Name { name: name.clone() }),
                }
            }
        }
    }
}

impl FromStr for SubjectName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.parse() {
            Ok(address) => Self::Ip(address).checked(),
            Err(_) => Self::Dns(text.to_owned()).checked(),
        }
    }
}

impl fmt::Display for SubjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_to_the_form_that_clients_compare() {
        let table = [
            ("localhost", Some("localhost")),
            ("Gateway.Example.", Some("gateway.example")),
            ("my_gateway", Some("my_gateway")),
            ("*.example.org", Some("*.example.org")),
            ("172.18.0.2", Some("172.18.0.2")),
            ("fd00::2", Some("fd00::2")),
            ("::ffff:172.18.0.2", Some("172.18.0.2")),
            ("", None),
            (".", None),
            ("*", None),
            ("a.*.b", None),
            ("a b", None),
            ("https://gateway", None),
            ("bücher.example", None),
            ("172.18.0.256", None),
        ];
        for (text, expected) in table {
            let read = text.parse::<SubjectName>().ok().map(|name| name.to_string());
            assert_eq!(read.as_deref(), expected, "{text:?}");
        }
    }
}

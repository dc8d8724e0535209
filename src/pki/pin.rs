//! The digest with which clients pin a public key.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Returns SHA-256 of a certificate's SubjectPublicKeyInfo in base64, the form of `curl
/// --pinnedpubkey sha256//..` (RFC 7469 section 2.4). It stays the same when the certificate is
/// renewed. `None` if `certificate` is malformed.
pub fn public_key_pin(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(STANDARD.encode(digest(&SHA256, parsed.public_key().raw)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_no_certificate_has_no_public_key() {
        assert_eq!(public_key_pin(b"no certificate"), None);
    }
}

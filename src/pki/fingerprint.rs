//! Digests by which clients pin a certificate or its key.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::prelude::{FromDer, X509Certificate};

/// SHA-256 of a certificate's DER as `AA:BB:..`: what OpenClaw pins, and what `openssl x509 -fingerprint -sha256` prints.
pub fn fingerprint(certificate: &[u8]) -> String {
    let digest = digest(&SHA256, certificate);
    let mut text = String::with_capacity(32 * 3);
    for (i, byte) in digest.as_ref().iter().enumerate() {
        if i > 0 {
            text.push(':');
        }
        text.push_str(&format!("{byte:02X}"));
    }
    text
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo) in base64, as `curl --pinnedpubkey sha256//..` takes it
/// (RFC 7469 section 2.4). It outlives renewals. `None` if `certificate` is not one.
pub fn public_key_pin(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(STANDARD.encode(digest(&SHA256, parsed.public_key().raw)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_in_upper_case_hexadecimal_with_colons() {
        assert_eq!(fingerprint(b""), "E3:B0:C4:42:98:FC:1C:14:9A:FB:F4:C8:99:6F:B9:24:27:AE:41:E4:64:9B:93:4C:A4:95:99:1B:78:52:B8:55");
    }

    #[test]
    fn what_is_no_certificate_has_no_public_key() {
        assert_eq!(public_key_pin(b"no certificate"), None);
    }
}

//! PEM in and out.

use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::error::Flaw;

/// Every certificate in `pem`, in the order of the file; at least one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    if pem.is_empty() {
        return Err(Flaw::Empty);
    }
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(Flaw::Pem)?;
    if chain.is_empty() { Err(Flaw::NoCertificate) } else { Ok(chain) }
}

/// The first private key in `pem`, of whatever PEM kind.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, Flaw> {
    if pem.is_empty() {
        return Err(Flaw::Empty);
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        Error::NoItemsFound => Flaw::NoKey,
        other => Flaw::Pem(other),
    })
}

/// `chain` as PEM, RFC 7468 line length.
pub(super) fn from_certificates(chain: &[CertificateDer<'_>]) -> String {
    use base64::Engine;
    let mut pem = String::new();
    for certificate in chain {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_a_whole_section_is_refused() {
        let whole = from_certificates(&[CertificateDer::from(vec![1; 100])]);
        assert_eq!(certificates(whole.as_bytes()).unwrap(), [CertificateDer::from(vec![1; 100])]);
        assert!(matches!(certificates(b""), Err(Flaw::Empty)));
        assert!(matches!(certificates(b"\0\0\0\0"), Err(Flaw::NoCertificate)));
        assert!(matches!(private_key(whole.as_bytes()), Err(Flaw::NoKey)));
        for cut in 1..whole.len() - 2 {
            assert!(certificates(&whole.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }
}

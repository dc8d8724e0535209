//! Reads and writes PEM.

use pem::{EncodeConfig, LineEnding, Pem};
use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::error::InvalidFile;

/// Returns all certificates in `pem`, in the order of the file; at least one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, InvalidFile> {
    if pem.is_empty() {
        return Err(InvalidFile::Empty);
    }
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(InvalidFile::Pem)?;
    if chain.is_empty() { Err(InvalidFile::NoCertificate) } else { Ok(chain) }
}

/// Returns the first private key in `pem`, in any of the PEM formats for keys.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, InvalidFile> {
    if pem.is_empty() {
        return Err(InvalidFile::Empty);
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        Error::NoItemsFound => InvalidFile::NoKey,
        other => InvalidFile::Pem(other),
    })
}

/// Encodes `chain` as PEM (RFC 7468).
pub fn encode_certificates(chain: &[CertificateDer<'_>]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    chain.iter().map(|certificate| pem::encode_config(&Pem::new("CERTIFICATE", certificate.as_ref()), config)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_sections_are_accepted() {
        let whole = encode_certificates(&[CertificateDer::from(vec![1; 100])]);
        assert!(whole.starts_with("-----BEGIN CERTIFICATE-----\n") && whole.ends_with("-----END CERTIFICATE-----\n"), "{whole}");
        assert_eq!(certificates(whole.as_bytes()).unwrap(), [CertificateDer::from(vec![1; 100])]);
        assert!(matches!(certificates(b""), Err(InvalidFile::Empty)));
        assert!(matches!(certificates(b"\0\0\0\0"), Err(InvalidFile::NoCertificate)));
        assert!(matches!(private_key(whole.as_bytes()), Err(InvalidFile::NoKey)));
        for cut in 1..whole.len() - 2 {
            assert!(certificates(&whole.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }
}

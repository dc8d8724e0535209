//! Reads and writes PEM.

use pem::{EncodeConfig, LineEnding, Pem};
use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::error::InvalidFile;

/// The UTF-8 byte order mark, which Windows editors put at the beginning. It hides the first
/// section from PEM parsers.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Returns all certificates in `pem`, in the order of the file.
///
/// # Errors
/// There is no certificate, or a section is malformed.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, InvalidFile> {
    check_encoding(pem)?;
    let text = without_bom(pem);
    let chain =
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(InvalidFile::Pem)?;
    if chain.is_empty() { Err(InvalidFile::NoCertificate) } else { Ok(chain) }
}

/// Returns the first private key in `pem`, in any of the PEM formats for keys.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, InvalidFile> {
    check_encoding(pem)?;
    let text = without_bom(pem);
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
        _ if has_encrypted_key(text.as_bytes()) => InvalidFile::EncryptedKey,
        Error::NoItemsFound => InvalidFile::NoKey,
        other => InvalidFile::Pem(other),
    })
}

/// Encodes `chain` as PEM (RFC 7468).
pub fn encode_certificates(chain: &[CertificateDer<'_>]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    chain.iter().map(|certificate| pem::encode_config(&Pem::new("CERTIFICATE", certificate.as_ref()), config)).collect()
}

/// Text without byte order marks. A copy is wiped from memory when it is dropped, since it may be a
/// key.
enum Text<'a> {
    Borrowed(&'a [u8]),
    Copied(Zeroizing<Vec<u8>>),
}

impl Text<'_> {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Borrowed(text) => text,
            Self::Copied(text) => text,
        }
    }
}

/// Removes byte order marks, also those inside a file that was joined from several files.
fn without_bom(pem: &[u8]) -> Text<'_> {
    if !contains_bytes(pem, BOM) {
        return Text::Borrowed(pem);
    }
    let mut text = Zeroizing::new(Vec::with_capacity(pem.len()));
    let mut rest = pem;
    while let Some((byte, after)) = rest.split_first() {
        match rest.strip_prefix(BOM) {
            Some(after) => rest = after,
            None => {
                text.push(*byte);
                rest = after;
            }
        }
    }
    Text::Copied(text)
}

/// Returns an error with the apparent format if `pem` is not text.
fn check_encoding(pem: &[u8]) -> Result<(), InvalidFile> {
    match pem {
        [] => Err(InvalidFile::Empty),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err(InvalidFile::Utf16),
        // DER in place of PEM: the tag and length of a SEQUENCE.
        [0x30, 0x80..=0x84, ..] => Err(InvalidFile::Binary),
        _ => Ok(()),
    }
}

/// Returns whether a private key in `pem` is encrypted: PKCS#8 (RFC 5958), or the older format of
/// OpenSSL (RFC 1421).
fn has_encrypted_key(pem: &[u8]) -> bool {
    contains_bytes(pem, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains_bytes(pem, b"Proc-Type: 4,ENCRYPTED")
}

fn contains_bytes(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_sections_are_accepted() {
        let whole = encode_certificates(&[CertificateDer::from(vec![1; 100])]);
        assert!(
            whole.starts_with("-----BEGIN CERTIFICATE-----\n") && whole.ends_with("-----END CERTIFICATE-----\n"),
            "{whole}"
        );
        assert_eq!(certificates(whole.as_bytes()).unwrap(), [CertificateDer::from(vec![1; 100])]);
        assert!(matches!(certificates(b""), Err(InvalidFile::Empty)));
        assert!(matches!(certificates(b"\0\0\0\0"), Err(InvalidFile::NoCertificate)));
        assert!(matches!(private_key(whole.as_bytes()), Err(InvalidFile::NoKey)));
        for cut in 1..whole.len() - 2 {
            assert!(certificates(&whole.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }
}

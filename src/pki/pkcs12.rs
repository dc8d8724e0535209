//! PKCS#12 files (RFC 7292), in which browsers and phones import a user's certificate with its key.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use aws_lc_rs::rand;
use p12_keystore::{
    Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, MacAlgorithm, PrivateKey, PrivateKeyChain,
};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::error::Error;
use crate::fingerprint::Fingerprint;

/// The number of rounds of each of the three key derivations. Windows refuses a file with more than
/// 600 000 in total.
const KDF_ROUNDS: u32 = 100_000;

/// The minimum length of a password, in characters. It must be long, since passwords can be tried
/// on a stolen file.
const MIN_PASSWORD: usize = 12;
/// The maximum length of a password, in characters.
const MAX_PASSWORD: usize = 128;

/// The 32 characters of generated passwords, which are easy to tell apart.
const PASSWORD_ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// The number of groups of five characters in a generated password, which has 125 bits. Groups are
/// easier to type on a phone.
const PASSWORD_GROUPS: usize = 5;

/// How a file is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Triple DES and SHA-1, which every system can import. The file is as safe as its password.
    TripleDes,
    /// AES-256 and SHA-256, for systems that refuse Triple DES.
    Aes256,
}

impl Encryption {
    fn algorithms(self) -> (EncryptionAlgorithm, MacAlgorithm) {
        match self {
            Self::TripleDes => (EncryptionAlgorithm::PbeWithShaAnd3KeyTripleDesCbc, MacAlgorithm::HmacSha1),
            Self::Aes256 => (EncryptionAlgorithm::PbeWithHmacSha256AndAes256, MacAlgorithm::HmacSha256),
        }
    }
}

/// Returns a random password: five groups of five characters.
///
/// # Errors
/// The system has no random bytes.
pub fn generate_password() -> Result<Zeroizing<String>, Error> {
    let mut bytes = Zeroizing::new([0; PASSWORD_GROUPS * 5]);
    rand::fill(bytes.as_mut_slice()).map_err(|_| Error::Random)?;
    let mut password = Zeroizing::new(String::with_capacity(PASSWORD_GROUPS * 6));
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 && index % 5 == 0 {
            password.push('-');
        }
        password.push(char::from(PASSWORD_ALPHABET[usize::from(byte % 32)]));
    }
    Ok(password)
}

/// Reads a password from a file or pipe. Line breaks at the end are removed.
///
/// # Errors
/// The file can't be read, or its content is not one line of 12 to 128 characters.
pub fn read_password(path: &Path) -> Result<Zeroizing<String>, Error> {
    let mut content = Zeroizing::new(String::with_capacity(1024));
    let file = File::open(path).map_err(Error::io("read", path))?;
    file.take(1024).read_to_string(&mut content).map_err(Error::io("read", path))?;
    let password = content.trim_end_matches(['\r', '\n']);
    let characters = password.chars().count();
    // PKCS#12 encodes passwords in UTF-16 without surrogates.
    let is_valid = |c: char| !c.is_control() && u32::from(c) <= 0xffff;
    if (MIN_PASSWORD..=MAX_PASSWORD).contains(&characters) && password.chars().all(is_valid) {
        Ok(Zeroizing::new(password.to_owned()))
    } else {
        Err(Error::Password { path: path.to_owned() })
    }
}

/// Encodes `chain` (leaf first) and the leaf's key as a PKCS#12 file. Importers show `name`.
pub(super) fn encode(
    chain: &[CertificateDer<'_>],
    key: &KeyPair,
    name: &str,
    password: &str,
    encryption: Encryption,
) -> Result<Vec<u8>, Error> {
    let encoded = || {
        let certificates = chain
            .iter()
            .map(|certificate| Certificate::from_der(certificate))
            .collect::<p12_keystore::Result<Vec<_>>>()?;
        let key = PrivateKey::from_der(&Zeroizing::new(key.serialize_der()))?;
        let id = chain.first().map(|leaf| Fingerprint::of(leaf).to_string()).unwrap_or_default();
        let mut store = KeyStore::new();
        store.add_entry(name, KeyStoreEntry::PrivateKeyChain(PrivateKeyChain::new(id, key, certificates)));
        let (encryption, mac) = encryption.algorithms();
        let writer = store.writer(password).encryption_algorithm(encryption).encryption_iterations(KDF_ROUNDS);
        writer.mac_algorithm(mac).mac_iterations(KDF_ROUNDS).write()
    };
    encoded().map_err(|error| Error::Pkcs12(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_passwords_are_long_and_differ() {
        let (one, other) = (generate_password().unwrap(), generate_password().unwrap());
        assert_ne!(one, other);
        assert!(one.split('-').count() == 5 && one.split('-').all(|group| group.len() == 5), "{}", *one);
    }

    #[test]
    fn a_password_file_holds_one_line_of_12_to_128_characters() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("password");
        for (content, expected) in [
            ("correct horse battery\n", Some("correct horse battery")),
            ("größer als zwölf\r\n", Some("größer als zwölf")),
            ("elevenchars\n", None),
            ("", None),
            ("two lines\nof password\n", None),
            ("beyond UTF-16's plane \u{1f980}", None),
            (&"x".repeat(129), None),
        ] {
            std::fs::write(&file, content).unwrap();
            let read = read_password(&file);
            assert_eq!(read.as_ref().ok().map(|password| password.as_str()), expected, "{content}");
            assert!(read.is_ok() || !format!("{:?}", read.unwrap_err()).contains(content) || content.is_empty());
        }
    }

    #[test]
    fn an_encoded_file_is_read_back_with_its_password_only() {
        let key = KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap().der().clone();
        for encryption in [Encryption::TripleDes, Encryption::Aes256] {
            let file =
                encode(std::slice::from_ref(&certificate), &key, "ann@example.com", "a password", encryption).unwrap();
            let read = |password| KeyStore::from_pkcs12(&file, password, p12_keystore::Pkcs12ImportPolicy::Strict);
            let store = read("a password").unwrap();
            let (name, chain) = store.private_key_chain().unwrap();
            assert_eq!((name, chain.key().as_der()), ("ann@example.com", key.serialize_der().as_slice()));
            assert_eq!(chain.certs()[0].as_der(), certificate.as_ref());
            assert!(read("another password").is_err());
        }
    }
}

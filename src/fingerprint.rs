//! The SHA-256 fingerprint of a certificate, in the spellings that clients and people use.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;

/// The SHA-256 digest of a certificate's DER.
///
/// Its text is `AA:BB:..`, which is also the form that `openssl x509 -fingerprint -sha256` prints
/// and that OpenClaw pins.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint of `certificate`.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// The error of a text that is not a SHA-256 fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a SHA-256 fingerprint: expected 64 hexadecimal digits, with or without colons, optionally prefixed with \
     sha256:"
)]
pub struct ParseError;

impl FromStr for Fingerprint {
    type Err = ParseError;

    /// Accepts `AA:BB:..` and bare hexadecimal digits, in either case, optionally prefixed with
    /// `sha256:`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let text = text.trim();
        let hex = match text.split_at_checked(7) {
            Some((prefix, rest)) if prefix.eq_ignore_ascii_case("sha256:") => rest,
            _ => text,
        };
        let digits = match hex.contains(':') {
            true if hex.split(':').all(|pair| pair.len() == 2) => hex.replace(':', ""),
            true => return Err(ParseError),
            false => hex.to_owned(),
        };
        let mut bytes = [0; 32];
        hex::decode_to_slice(&digits, &mut bytes).map_err(|_| ParseError)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = hex::encode_upper(self.0);
        for (i, pair) in digits.as_bytes().chunks(2).enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{}{}", char::from(pair[0]), char::from(pair[1]))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_that_clients_pin_is_the_same_fingerprint() {
        let fingerprint = Fingerprint::of(&CertificateDer::from(b"abc".to_vec()));
        let colons = fingerprint.to_string();
        assert!(colons.starts_with("BA:78:16:BF:"), "{colons}");
        let bare = colons.replace(':', "").to_lowercase();
        for spelling in
            [colons.clone(), colons.to_lowercase(), bare.clone(), format!("sha256:{colons}"), format!("SHA256:{bare}")]
        {
            assert_eq!(spelling.parse(), Ok(fingerprint), "{spelling}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "sha256:", "ab", "zz".repeat(32).as_str(), "a:b".repeat(22).as_str(), "sha1:00", &"0".repeat(63), "é"]
        {
            assert_eq!(text.parse::<Fingerprint>(), Err(ParseError), "{text}");
        }
    }
}

//! The SHA-256 fingerprint of a certificate, in the forms that people and clients write it.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;

/// SHA-256 of a certificate's DER. Prints as `AA:BB:..`, as openssl and browsers do.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of `certificate`.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// What was given is no SHA-256 fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 fingerprint: 64 hexadecimal digits are expected, with or without colons, and perhaps sha256: before them")]
pub struct ParseError;

impl FromStr for Fingerprint {
    type Err = ParseError;

    /// Takes `AA:BB:..`, bare hexadecimal digits in either case, and either with `sha256:` before it.
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
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| ParseError)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| ParseError)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02X}")?;
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
    fn every_form_that_clients_pin_is_the_same_fingerprint() {
        let fingerprint = Fingerprint::of(&CertificateDer::from(b"abc".to_vec()));
        let colons = fingerprint.to_string();
        assert!(colons.starts_with("BA:78:16:BF:"), "{colons}");
        let bare = colons.replace(':', "").to_lowercase();
        for form in [colons.clone(), colons.to_lowercase(), bare.clone(), format!("sha256:{colons}"), format!("SHA256:{bare}")] {
            assert_eq!(form.parse(), Ok(fingerprint), "{form}");
        }
    }

    #[test]
    fn what_is_no_fingerprint_is_refused() {
        for text in ["", "sha256:", "ab", "zz".repeat(32).as_str(), "a:b".repeat(22).as_str(), "sha1:00", &"0".repeat(63), "é"] {
            assert_eq!(text.parse::<Fingerprint>(), Err(ParseError), "{text}");
        }
    }
}

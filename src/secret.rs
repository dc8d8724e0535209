//! Secrets, such as the gateway's token. A secret is wiped from memory when it is dropped, and its
//! debug output hides it.

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// A secret text. Only [`Secret::expose`] and serialization reveal it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// The number of bytes of a secret's file that are read; the rest is ignored.
const MAX_BYTES: u64 = 16 * 1024;

/// The environment variable from which OpenClaw and loopgate read the gateway's token.
pub const GATEWAY_TOKEN_VARIABLE: &str = "OPENCLAW_GATEWAY_TOKEN";

impl Secret {
    /// Takes `secret` as it is.
    pub fn new(secret: impl Into<Zeroizing<String>>) -> Self {
        Self(secret.into())
    }

    /// Reads a file that contains one secret, without the white space around it. Blocks.
    ///
    /// # Errors
    /// If the file can't be read, is empty, is not UTF-8, or contains a control character, which a
    /// header can't carry.
    pub fn read_file(path: &Path) -> io::Result<Self> {
        use std::io::Read;
        let mut text = Zeroizing::new(String::new());
        std::fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
        // Windows editors begin a file with a byte order mark.
        let secret = text.trim_start_matches('\u{feff}').trim();
        if secret.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file holds no secret"));
        }
        if secret.chars().any(char::is_control) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the secret holds a control character"));
        }
        Ok(Self(Zeroizing::new(secret.to_owned())))
    }

    /// Reads the gateway's token from `file`, or else from [`GATEWAY_TOKEN_VARIABLE`]. Returns
    /// `None` if there is no file and the variable is unset or empty. Blocks.
    ///
    /// # Errors
    /// If the file can't be read or contains no secret.
    pub fn read_gateway_token(file: Option<&Path>) -> io::Result<Option<Self>> {
        Self::read_file_or_value(file, std::env::var(GATEWAY_TOKEN_VARIABLE).ok())
    }

    fn read_file_or_value(file: Option<&Path>, value: Option<String>) -> io::Result<Option<Self>> {
        match file {
            Some(file) => Self::read_file(file).map(Some),
            // Compose files have `OPENCLAW_GATEWAY_TOKEN: ${OPENCLAW_GATEWAY_TOKEN:-}`, which sets
            // an empty variable in the container if the host has none.
            None => Ok(value
                .map(Zeroizing::new)
                .filter(|value| !value.trim().is_empty())
                .map(|value| Self::new(value.trim().to_owned()))),
        }
    }

    /// Returns the secret as text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".to_owned())), "[secret]");
    }

    #[test]
    fn the_gateway_token_is_read_from_the_file_or_else_from_the_variable() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "of-the-file\n").unwrap();
        let read = |file, value: Option<&str>| {
            Secret::read_file_or_value(file, value.map(Into::into)).unwrap().map(|s| s.expose().to_owned())
        };
        assert_eq!(read(Some(file.path()), Some("of-the-variable")).as_deref(), Some("of-the-file"));
        assert_eq!(read(None, Some(" of-the-variable\n")).as_deref(), Some("of-the-variable"));
        assert_eq!(read(None, Some("")), None);
        assert_eq!(read(None, None), None);
        assert!(
            Secret::read_file_or_value(Some("/nope".as_ref()), Some("of-the-variable".into())).is_err(),
            "a file that is named must be there"
        );
    }

    #[test]
    fn a_file_is_read_without_its_line_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, secret) in [
            ("my-token\n", Some("my-token")),
            ("my-token", Some("my-token")),
            (" \n", None),
            ("a\nb\n", None),
            ("\u{feff}my-token\r\n", Some("my-token")),
        ] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(
                Secret::read_file(file.path()).ok().map(|s| s.expose().to_owned()).as_deref(),
                secret,
                "{text:?}"
            );
        }
    }
}

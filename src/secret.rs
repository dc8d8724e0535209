//! A secret that is wiped from memory when it is dropped, and can't be printed by accident.

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// A token. Debug output hides it; [`Secret::expose`] is the one way to read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// The most bytes that are read of a secret's file.
const MAX_BYTES: u64 = 16 * 1024;

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<Zeroizing<String>>) -> Self {
        Self(secret.into())
    }

    /// Reads a file that holds one secret, without the white space around it. Blocks.
    ///
    /// # Errors
    /// If the file can't be read, is empty, is not UTF-8, or holds a control character, which a header can't carry.
    pub fn read_file(path: &Path) -> io::Result<Self> {
        use std::io::Read;
        let mut text = Zeroizing::new(String::new());
        std::fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
        let secret = text.trim();
        if secret.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file holds no secret"));
        }
        if secret.chars().any(char::is_control) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the secret holds a control character"));
        }
        Ok(Self(Zeroizing::new(secret.to_owned())))
    }

    /// The secret itself.
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
    fn a_file_is_read_without_its_line_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, secret) in [("my-token\n", Some("my-token")), ("my-token", Some("my-token")), (" \n", None), ("a\nb\n", None)] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(Secret::read_file(file.path()).ok().map(|s| s.expose().to_owned()).as_deref(), secret, "{text:?}");
        }
    }
}

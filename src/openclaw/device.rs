//! Reads and creates device identities (`identity/device.json` in OpenClaw's state directory), in
//! the format of OpenClaw 2026.2.19.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// A device: an ed25519 key, by which the gateway identifies it.
#[derive(Debug)]
pub struct Device {
    key: Ed25519KeyPair,
}

/// Why a device identity can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the file failed.
    #[error("can't read the device identity {path}")]
    Read {
        /// The file of the device identity.
        path: PathBuf,
        /// The error of reading the file.
        source: io::Error,
    },
    /// The file is malformed, or has another version. The parser's message is omitted, since it may
    /// quote the key.
    #[error("{0} is not an OpenClaw device identity (version 1, with privateKeyPem)")]
    Syntax(PathBuf),
    /// `privateKeyPem` is malformed, or is another kind of key.
    #[error("{0} holds no ed25519 private key")]
    Key(PathBuf),
    /// Making a key, the directory or the file failed.
    #[error("can't create the device identity {path}")]
    Create {
        /// The file of the device identity.
        path: PathBuf,
        /// The error of the step that failed.
        source: io::Error,
    },
}

/// The file in which OpenClaw keeps, or will create, its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityLocation {
    /// The file exists.
    Existing(PathBuf),
    /// The file does not exist, but OpenClaw is installed or was used here, and will create it.
    ToCreate(PathBuf),
}

/// Earlier names of the directory `.openclaw`, which OpenClaw still uses if they exist.
const LEGACY_DIRECTORIES: [&str; 3] = [".clawdbot", ".moldbot", ".moltbot"];

impl IdentityLocation {
    /// Finds the file by OpenClaw's rules; `None` if there is no sign of OpenClaw. `variable`
    /// returns the value of an environment variable. Blocks.
    pub fn find(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let home = variable("OPENCLAW_HOME").or_else(|| variable("HOME")).map(PathBuf::from);
        let state_dir =
            match variable("OPENCLAW_STATE_DIR").or_else(|| variable("CLAWDBOT_STATE_DIR")).map(PathBuf::from) {
                Some(path) => match path.strip_prefix("~") {
                    Ok(below_home) => home?.join(below_home),
                    Err(_) => path,
                },
                None => {
                    let home = home?;
                    let current = home.join(".openclaw");
                    let legacy = || LEGACY_DIRECTORIES.iter().map(|name| home.join(name)).find(|path| path.exists());
                    if current.exists() { current } else { legacy().unwrap_or(current) }
                }
            };
        let identity = state_dir.join("identity/device.json");
        let installed =
            || std::env::split_paths(&variable("PATH")?).find(|directory| directory.join("openclaw").exists());
        if identity.exists() {
            Some(Self::Existing(identity))
        } else if state_dir.exists() || installed().is_some() {
            Some(Self::ToCreate(identity))
        } else {
            None
        }
    }
}

/// The file's fields, in OpenClaw's order.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityJson {
    version: u32,
    device_id: String,
    public_key_pem: String,
    private_key_pem: Secret,
    created_at_ms: u64,
}

impl Device {
    /// Reads an identity. The file is never changed. Blocks.
    ///
    /// # Errors
    /// The file can't be read or is not an identity.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let read = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let stored: IdentityJson =
            serde_json::from_slice(&Zeroizing::new(read)).map_err(|_| Error::Syntax(path.to_owned()))?;
        if stored.version != 1 {
            return Err(Error::Syntax(path.to_owned()));
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(stored.private_key_pem.expose().as_bytes());
        let key = der.ok().and_then(|der| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok());
        key.map(|key| Self { key }).ok_or_else(|| Error::Key(path.to_owned()))
    }

    /// Returns a new identity that is not stored in a file.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn generate() -> io::Result<Self> {
        Ed25519KeyPair::generate().map(|key| Self { key }).map_err(|_| io::Error::other("no random bytes"))
    }

    /// Creates the file with a new identity, and its directory, like OpenClaw on its first
    /// connection. If the file exists already, its identity is returned. Blocks.
    ///
    /// # Errors
    /// The file can't be written, or the existing one can't be read.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let create = |source| Error::Create { path: path.to_owned(), source };
        let device = Self::generate().map_err(create)?;
        let text = device.to_json(path)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(create)?;
        let written = tempfile::NamedTempFile::new_in(directory).and_then(|mut file| {
            io::Write::write_all(&mut file, &text)?;
            file.as_file().sync_all()?;
            Ok(file.persist_noclobber(path)?)
        });
        match written {
            Ok(_) => Ok(device),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::read(path),
            Err(error) => Err(create(error)),
        }
    }

    /// Returns the content of the identity's file.
    fn to_json(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
        // Node.js exports the key as PKCS#8 version 1, without the public key (RFC 8410).
        let pkcs8 = self.key.to_pkcs8v1().map_err(|_| Error::Key(path.to_owned()))?;
        let public = AsDer::as_der(self.key.public_key()).map_err(|_| Error::Key(path.to_owned()))?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let stored = IdentityJson {
            version: 1,
            device_id: self.id(),
            public_key_pem: encode_pem("PUBLIC KEY", public.as_ref()),
            private_key_pem: Secret::new(encode_pem("PRIVATE KEY", pkcs8.as_ref())),
            created_at_ms: u64::try_from(now.as_millis()).unwrap_or_default(),
        };
        let mut text = Zeroizing::new(serde_json::to_vec_pretty(&stored).map_err(|_| Error::Syntax(path.to_owned()))?);
        text.push(b'\n');
        Ok(text)
    }

    /// Returns the device id: SHA-256 of the raw public key, in hexadecimal digits.
    pub fn id(&self) -> String {
        key_id(self.key.public_key().as_ref())
    }

    /// Returns the raw public key in base64url.
    pub fn public_key(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.key.public_key())
    }

    /// Returns the signature of `text` in base64url.
    pub fn sign(&self, text: &str) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.key.sign(text.as_bytes()))
    }
}

/// Returns the device id that the gateway derives from `key`, an ed25519 public key in base64url or
/// PEM; `None` if it is no such key.
pub(super) fn public_key_id(key: &str) -> Option<String> {
    if key.contains("BEGIN") {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(key.as_bytes()).ok()?;
        // The DER form is a prefix of 12 bytes, followed by the key (RFC 8410).
        return der.as_ref().get(12..).filter(|raw| raw.len() == 32).map(key_id);
    }
    let plain: String = key.trim_end_matches('=').replace('+', "-").replace('/', "_");
    let raw = BASE64_URL_SAFE_NO_PAD.decode(plain).ok()?;
    (raw.len() == 32).then(|| key_id(&raw))
}

fn key_id(raw: &[u8]) -> String {
    digest(&SHA256, raw).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Encodes an ed25519 key in PEM. It fits in one line of base64.
fn encode_pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An identity that `loadOrCreateDeviceIdentity` of OpenClaw 2026.2.19 wrote.
    const BY_OPENCLAW: &str = include_str!("../../tests/data/device.json");

    #[test]
    fn an_identity_that_openclaw_wrote_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), BY_OPENCLAW).unwrap();
        let device = Device::read(file.path()).unwrap();
        let json: serde_json::Value = serde_json::from_str(BY_OPENCLAW).unwrap();
        assert_eq!(device.id(), json["deviceId"]);
        let pem = json["publicKeyPem"].as_str().unwrap();
        assert_eq!(public_key_id(pem), Some(device.id()));
        assert_eq!(public_key_id(&device.public_key()), Some(device.id()));
        assert_eq!(public_key_id(&format!("{}x", device.public_key())), None);
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), BY_OPENCLAW);
    }

    #[test]
    fn a_new_identity_looks_like_openclaws_and_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity/device.json");
        let created = Device::create(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(Device::read(&path).unwrap().id(), created.id());
        assert_eq!(Device::create(&path).unwrap().id(), created.id());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let lines =
            |text: &str| text.lines().map(|line| line.split(':').next().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(lines(&text), lines(BY_OPENCLAW));
        let lengths = |text: &str| {
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            ["deviceId", "publicKeyPem", "privateKeyPem"].map(|field| json[field].as_str().unwrap().len())
        };
        assert_eq!(lengths(&text), lengths(BY_OPENCLAW));
    }

    #[test]
    fn the_identity_is_looked_for_where_openclaw_keeps_it() {
        let root = tempfile::tempdir().unwrap();
        let path = |path: &str| root.path().join(path);
        let find = |variables: &[(&str, &str)]| {
            IdentityLocation::find(|name| {
                let value = variables.iter().find(|(known, _)| *known == name)?.1;
                Some(if value.starts_with('~') { value.into() } else { path(value).into() })
            })
        };
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[("HOME", "home"), ("PATH", "bin")]), None);
        std::fs::create_dir_all(path("bin")).unwrap();
        std::fs::write(path("bin/openclaw"), "").unwrap();
        let new = path("home/.openclaw/identity/device.json");
        assert_eq!(find(&[("HOME", "home"), ("PATH", "bin")]), Some(IdentityLocation::ToCreate(new.clone())));
        std::fs::create_dir_all(path("home/.moltbot")).unwrap();
        let legacy = path("home/.moltbot/identity/device.json");
        assert_eq!(find(&[("HOME", "home")]), Some(IdentityLocation::ToCreate(legacy)));
        Device::create(&new).unwrap();
        assert_eq!(find(&[("HOME", "home")]), Some(IdentityLocation::Existing(new.clone())));
        assert_eq!(
            find(&[("HOME", "elsewhere"), ("OPENCLAW_HOME", "home")]),
            Some(IdentityLocation::Existing(new.clone()))
        );
        assert_eq!(
            find(&[("HOME", "home"), ("OPENCLAW_STATE_DIR", "~/.openclaw")]),
            Some(IdentityLocation::Existing(new))
        );
        assert_eq!(find(&[("OPENCLAW_STATE_DIR", "nowhere")]), None);
    }

    #[test]
    fn a_file_that_is_no_identity_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in [
            "",
            "{}",
            &BY_OPENCLAW.replace("\"version\": 1", "\"version\": 2"),
            &BY_OPENCLAW.replace("BEGIN PRIVATE", "BEGIN"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = Device::read(file.path()).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("MC4C"), "{error:?}");
        }
    }
}

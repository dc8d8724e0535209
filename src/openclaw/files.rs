//! Reads the gateway's files: its configuration, its token and its state directory. All functions
//! block.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::Gateway;
use crate::secret::Secret;

/// Why the gateway's configuration file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the file failed, or it is not UTF-8.
    #[error("can't read {path}")]
    Read {
        /// The path of `openclaw.json`.
        path: PathBuf,
        /// The error of reading it.
        source: io::Error,
    },
    /// Parsing the file failed.
    #[error("{path} is not JSON5")]
    Parse {
        /// The path of `openclaw.json`.
        path: PathBuf,
        /// The parser's error, with the position.
        source: json5::Error,
    },
}

/// Returns the database in which a newer gateway (2026.9) keeps the device identity; `None` if the
/// state directory of `identity` (`STATE/identity/device.json`) has no database. A newer gateway
/// does not start if the identities in the file and in the database differ.
pub fn newer_database(identity: &Path) -> Option<PathBuf> {
    let database = identity.parent()?.parent()?.join("state/openclaw.sqlite");
    database.exists().then_some(database)
}

/// Reads `openclaw.json`, which is JSON5.
///
/// # Errors
/// The file can't be read or is not JSON5.
pub fn read_config(path: &Path) -> Result<Value, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    json5::from_str(&text).map_err(|source| Error::Parse { path: path.into(), source })
}

/// Returns `gateway.auth.token` of the gateway's configuration; `None` if it is missing or refers
/// to a variable.
pub fn configured_token(config: &Value) -> Option<Secret> {
    let token = config["gateway"]["auth"]["token"].as_str()?.trim();
    (!token.is_empty() && !token.contains("${")).then(|| Secret::new(token.to_owned()))
}

/// A configured file or directory of the gateway that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableFile {
    /// The configuration key.
    pub key: &'static str,
    /// The configured path.
    pub path: PathBuf,
    /// The error of reading it.
    pub error: String,
}

/// Returns those of the configured token file and state directory that can't be read.
pub fn find_unreadable_files(gateway: &Gateway) -> Vec<UnreadableFile> {
    let token = |path: &PathBuf| Secret::read_file(path).err().map(|error| ("gateway.token_file", path.clone(), error));
    let state = |path: &PathBuf| std::fs::read_dir(path).err().map(|error| ("gateway.state_dir", path.clone(), error));
    let unreadable = [gateway.token_file.as_ref().and_then(token), gateway.state_dir.as_ref().and_then(state)];
    unreadable
        .into_iter()
        .flatten()
        .map(|(key, path, error)| UnreadableFile { key, path, error: error.to_string() })
        .collect()
}

/// Returns the scopes for which the gateway has paired its own device, from the state directory
/// `directory`; `None` if the files are missing, or the device is not paired.
pub fn gateway_device_scopes(directory: &Path) -> Option<Vec<String>> {
    let read =
        |name: &str| -> Option<Value> { serde_json::from_slice(&std::fs::read(directory.join(name)).ok()?).ok() };
    let device = read("identity/device.json")?;
    let paired = read("devices/paired.json")?;
    let scopes = paired.get(device["deviceId"].as_str()?)?["scopes"].as_array()?;
    Some(scopes.iter().filter_map(Value::as_str).map(Into::into).collect())
}

/// A device's request that needs an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRequest {
    /// The request's id.
    pub id: String,
    /// The requested scopes.
    pub scopes: Vec<String>,
}

/// Returns whether `directory` is the state directory of a gateway (2026.2) that has paired
/// devices, or was asked to.
pub fn is_state_dir_of_gateway(directory: &Path) -> bool {
    directory.join("devices").is_dir()
}

/// Returns the pending request of the gateway's own device, from the state directory `directory`
/// (2026.2).
pub fn read_pending_request(directory: &Path) -> Option<PendingRequest> {
    let read =
        |name: &str| -> Option<Value> { serde_json::from_slice(&std::fs::read(directory.join(name)).ok()?).ok() };
    let device = read("identity/device.json")?;
    let pending = read("devices/pending.json")?;
    let request = pending.as_object()?.values().find(|request| request["deviceId"] == device["deviceId"])?;
    let scopes = request["scopes"].as_array().into_iter().flatten();
    Some(PendingRequest {
        id: request["requestId"].as_str()?.to_owned(),
        scopes: scopes.filter_map(Value::as_str).map(Into::into).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_token_that_refers_to_a_variable_is_not_read() {
        for (config, expected) in [
            (r#"{gateway: {auth: {token: " a-token "}}}"#, Some("a-token")),
            (r#"{gateway: {auth: {token: "${OPENCLAW_GATEWAY_TOKEN}"}}}"#, None),
            (r#"{gateway: {auth: {token: {source: "env"}}}}"#, None),
            (r#"{gateway: {auth: {token: ""}}}"#, None),
            ("{}", None),
        ] {
            let config: Value = json5::from_str(config).unwrap();
            assert_eq!(super::configured_token(&config).as_ref().map(Secret::expose), expected, "{config}");
        }
    }

    #[test]
    fn a_file_that_is_not_json5_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("openclaw.json");
        assert!(matches!(read_config(&path), Err(Error::Read { .. })));
        std::fs::write(&path, "gateway:").unwrap();
        assert!(matches!(read_config(&path), Err(Error::Parse { .. })));
    }

    #[test]
    fn configured_files_must_be_readable() {
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, "secret\n").unwrap();
        let table: [(Option<PathBuf>, Option<PathBuf>, &[&str]); 4] = [
            (None, None, &[]),
            (Some(token.clone()), Some(directory.path().to_owned()), &[]),
            (Some("/nope".into()), Some("/nope".into()), &["gateway.token_file", "gateway.state_dir"]),
            (Some(directory.path().to_owned()), Some(token), &["gateway.token_file", "gateway.state_dir"]),
        ];
        for (token_file, state_dir, expected) in table {
            let gateway = Gateway { token_file, state_dir, ..Config::default().gateway };
            let keys: Vec<_> = find_unreadable_files(&gateway).iter().map(|unreadable| unreadable.key).collect();
            assert_eq!(keys, expected, "{gateway:?}");
        }
    }

    #[test]
    fn the_scopes_of_the_gateways_own_device_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(gateway_device_scopes(dir.path()), None);
        for (name, text) in [
            ("identity/device.json", r#"{"deviceId": "a"}"#),
            ("devices/paired.json", r#"{"b": {"scopes": ["operator.admin"]}, "a": {"scopes": ["operator.read"]}}"#),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        assert_eq!(gateway_device_scopes(dir.path()), Some(vec!["operator.read".to_owned()]));
    }
}

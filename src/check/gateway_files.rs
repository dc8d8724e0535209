//! What is named of the gateway's own, and can't be used.

use std::path::PathBuf;

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::config::Gateway;
use crate::secret::Secret;

/// A file or directory that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// The key that names it.
    pub key: &'static str,
    /// Where it should be.
    pub path: PathBuf,
    /// Why not.
    pub error: String,
}

/// Looks at the token's file and the state directory. Blocks.
pub fn look(gateway: &Gateway) -> Vec<Unusable> {
    let token = |path: &PathBuf| Secret::read_file(path).err().map(|error| ("gateway.token_file", path.clone(), error));
    let state = |path: &PathBuf| std::fs::read_dir(path).err().map(|error| ("gateway.state_dir", path.clone(), error));
    let unusable = [gateway.token_file.as_ref().and_then(token), gateway.state_dir.as_ref().and_then(state)];
    unusable.into_iter().flatten().map(|(key, path, error)| Unusable { key, path, error: error.to_string() }).collect()
}

/// Judges it.
pub fn judge(unusable: &[Unusable], report: &mut Report) {
    for Unusable { key, path, error } in unusable {
        let remedy = Remedy::words(format!("mount it, readable for this user, or give {key} another path"));
        report.find(&kind::GATEWAY_FILES, format!("{key} {}: {error}", path.display()), remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_named_must_be_there() {
        let there = tempfile::tempdir().unwrap();
        let token = there.path().join("token");
        std::fs::write(&token, "secret\n").unwrap();
        let table: [(Option<PathBuf>, Option<PathBuf>, &[&str]); 4] = [
            (None, None, &[]),
            (Some(token.clone()), Some(there.path().to_owned()), &[]),
            (Some("/nope".into()), Some("/nope".into()), &["gateway.token_file", "gateway.state_dir"]),
            (Some(there.path().to_owned()), Some(token), &["gateway.token_file", "gateway.state_dir"]),
        ];
        for (token_file, state_dir, expected) in table {
            let gateway = Gateway { token_file, state_dir, ..Config::default().gateway };
            let unusable = look(&gateway);
            assert_eq!(unusable.iter().map(|unusable| unusable.key).collect::<Vec<_>>(), expected, "{gateway:?}");
            let mut report = Report::default();
            judge(&unusable, &mut report);
            assert_eq!(report.ids(), vec!["gateway-files"; expected.len()]);
        }
    }
}

//! Findings about the permissions of the state directory.

use std::path::{Path, PathBuf};

use super::catalogue as kind;
use super::finding::{Remedy, Report};

/// The state directory and its permissions.
#[derive(Clone, Debug)]
pub struct StateDirFacts {
    /// The path of the directory.
    pub path: PathBuf,
    /// The mode bits of the directory; `None` if it does not exist.
    pub mode: Option<u32>,
    /// Whether this user may write to the directory, or create it.
    pub writable: bool,
    /// The key files in the directory, with their mode bits.
    pub keys: Vec<(PathBuf, u32)>,
}

/// Adds the findings about the state directory.
pub fn judge(directory: &StateDirFacts, report: &mut Report) {
    let path = directory.path.display();
    if !directory.writable {
        let user = nix::unistd::geteuid();
        let remedy = format!(
            "run check as the sidecar's user; or give {path} to the user that runs the sidecar (chown -R {user}, where \
             that is this one; 65532 in loopgate's image), or mount a volume that it may write to"
        );
        report.add_finding(
            &kind::STATE_OWNER,
            format!("{path} can't be written to by the user {user}"),
            Remedy::in_words(remedy),
        );
    }
    let Some(mode) = directory.mode else {
        let remedy = Remedy::in_words(
            "run the sidecar, which creates it; keep it on a volume, or clients have to trust a new authority each \
             time",
        );
        return report.add_finding(&kind::STATE_MISSING, format!("{path} does not exist"), remedy);
    };
    let mut is_private = true;
    if mode & 0o022 != 0 {
        is_private = false;
        report.add_finding(
            &kind::STATE_MODE,
            format!("{path} has mode {mode:04o}"),
            Remedy::in_words(format!("chmod 700 {path}")),
        );
    }
    for (key, mode) in directory.keys.iter().filter(|(_, mode)| mode & 0o077 != 0) {
        is_private = false;
        let key = key.display();
        report.add_finding(
            &kind::STATE_MODE,
            format!("{key} has mode {mode:04o}"),
            Remedy::in_words(format!("chmod 600 {key}")),
        );
    }
    if is_private && !directory.keys.is_empty() {
        report.add_passed("state directory", "keys are for their owner alone");
    }
}

/// Reads the modes of `path` and of the `.key` files in it.
pub fn inspect(path: &Path) -> StateDirFacts {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.permissions().mode() & 0o7777);
    let is_key = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "key");
    let files = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let keys = files.filter(is_key).filter_map(|key| mode(&key).map(|mode| (key, mode))).collect();
    // A missing directory can be created if its nearest existing ancestor is writable.
    let nearest = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let writable = nix::unistd::access(nearest, nix::unistd::AccessFlags::W_OK).is_ok();
    StateDirFacts { path: path.into(), mode: mode(path), writable, keys }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_found() {
        let well = || StateDirFacts {
            path: "/state".into(),
            mode: Some(0o700),
            writable: true,
            keys: vec![("/state/ca.key".into(), 0o600)],
        };
        let table: [(StateDirFacts, &[&str]); 6] = [
            (well(), &[]),
            (StateDirFacts { mode: Some(0o755), ..well() }, &[]),
            (StateDirFacts { mode: Some(0o770), ..well() }, &["state-dir-permissions"]),
            (StateDirFacts { keys: vec![("/state/ca.key".into(), 0o640)], ..well() }, &["state-dir-permissions"]),
            (StateDirFacts { mode: None, ..well() }, &["state-dir-missing"]),
            (StateDirFacts { writable: false, ..well() }, &["state-dir-owner"]),
        ];
        for (directory, expected) in table {
            let mut report = Report::default();
            judge(&directory, &mut report);
            assert_eq!(report.ids(), expected, "{directory:?}");
        }
    }

    #[test]
    fn the_printed_remedy_makes_the_finding_vanish() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("ca.key");
        std::fs::write(&key, "").unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let judged = || {
            let mut report = Report::default();
            judge(&inspect(dir.path()), &mut report);
            report
        };
        let before = judged();
        assert_eq!(before.ids(), ["state-dir-permissions", "state-dir-permissions"]);
        for finding in before.findings {
            let remedy = finding.remedy.to_string();
            assert!(std::process::Command::new("sh").args(["-c", &remedy]).status().unwrap().success(), "{remedy}");
        }
        assert_eq!(judged().findings, []);
    }
}

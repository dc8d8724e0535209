//! Watches the configuration file for changes, by polling.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

/// The time between two checks of the file.
const INTERVAL: Duration = Duration::from_secs(2);

/// What identifies the version of a file: device, inode, length and time of modification. If a
/// symbolic link is pointed at another file, as Kubernetes does with a ConfigMap, the inode
/// differs.
type Version = (u64, u64, u64, Option<SystemTime>);

/// The configuration file, if there is one.
pub(super) struct ConfigFile {
    path: Option<PathBuf>,
    /// The version that was read last.
    last_read: Option<Version>,
    /// The version at the last check. A new version counts only if two checks in a row find it, so
    /// that a file is not read while it is being written.
    last_seen: Option<Version>,
}

impl ConfigFile {
    /// Creates a watcher of the file at `path`, which has just been read.
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let mut file = Self { path, last_read: None, last_seen: None };
        file.mark_read();
        file
    }

    /// Notes that the present version of the file is being read.
    pub(super) fn mark_read(&mut self) {
        self.last_read = self.read_version();
    }

    /// Resolves when the file has another version than at the last [`ConfigFile::mark_read`], and
    /// had it at two checks in a row. A file that is missing, or is a pipe, does not count as
    /// changed. Never resolves without a file.
    pub(super) async fn changed(&mut self) {
        if self.path.is_none() {
            return std::future::pending().await;
        }
        loop {
            sleep(INTERVAL).await;
            if self.check_for_change() {
                return;
            }
        }
    }

    /// Checks the file once, and returns whether it has changed since it was read.
    fn check_for_change(&mut self) -> bool {
        let now = self.read_version();
        let settled = now.is_some() && now == self.last_seen;
        self.last_seen = now;
        settled && now != self.last_read
    }

    /// Returns the file's version; `None` if there is no regular file.
    fn read_version(&self) -> Option<Version> {
        let metadata = std::fs::metadata(self.path.as_deref()?).ok().filter(std::fs::Metadata::is_file)?;
        Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.modified().ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_changed_once_two_checks_agree() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, "one").unwrap();
        let mut file = ConfigFile::new(Some(path.clone()));
        assert!(!file.check_for_change() && !file.check_for_change());
        std::fs::write(&path, "three").unwrap();
        assert!(!file.check_for_change(), "the file may be half written");
        std::fs::write(&path, "fifteen").unwrap();
        assert!(!file.check_for_change(), "the file has changed since the last check");
        assert!(file.check_for_change());
        file.mark_read();
        assert!(!file.check_for_change());
        std::fs::remove_file(&path).unwrap();
        assert!(!file.check_for_change() && !file.check_for_change(), "a missing file has not changed");
        std::fs::write(&path, "anew").unwrap();
        assert!(!file.check_for_change() && file.check_for_change());
        assert!(!ConfigFile::new(None).check_for_change());
    }
}

//! The state directory: whole files or none, one writer at a time, nothing overwritten that loopgate didn't understand.
//!
//! A write goes to a temporary file beside its target, is synced, and takes the target's name in one step, so that `kill -9` or a power
//! cut leaves the old file or the new one. A lock file serialises writers; where locks are not to be had (a read-only or network
//! file system) what is written once is still never replaced, since it takes its name by `RENAME_NOREPLACE` or `link`.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use super::error::{Error, Flaw};

/// No chain or key is near this; anything larger is not read into memory.
const MAX_FILE: u64 = 1 << 20;

/// How long to wait for another process, which holds the lock for milliseconds unless it is stopped.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(10);

const LOCK_FILE: &str = ".lock";
const TEMPORARY: &str = ".new-";

/// Who may read a file of the state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Its owner alone (0600).
    Secret,
    /// Everyone (0644, less the umask).
    Public,
}

/// A directory for certificates and keys.
#[derive(Clone, Debug)]
pub(super) struct StateDir {
    path: PathBuf,
}

/// While it lives, no other process writes; it locks nothing if the file system has no locks.
#[derive(Debug)]
pub(super) struct Lock(Option<File>);

impl StateDir {
    /// `path` as it is, there or not.
    pub(super) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// `path`, made with mode 0700 if it is missing.
    pub(super) fn create(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = Self::at(path);
        if !dir.path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir.path).map_err(Error::io("create", &dir.path))?;
        }
        Ok(dir)
    }

    /// Says in the log who else could put other keys into it.
    pub(super) fn warn_of_others(&self) {
        let Ok(metadata) = self.path.metadata() else { return };
        let us = nix::unistd::geteuid().as_raw();
        if let Some(why) = others(metadata.mode(), metadata.uid(), us) {
            tracing::warn!(path = %self.path.display(), "{why}, and so could replace the keys in it: make it its user's alone (chown, chmod 700)");
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where `name` is.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Waits until no other process writes, [`LOCK_WAIT`] at most.
    pub(super) fn lock(&self) -> Result<Lock, Error> {
        let path = self.file(LOCK_FILE);
        // Whoever may only read the directory (or has no space left) can still use what is there, and flock(2) needs no write access.
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path).or_else(|_| File::open(&path));
        let Ok(file) = opened else { return Ok(Lock(None)) };
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(Some(file))),
                Err(TryLockError::Error(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, path = %path.display(), "no locks on this file system");
                    return Ok(Lock(None));
                }
                Err(TryLockError::WouldBlock) if start.elapsed() > LOCK_WAIT => return Err(Error::Locked { path }),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
            }
        }
    }

    /// Removes what killed writers left behind. The lock proves that no writer is at work.
    pub(super) fn sweep(&self, lock: &Lock) {
        if lock.0.is_none() {
            return;
        }
        let Ok(entries) = self.path.read_dir() else { return };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// The content of `name`; `None` if there is no such file.
    pub(super) fn read(&self, name: &str, access: Access) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let path = self.file(name);
        match read_file(&path) {
            Ok((content, mode)) => {
                if access == Access::Secret {
                    check_mode(&path, mode)?;
                }
                Ok(Some(content))
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes `name` unless there is such a file; says whether it did.
    pub(super) fn write_new(&self, name: &str, content: &[u8], access: Access) -> Result<bool, Error> {
        let path = self.file(name);
        match self.temporary(name, content, access)?.persist_noclobber(&path) {
            Ok(_) => self.sync().map(|()| true),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::io("create", path)(error.error)),
        }
    }

    /// Writes `name` in place of what had that name.
    pub(super) fn replace(&self, name: &str, content: &[u8], access: Access) -> Result<(), Error> {
        let path = self.file(name);
        self.temporary(name, content, access)?.persist(&path).map_err(|error| Error::io("replace", path)(error.error))?;
        self.sync()
    }

    /// Gives `from` the name `to`.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        std::fs::rename(self.file(from), self.file(to)).map_err(Error::io("replace", self.file(to)))?;
        self.sync()
    }

    fn temporary(&self, name: &str, content: &[u8], access: Access) -> Result<NamedTempFile, Error> {
        let mode = match access {
            Access::Secret => 0o600,
            Access::Public => 0o644,
        };
        let write = || {
            let mut file = tempfile::Builder::new()
                .prefix(TEMPORARY)
                .suffix(&format!("-{name}"))
                .permissions(std::fs::Permissions::from_mode(mode))
                .tempfile_in(&self.path)?;
            file.write_all(content)?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        write().map_err(Error::io("write", self.file(name)))
    }

    /// Makes the names of files durable, not only their content.
    fn sync(&self) -> Result<(), Error> {
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", &self.path))
    }
}

/// The content of a regular file of at most [`MAX_FILE`] bytes, and its permission bits.
pub(super) fn read_file(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), Error> {
    // Asked before opening, since opening a pipe would wait for a writer.
    let about = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if !about.is_file() {
        return Err(Error::unusable(path)(Flaw::NotAFile));
    }
    // Room for all of it at once: a buffer that grows leaves copies of a key behind.
    let mut content = Zeroizing::new(Vec::with_capacity(about.len().min(MAX_FILE) as usize + 1));
    let file = File::open(path).map_err(Error::io("read", path))?;
    file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(Error::io("read", path))?;
    if content.len() as u64 > MAX_FILE {
        return Err(Error::unusable(path)(Flaw::TooLarge(MAX_FILE)));
    }
    Ok((content, about.permissions().mode() & 0o7777))
}

/// Who besides `us` and root may write to a directory of `owner` with this mode. That its group may is how Kubernetes hands out volumes.
fn others(mode: u32, owner: u32, us: u32) -> Option<String> {
    if mode & 0o002 != 0 {
        Some(format!("everybody may write to the state directory (mode {:04o})", mode & 0o7777))
    } else if owner != us && owner != 0 {
        Some(format!("user {owner} owns the state directory"))
    } else {
        None
    }
}

/// Refuses a key that is open to everyone. One that is open to its group is only worth a warning: the kubelet makes every file of a
/// volume group-readable and -writable when the pod has an `fsGroup`, at each mount.
fn check_mode(path: &Path, mode: u32) -> Result<(), Error> {
    if mode & 0o007 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    if mode & 0o070 != 0 {
        tracing::debug!(path = %path.display(), mode = format_args!("{mode:04o}"), "private key is open to its group");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, StateDir) {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::create(home.path().join("state")).unwrap();
        (home, dir)
    }

    #[test]
    fn the_directory_and_the_secrets_in_it_are_its_owners_alone() {
        let (_home, dir) = dir();
        dir.write_new("a.key", b"secret", Access::Secret).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path), 0o700);
        assert_eq!(mode(&dir.file("a.key")), 0o600);
    }

    #[test]
    fn whoever_else_could_replace_the_keys_is_named() {
        for (mode, owner, said) in [
            (0o040_700, 1000, None),
            (0o700, 0, None),
            (0o2770, 1000, None),
            (0o755, 1000, None),
            (0o040_777, 1000, Some("(mode 0777)")),
            (0o1777, 0, Some("(mode 1777)")),
            (0o700, 1001, Some("user 1001 owns")),
        ] {
            let found = others(mode, owner, 1000);
            assert_eq!(found.is_some(), said.is_some(), "{mode:o} {owner}: {found:?}");
            assert!(found.unwrap_or_default().contains(said.unwrap_or_default()));
        }
    }

    #[test]
    fn what_is_there_is_never_written_anew() {
        let (_home, dir) = dir();
        assert!(dir.write_new("a", b"first", Access::Public).unwrap());
        assert!(!dir.write_new("a", b"second", Access::Public).unwrap());
        assert_eq!(dir.read("a", Access::Public).unwrap().unwrap().as_slice(), b"first");
    }

    #[test]
    fn leftovers_of_a_killed_writer_are_swept_under_the_lock_only() {
        let (_home, dir) = dir();
        std::fs::write(dir.file(".new-x-ca.key"), b"half").unwrap();
        dir.sweep(&Lock(None));
        assert!(dir.file(".new-x-ca.key").exists());
        dir.sweep(&dir.lock().unwrap());
        assert!(!dir.file(".new-x-ca.key").exists());
    }

    #[test]
    fn what_is_no_file_of_sensible_size_is_refused_by_name() {
        let (_home, dir) = dir();
        std::fs::create_dir(dir.file("directory")).unwrap();
        nix::unistd::mkfifo(&dir.file("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        File::create(dir.file("huge")).unwrap().set_len(MAX_FILE + 1).unwrap();
        for name in ["directory", "pipe", "huge"] {
            let error = dir.read(name, Access::Public).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(dir.read("nothing", Access::Public).unwrap().is_none());
    }

    #[test]
    fn keys_open_to_everyone_are_refused_and_keys_open_to_a_group_are_not() {
        for (mode, fine) in [(0o600, true), (0o400, true), (0o660, true), (0o640, true), (0o644, false), (0o604, false), (0o602, false)] {
            assert_eq!(check_mode(Path::new("ca.key"), mode).is_ok(), fine, "{mode:o}");
        }
    }
}

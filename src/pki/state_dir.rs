//! The state directory: atomic writes by one writer at a time.
//!
//! A write goes to a temporary file in the same directory, which is synced and then renamed to its
//! target. So `kill -9` or a power failure leaves the old file or the new one. A lock file
//! serialises writers. On file systems without locks (read-only ones, some network file systems) a
//! file that must be created once is still never replaced, since `RENAME_NOREPLACE` or `link` gives
//! it its name.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::error_chain::error_chain;

use super::error::{Error, InvalidFile};

/// The maximum size of a file, in bytes, far larger than any chain or key.
const MAX_FILE: u64 = 1 << 20;

/// The maximum wait for the lock. Other processes hold it for milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(10);

const LOCK_FILE: &str = ".lock";
const TEMPORARY_PREFIX: &str = ".new-";

/// The users that may read a file of the state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Only the owner (mode 0600).
    Secret,
    /// All users (mode 0644, reduced by the umask).
    Public,
}

/// A directory for certificates and keys.
#[derive(Clone, Debug)]
pub(super) struct StateDir {
    path: PathBuf,
}

/// The lock against other writers, held until this value is dropped. `None` if the lock file can't
/// be opened, or the file system has no locks.
#[derive(Debug)]
pub(super) struct DirLock(Option<File>);

impl StateDir {
    /// Returns the directory at `path`, which need not exist.
    pub(super) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns the directory at `path`, and creates it with mode 0700 if it is missing.
    pub(super) fn create(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = Self::at(path);
        if !dir.path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir.path).map_err(Error::io("create", &dir.path))?;
        }
        Ok(dir)
    }

    /// Warns if other users could replace the keys in the directory.
    pub(super) fn warn_if_writable_by_others(&self) {
        let Ok(metadata) = self.path.metadata() else { return };
        let us = nix::unistd::geteuid().as_raw();
        if let Some(why) = other_writers(metadata.mode(), metadata.uid(), us) {
            tracing::warn!(
                path = %self.path.display(), reason = why,
                "other users can replace the keys in the state directory; make loopgate's user its owner and run \
                 chmod 700"
            );
        }
    }

    /// Returns the directory's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the file `name`.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Acquires the lock, if the file system permits it. Waits for other processes for at most
    /// [`LOCK_WAIT`], and then fails with [`Error::Locked`].
    pub(super) fn lock(&self) -> Result<DirLock, Error> {
        let path = self.path_of(LOCK_FILE);
        // flock(2) needs no write access, so the lock also works in a read-only or full directory.
        let opened =
            OpenOptions::new().write(true).create(true).truncate(false).open(&path).or_else(|_| File::open(&path));
        let Ok(file) = opened else { return Ok(DirLock(None)) };
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(DirLock(Some(file))),
                Err(TryLockError::Error(error)) => {
                    tracing::debug!(
                        error = error_chain(&error), path = %path.display(),
                        "can't lock the state directory; continuing without a lock"
                    );
                    return Ok(DirLock(None));
                }
                Err(TryLockError::WouldBlock) if start.elapsed() > LOCK_WAIT => return Err(Error::Locked { path }),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
            }
        }
    }

    /// Removes the temporary files of killed writers. Does nothing if `lock` holds no lock, since
    /// another writer may then be active.
    pub(super) fn remove_temporary_files(&self, lock: &DirLock) {
        if lock.0.is_none() {
            return;
        }
        let Ok(entries) = self.path.read_dir() else { return };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Returns the content of `name`; `None` if there is no such file. Refuses a secret file that
    /// every user can access.
    pub(super) fn read(&self, name: &str, access: Access) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let path = self.path_of(name);
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

    /// Writes the file `name` unless it exists. Returns whether it was written.
    pub(super) fn write_if_missing(&self, name: &str, content: &[u8], access: Access) -> Result<bool, Error> {
        let path = self.path_of(name);
        match self.write_temporary(name, content, access)?.persist_noclobber(&path) {
            Ok(_) => self.sync_directory().map(|()| true),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::io("create", path)(error.error)),
        }
    }

    /// Writes the file `name`, and replaces an existing one.
    pub(super) fn replace(&self, name: &str, content: &[u8], access: Access) -> Result<(), Error> {
        let path = self.path_of(name);
        self.write_temporary(name, content, access)?
            .persist(&path)
            .map_err(|error| Error::io("replace", path)(error.error))?;
        self.sync_directory()
    }

    /// Renames `from` to `to`.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        std::fs::rename(self.path_of(from), self.path_of(to)).map_err(Error::io("replace", self.path_of(to)))?;
        self.sync_directory()
    }

    /// Writes `content` to a temporary file in the directory, and syncs it to disk. The file is to
    /// be renamed to `name`.
    fn write_temporary(&self, name: &str, content: &[u8], access: Access) -> Result<NamedTempFile, Error> {
        let mode = match access {
            Access::Secret => 0o600,
            Access::Public => 0o644,
        };
        let write = || {
            let mut file = tempfile::Builder::new()
                .prefix(TEMPORARY_PREFIX)
                .suffix(&format!("-{name}"))
                .permissions(std::fs::Permissions::from_mode(mode))
                .tempfile_in(&self.path)?;
            file.write_all(content)?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        write().map_err(Error::io("write", self.path_of(name)))
    }

    /// Syncs the directory, so that the names of files are durable too.
    fn sync_directory(&self) -> Result<(), Error> {
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", &self.path))
    }
}

/// Reads a regular file of at most [`MAX_FILE`] bytes; returns its content and permission bits.
pub(super) fn read_file(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), Error> {
    // Checked before the file is opened, since opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        return Err(Error::unusable(path)(InvalidFile::NotAFile));
    }
    // The full capacity is reserved at once: a buffer that grows leaves copies of a key in memory.
    let mut content = Zeroizing::new(Vec::with_capacity(metadata.len().min(MAX_FILE) as usize + 1));
    let file = File::open(path).map_err(Error::io("read", path))?;
    file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(Error::io("read", path))?;
    if content.len() as u64 > MAX_FILE {
        return Err(Error::unusable(path)(InvalidFile::TooLarge(MAX_FILE)));
    }
    Ok((content, metadata.permissions().mode() & 0o7777))
}

/// Returns which users besides `us` and root may write to a directory of `owner` with this mode;
/// `None` if no others may. Group access is ignored, since Kubernetes mounts volumes with it.
fn other_writers(mode: u32, owner: u32, us: u32) -> Option<String> {
    if mode & 0o002 != 0 {
        Some(format!("every user may write to the state directory (mode {:04o})", mode & 0o7777))
    } else if owner != us && owner != 0 {
        Some(format!("user {owner} owns the state directory"))
    } else {
        None
    }
}

/// Refuses a key that every user can access. Group access is only logged, since with an `fsGroup`
/// the kubelet makes every file of a volume readable and writable by the group at each mount.
fn check_mode(path: &Path, mode: u32) -> Result<(), Error> {
    if mode & 0o007 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    if mode & 0o070 != 0 {
        tracing::debug!(
            path = %path.display(), mode = format_args!("{mode:04o}"),
            "the group can access the private key"
        );
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
    fn only_the_owner_can_access_the_directory_and_its_secrets() {
        let (_home, dir) = dir();
        dir.write_if_missing("a.key", b"secret", Access::Secret).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path), 0o700);
        assert_eq!(mode(&dir.path_of("a.key")), 0o600);
    }

    #[test]
    fn other_users_that_could_replace_the_keys_are_named() {
        for (mode, owner, expected) in [
            (0o040_700, 1000, None),
            (0o700, 0, None),
            (0o2770, 1000, None),
            (0o755, 1000, None),
            (0o040_777, 1000, Some("(mode 0777)")),
            (0o1777, 0, Some("(mode 1777)")),
            (0o700, 1001, Some("user 1001 owns")),
        ] {
            let found = other_writers(mode, owner, 1000);
            assert_eq!(found.is_some(), expected.is_some(), "{mode:o} {owner}: {found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()));
        }
    }

    #[test]
    fn write_if_missing_never_replaces_a_file() {
        let (_home, dir) = dir();
        assert!(dir.write_if_missing("a", b"first", Access::Public).unwrap());
        assert!(!dir.write_if_missing("a", b"second", Access::Public).unwrap());
        assert_eq!(dir.read("a", Access::Public).unwrap().unwrap().as_slice(), b"first");
    }

    #[test]
    fn temporary_files_are_removed_only_under_the_lock() {
        let (_home, dir) = dir();
        std::fs::write(dir.path_of(".new-x-ca.key"), b"half").unwrap();
        dir.remove_temporary_files(&DirLock(None));
        assert!(dir.path_of(".new-x-ca.key").exists());
        dir.remove_temporary_files(&dir.lock().unwrap());
        assert!(!dir.path_of(".new-x-ca.key").exists());
    }

    #[test]
    fn special_and_huge_files_are_refused_by_name() {
        let (_home, dir) = dir();
        std::fs::create_dir(dir.path_of("directory")).unwrap();
        nix::unistd::mkfifo(&dir.path_of("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        File::create(dir.path_of("huge")).unwrap().set_len(MAX_FILE + 1).unwrap();
        for name in ["directory", "pipe", "huge"] {
            let error = dir.read(name, Access::Public).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(dir.read("nothing", Access::Public).unwrap().is_none());
    }

    #[test]
    fn a_key_that_every_user_can_access_is_refused_but_group_access_is_not() {
        for (mode, fine) in
            [(0o600, true), (0o400, true), (0o660, true), (0o640, true), (0o644, false), (0o604, false), (0o602, false)]
        {
            assert_eq!(check_mode(Path::new("ca.key"), mode).is_ok(), fine, "{mode:o}");
        }
    }
}

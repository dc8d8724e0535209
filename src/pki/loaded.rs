//! A certificate that was read from files, and the digest that shows changes of the files.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::CertificateDer;

use super::certificate::CertificateFields;
use super::error::{Error, InvalidFile};
use super::identity::ServerIdentity;
use super::state_dir::read_file;

/// The result of loading or issuing a certificate.
#[derive(Debug)]
pub(super) struct LoadedIdentity {
    /// The certificate and key to serve.
    pub(super) identity: ServerIdentity,
    /// Why a newer certificate could not be loaded or issued; `None` if `identity` is the wanted
    /// one.
    pub(super) problem: Option<Error>,
}

/// A digest of the contents of files.
pub(super) type FilesDigest = [u8; 32];

/// The number of calls in a row that read no file. The next one reads them even if their status is
/// the same.
const MAX_UNREAD_CHECKS: u32 = 30;
/// The age of a file's last change, in seconds, from which a further change certainly gives the
/// file another time. File systems round times, some of them to two seconds.
const SETTLE_SECONDS: i64 = 5;

/// Computes the digest of files, for a caller that asks every few seconds. Reads the files only if
/// one of them may have changed, and at every 31st call.
///
/// Status and contents are compared, and there are no inotify events. This detects an edit in
/// place, a rename, and Kubernetes' swap of a symbolic link two directories above, and works on
/// file systems without events (gVisor, Docker Desktop).
#[derive(Debug, Default)]
pub(super) struct DigestCache(Option<CachedDigest>);

#[derive(Debug)]
struct CachedDigest {
    digest: FilesDigest,
    status: [FileStatus; 3],
    unread_checks: u32,
}

/// The status of a file, which differs after each change of the file or of a link to it.
#[derive(Debug, PartialEq, Eq)]
enum FileStatus {
    Missing,
    /// Device, inode, length, and the times of the last change of the contents and of the status,
    /// each with its nanoseconds.
    Present([u64; 3], [i64; 4]),
    /// The status can't be read, or a change now would perhaps not alter it.
    Uncertain,
}

impl FileStatus {
    /// Reads the status of `file`. A file that changed shortly before `now` is uncertain, since its
    /// times have a limited resolution.
    fn read(file: &Path, now: SystemTime) -> Self {
        match std::fs::metadata(file) {
            Ok(about) => {
                let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
                let settled = i64::try_from(now).is_ok_and(|now| about.ctime() <= now - SETTLE_SECONDS);
                if !settled {
                    return Self::Uncertain;
                }
                Self::Present(
                    [about.dev(), about.ino(), about.len()],
                    [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()],
                )
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Self::Missing,
            Err(_) => Self::Uncertain,
        }
    }
}

impl DigestCache {
    /// Returns the digest of `files` now. If `read` is true, the files are read even if their
    /// status is the same.
    pub(super) fn digest(&mut self, files: &[PathBuf; 3], read: bool, now: SystemTime) -> FilesDigest {
        // Read before the contents, so that the next check notices a change in between.
        let status = files.each_ref().map(|file| FileStatus::read(file, now));
        if let Some(cached) = &mut self.0
            && !read
            && cached.status == status
            && !status.contains(&FileStatus::Uncertain)
            && cached.unread_checks < MAX_UNREAD_CHECKS
        {
            cached.unread_checks += 1;
            return cached.digest;
        }
        let digest = files_digest(files);
        self.0 = Some(CachedDigest { digest, status, unread_checks: 0 });
        digest
    }
}

/// Returns the identity of a chain, the key of its leaf, and loopgate's CA, without revoked
/// certificates. Fails if the leaf can't be parsed.
pub(super) fn server_identity(
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
    ca: Option<CertificateDer<'static>>,
) -> Result<ServerIdentity, InvalidFile> {
    let CertificateFields { names, validity, .. } = CertificateFields::parse(&chain[0])?;
    Ok(ServerIdentity {
        certified_key: Arc::new(CertifiedKey::new(chain, key)),
        ca,
        revoked: Arc::default(),
        names,
        not_before: validity.not_before,
        not_after: validity.not_after,
    })
}

/// Returns the digest of `files`. A file that can't be read has another digest than an empty one.
pub(super) fn files_digest(files: &[PathBuf]) -> FilesDigest {
    let mut context = Context::new(&SHA256);
    for file in files {
        match read_file(file) {
            Ok((content, _)) => {
                context.update(&(content.len() as u64).to_be_bytes());
                context.update(&content);
            }
            Err(_) => context.update(&u64::MAX.to_be_bytes()),
        }
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes};
    use std::time::Duration;

    use super::*;

    #[test]
    fn files_are_read_when_their_status_changed_and_when_it_may_hide_a_change() {
        let home = tempfile::tempdir().unwrap();
        let [one, two, absent] = ["one", "two", "absent"].map(|name| home.path().join(name));
        let files = [one.clone(), two.clone(), absent.clone()];
        fs::write(&one, "1").unwrap();
        fs::write(&two, "2").unwrap();
        let mut cache = DigestCache::default();
        let mut check = |read, after: u64| {
            let unread_before = cache.0.as_ref().map(|cached| cached.unread_checks);
            let digest = cache.digest(&files, read, SystemTime::now() + Duration::from_secs(after));
            assert_eq!(digest, files_digest(&files));
            let unread = cache.0.as_ref().unwrap().unread_checks;
            unread_before.is_none_or(|before| unread <= before)
        };
        assert!(check(false, 0) && check(false, 0), "files that changed a moment ago are read at each check");
        assert!(check(false, 60) && !check(false, 60) && !check(false, 60));
        assert!(check(true, 60) && !check(false, 60));

        // This edit in place keeps the length and the modification time. Only the time of the
        // status change (ctime) differs.
        std::thread::sleep(Duration::from_millis(50));
        let modified = fs::metadata(&one).unwrap().modified().unwrap();
        fs::write(&one, "x").unwrap();
        File::options().write(true).open(&one).unwrap().set_times(FileTimes::new().set_modified(modified)).unwrap();
        assert!(check(false, 60) && !check(false, 60));

        // A rename puts another file in the place of `one`. Then a symbolic link is created, and
        // pointed elsewhere.
        fs::rename(&two, &one).unwrap();
        assert!(check(false, 60) && !check(false, 60));
        std::os::unix::fs::symlink(&one, &absent).unwrap();
        assert!(check(false, 60) && !check(false, 60));
        fs::remove_file(&absent).unwrap();
        std::os::unix::fs::symlink("/dev/null", &absent).unwrap();
        assert!(check(false, 60));

        let reads = (0..=2 * MAX_UNREAD_CHECKS).filter(|_| check(false, 120)).count();
        assert_eq!(reads, 1, "unchanged files are read after {MAX_UNREAD_CHECKS} checks");
    }
}

//! What of a container is read to find a proof in it.

use std::path::{Path, PathBuf};

use crate::enrolment_protocol::ProofKind;

/// Reads containers from outside, through the engine; tests have their own.
pub trait ProofReader: Send + Sync {
    /// Returns what of the container `id` decides whether a proof of `kind` counts; `None` if the
    /// container does not run.
    fn environment(
        &self,
        id: &str,
        kind: ProofKind,
    ) -> impl Future<Output = Result<Option<ProofEnvironment>, ReadError>> + Send;
    /// Returns the command lines of the processes in the container `id`.
    fn command_lines(&self, id: &str) -> impl Future<Output = Result<Vec<String>, ReadError>> + Send;
    /// Returns what is at `path` in the container `id`, without following it if it is a link.
    fn stat(&self, id: &str, path: &Path) -> impl Future<Output = Result<Option<Entry>, ReadError>> + Send;
}

/// What of a container decides whether its processes and files prove anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProofEnvironment {
    /// Where volumes and the like are mounted in it.
    pub mounts: Vec<PathBuf>,
    /// Whether the engine's list of its processes holds those of other containers, or of the host.
    pub shares_processes: bool,
}

/// The type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A regular file.
    File(FileStat),
    /// A directory.
    Directory,
    /// A symbolic link, a device, ...
    Other,
}

/// What distinguishes a proof from a file that was fetched from elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStat {
    /// The size in bytes.
    pub size: i64,
    /// The permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// The modification time: seconds since the Unix epoch, and nanoseconds.
    pub mtime: (i64, u32),
}

/// A failed request to the engine.
#[derive(Debug, thiserror::Error)]
#[error("the request to {endpoint} failed")]
pub struct ReadError {
    /// The path, such as `/containers/{id}/top`.
    pub endpoint: &'static str,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

//! The interface by which proofs in containers are read.

use std::path::{Path, PathBuf};

use crate::enrolment_protocol::ProofKind;

/// Reads processes and files of containers through the engine. Tests have a fake implementation.
pub trait ProofReader: Send + Sync {
    /// Returns the properties of the container `id` on which the validity of a proof of `kind`
    /// depends; `None` if the container does not run.
    fn read_environment(
        &self,
        id: &str,
        kind: ProofKind,
    ) -> impl Future<Output = Result<Option<ProofEnvironment>, ReadError>> + Send;
    /// Returns the command lines of the processes in the container `id`.
    fn read_command_lines(&self, id: &str) -> impl Future<Output = Result<Vec<String>, ReadError>> + Send;
    /// Returns the type of the file at `path` in the container `id`, without following a symbolic
    /// link; `None` if there is no file.
    fn stat(&self, id: &str, path: &Path) -> impl Future<Output = Result<Option<Entry>, ReadError>> + Send;
}

/// The properties of a container that decide whether its processes and files prove anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProofEnvironment {
    /// The paths of volumes and other mounts in the container.
    pub mounts: Vec<PathBuf>,
    /// Whether the engine's list of the container's processes includes those of other containers or
    /// of the host.
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

/// The properties that distinguish a proof from a file that was fetched from elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStat {
    /// The size in bytes.
    pub size: i64,
    /// The permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// The modification time: seconds since the Unix epoch, and nanoseconds.
    pub mtime: (i64, u32),
}

/// A failed request to the engine for a proof.
#[derive(Debug, thiserror::Error)]
#[error("the request to {endpoint} failed")]
pub struct ReadError {
    /// The path of the request, such as `/containers/{id}/top`.
    pub endpoint: &'static str,
    /// What failed.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

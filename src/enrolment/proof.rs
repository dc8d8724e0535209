//! Looks for a proof where only its container could have put it.

use std::path::{Component, Path, PathBuf};

use super::{Error, refuse};
use crate::attest::{Reason, SHOW_COMMAND, SHOW_NAME, Shown};

/// Reads containers from outside, through the engine; tests have their own.
pub trait ProofReader: Send + Sync {
    /// Returns the running container `id`, and those that share its network namespace.
    fn members(&self, id: &str) -> impl Future<Output = Result<Vec<NamespaceMember>, ReadError>> + Send;
    /// Returns the command lines of the processes in the container `id`.
    fn processes(&self, id: &str) -> impl Future<Output = Result<Vec<String>, ReadError>> + Send;
    /// Returns what is at `path` in the container `id`, without following it if it is a link.
    fn entry(&self, id: &str, path: &Path) -> impl Future<Output = Result<Option<Entry>, ReadError>> + Send;
}

/// A container in which a proof may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceMember {
    /// The full id.
    pub id: String,
    /// Where volumes and the like are mounted in it.
    pub mounts: Vec<PathBuf>,
}

/// The type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, a device, ...
    Other,
}

/// A failed request to the engine.
#[derive(Debug, thiserror::Error)]
#[error("GET {endpoint} failed")]
pub struct ReadError {
    /// The path, such as `/containers/{id}/top`.
    pub endpoint: &'static str,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The deepest path: each directory on it costs a request.
const MAX_DEPTH: usize = 16;

/// Finds `proof`, shown as `shown` says, in the container `agent` or a container that shares its namespace; returns the id of the one that shows it.
pub(super) async fn find<P: ProofReader>(reader: &P, agent: &str, proof: &str, shown: &Shown) -> Result<String, Error> {
    let members = reader.members(agent).await?;
    if !members.iter().any(|member| member.id == agent) {
        return Err(super::gone());
    }
    let mut misplaced = None;
    for NamespaceMember { id, mounts } in members {
        let found = match shown {
            Shown::Process => reader.processes(&id).await?.iter().any(|line| shows(line, proof)),
            Shown::File { path } => match place(path, proof, &mounts) {
                Ok(directories) => is_file(reader, &id, &directories, path).await?,
                Err(why) => {
                    misplaced = Some(why);
                    false
                }
            },
        };
        if found {
            return Ok(id);
        }
    }
    Err(match misplaced {
        Some(why) => refuse(Reason::ProofMisplaced, why),
        None => refuse(Reason::ProofNotFound, "the proof is not visible in the container that has this address"),
    })
}

/// Says whether the command line is that of the agent's helper with `proof`, and not one that merely contains the text: containers
/// fetch, search and print text from elsewhere.
fn shows(command_line: &str, proof: &str) -> bool {
    let mut words = command_line.split_whitespace();
    let is_ours = words.next().is_some_and(|program| Path::new(program).file_name() == Some(SHOW_NAME.as_ref()));
    is_ours && words.eq([SHOW_COMMAND, proof])
}

/// Returns the directories that lead to `path`, outermost first, if only the container itself could have put a file there.
fn place(path: &Path, proof: &str, mounts: &[PathBuf]) -> Result<Vec<PathBuf>, &'static str> {
    let mut components = path.components();
    let plain = components.next() == Some(Component::RootDir) && components.all(|part| matches!(part, Component::Normal(_)));
    if !plain || path.to_str().is_none() || path.components().count() > MAX_DEPTH {
        return Err("the proof's path must be absolute, plain and short");
    }
    if path.file_name() != Some(proof.as_ref()) {
        return Err("the file's name must be the proof");
    }
    if mounts.iter().any(|mount| path.starts_with(mount)) {
        return Err("the proof lies on a mount, where other containers could have put it: show it elsewhere, or as a process");
    }
    let mut directories: Vec<PathBuf> = path.ancestors().skip(1).filter(|path| path.parent().is_some()).map(Path::to_owned).collect();
    directories.reverse();
    Ok(directories)
}

/// Says whether `path` is a file below real directories: a link among them could lead onto a mount.
async fn is_file<P: ProofReader>(reader: &P, id: &str, directories: &[PathBuf], path: &Path) -> Result<bool, Error> {
    for directory in directories {
        if reader.entry(id, directory).await? != Some(Entry::Directory) {
            return Ok(false);
        }
    }
    Ok(reader.entry(id, path).await? == Some(Entry::File))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_command_line_of_the_helper_shows_a_proof() {
        let proof = "loopgate-proof-abc";
        for (line, expected) in [
            ("loopgate attest-proof loopgate-proof-abc", true),
            ("/usr/bin/loopgate attest-proof loopgate-proof-abc", true),
            ("/proc/self/exe attest-proof loopgate-proof-abc", false),
            ("grep attest-proof loopgate-proof-abc", false),
            ("loopgate attest-proof loopgate-proof-abcd", false),
            ("loopgate attest-proof loopgate-proof-abc more", false),
            ("sh -c loopgate attest-proof loopgate-proof-abc", false),
            ("curl https://elsewhere/loopgate-proof-abc", false),
            ("attest-proof loopgate-proof-abc", false),
            ("", false),
        ] {
            assert_eq!(shows(line, proof), expected, "{line}");
        }
    }

    #[test]
    fn paths_that_other_containers_could_write_to_are_refused() {
        let mounts = ["/data".into(), "/run/shared".into()];
        for (path, expected) in [
            ("/tmp/p", Ok(vec!["/tmp"])),
            ("/p", Ok(vec![])),
            ("/var/lib/x/p", Ok(vec!["/var", "/var/lib", "/var/lib/x"])),
            ("/database/p", Ok(vec!["/database"])),
            ("/data/p", Err("the proof lies on a mount")),
            ("/data/deep/p", Err("the proof lies on a mount")),
            ("/run/shared/p", Err("the proof lies on a mount")),
            ("/tmp/../data/p", Err("the proof's path must")),
            ("tmp/p", Err("the proof's path must")),
            ("/tmp/q", Err("the file's name must")),
            ("/tmp/p/..", Err("the proof's path must")),
        ] {
            match (place(Path::new(path), "p", &mounts), expected) {
                (Ok(directories), Ok(expected)) => {
                    assert_eq!(directories, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{path}")
                }
                (Err(why), Err(expected)) => assert!(why.starts_with(expected), "{path}: {why}"),
                (found, _) => panic!("{path}: {found:?}"),
            }
        }
        assert!(place(Path::new(&format!("{}/p", "/d".repeat(20))), "p", &[]).is_err());
    }
}

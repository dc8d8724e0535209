//! Verifies that a proof is visible in a container, at a place where only this container could have
//! put it.

use std::path::{Path, PathBuf};

use super::error::{Error, agent_gone_error, refusal_error};
use super::proof_reader::{Entry, FileStat, ProofEnvironment, ProofReader};
use crate::enrolment_protocol::{
    PROOF_MODE, PROOF_MTIME, PROOF_PROCESS_NAME, PROOF_SUBCOMMAND, ProofKind, ProofShown, RefusalReason,
};

/// Checks that the container `agent` shows `proof` in the way that `shown` states: as a file, only
/// in `directory`. Other containers in its network namespace are not read.
///
/// # Errors
/// The container does not run, does not show the proof, or others could have put it there; or the
/// engine can't be asked.
pub(super) async fn check_proof<P: ProofReader>(
    reader: &P,
    agent: &str,
    proof: &str,
    shown: &ProofShown,
    directory: &Path,
) -> Result<(), Error> {
    let Some(ProofEnvironment { mounts, shares_processes }) = reader.read_environment(agent, kind_of(shown)).await?
    else {
        return Err(agent_gone_error());
    };
    let is_visible = match shown {
        ProofShown::Process if shares_processes => {
            let why =
                "the container shares its PID namespace, so the engine shows other containers' processes as its own";
            return Err(refusal_error(RefusalReason::ProofMisplaced, why));
        }
        ProofShown::Process => reader.read_command_lines(agent).await?.iter().any(|line| is_proof_helper(line, proof)),
        ProofShown::File { path } => {
            let directories = check_place(path, &directory.join(proof), &mounts)
                .map_err(|why| refusal_error(RefusalReason::ProofMisplaced, &why))?;
            is_proof_file(reader, agent, &directories, path).await?
        }
    };
    if is_visible {
        Ok(())
    } else {
        Err(refusal_error(
            RefusalReason::ProofNotFound,
            "the proof is not visible in the container that has this address",
        ))
    }
}

/// Returns the kind of proof in the agent's message.
pub(super) fn kind_of(shown: &ProofShown) -> ProofKind {
    match shown {
        ProofShown::Process => ProofKind::Process,
        ProofShown::File { .. } => ProofKind::File,
    }
}

/// Returns whether `command_line` is that of the agent's helper process for `proof`. A command line
/// that only contains the proof is not enough, since containers fetch, search and print text from
/// elsewhere.
fn is_proof_helper(command_line: &str, proof: &str) -> bool {
    let mut words = command_line.split_whitespace();
    let is_loopgate =
        words.next().is_some_and(|program| Path::new(program).file_name() == Some(PROOF_PROCESS_NAME.as_ref()));
    is_loopgate && words.eq([PROOF_SUBCOMMAND, proof])
}

/// Checks that `path` is the `expected` one, byte for byte, and not on a mount. Returns the
/// directories that lead to it, outermost first and without the root.
///
/// # Errors
/// The reason why others could have put a file there, for the refusal.
fn check_place(path: &Path, expected: &Path, mounts: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    if path.as_os_str() != expected.as_os_str() {
        let directory = expected.parent().unwrap_or(expected);
        return Err(format!("a proof is shown as a file only in {}", directory.display()));
    }
    if mounts.iter().any(|mount| path.starts_with(mount)) {
        return Err("the proof lies on a mount, where other containers could have put it: show it as a process".into());
    }
    let mut directories: Vec<PathBuf> =
        path.ancestors().skip(1).filter(|path| path.parent().is_some()).map(Path::to_owned).collect();
    directories.reverse();
    Ok(directories)
}

/// Returns whether `path` is a file with the properties that `loopgate agent` sets, and all
/// `directories` are real ones: a symbolic link could lead onto a mount.
async fn is_proof_file<P: ProofReader>(
    reader: &P,
    id: &str,
    directories: &[PathBuf],
    path: &Path,
) -> Result<bool, Error> {
    for directory in directories {
        if reader.stat(id, directory).await? != Some(Entry::Directory) {
            return Ok(false);
        }
    }
    let expected = FileStat { size: 0, mode: PROOF_MODE, mtime: PROOF_MTIME };
    Ok(reader.stat(id, path).await? == Some(Entry::File(expected)))
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
            assert_eq!(is_proof_helper(line, proof), expected, "{line}");
        }
    }

    #[test]
    fn paths_that_other_containers_could_write_to_are_refused() {
        let mounts = ["/data".into(), "/run/shared".into()];
        for (path, directory, expected) in [
            ("/tmp/p", "/tmp", Ok(vec!["/tmp"])),
            ("/p", "/", Ok(vec![])),
            ("/var/lib/x/p", "/var/lib/x", Ok(vec!["/var", "/var/lib", "/var/lib/x"])),
            ("/database/p", "/database", Ok(vec!["/database"])),
            ("/data/p", "/data", Err("the proof lies on a mount")),
            ("/run/shared/deep/p", "/run/shared/deep", Err("the proof lies on a mount")),
            ("/var/p", "/tmp", Err("a proof is shown as a file only in /tmp")),
            ("/tmp/../tmp/p", "/tmp", Err("a proof is shown as a file only in /tmp")),
            ("/tmp//p", "/tmp", Err("a proof is shown as a file only in /tmp")),
            ("/tmp/p/", "/tmp", Err("a proof is shown as a file only in /tmp")),
            ("tmp/p", "/tmp", Err("a proof is shown as a file only in /tmp")),
            ("/tmp/q", "/tmp", Err("a proof is shown as a file only in /tmp")),
        ] {
            match (check_place(Path::new(path), &Path::new(directory).join("p"), &mounts), expected) {
                (Ok(directories), Ok(expected)) => {
                    assert_eq!(directories, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{path}")
                }
                (Err(why), Err(expected)) => assert!(why.starts_with(expected), "{path}: {why}"),
                (found, _) => panic!("{path}: {found:?}"),
            }
        }
    }
}

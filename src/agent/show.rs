//! Shows a proof inside the agent's container, where the sidecar can read it through Docker, but no
//! client on the network can.

use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use crate::enrolment_protocol::{
    PROOF_MODE, PROOF_MTIME, PROOF_PREFIX, PROOF_PROCESS_NAME, PROOF_SUBCOMMAND, ProofKind, ProofShown,
};

/// How the proof is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProofMethod {
    /// As the argument of a process. This works on a read-only root file system too.
    Process,
    /// As the name of a file in this directory, which must not be on a volume or another mount.
    File(PathBuf),
}

impl ProofMethod {
    /// Returns the kind of proof, as the protocol names it.
    pub fn kind(&self) -> ProofKind {
        match self {
            Self::Process => ProofKind::Process,
            Self::File(_) => ProofKind::File,
        }
    }

    /// Shows `proof` until the result is dropped. Blocks until the proof is visible.
    ///
    /// # Errors
    /// The helper process or the file can't be created.
    pub(super) fn show(&self, proof: &str) -> io::Result<VisibleProof> {
        match self {
            Self::Process => ProofHelper::start(Path::new("/proc/self/exe"), proof).map(VisibleProof::Process),
            Self::File(directory) => VisibleProof::create_file(directory.join(proof)),
        }
    }
}

/// A proof that is shown until this value is dropped.
#[derive(Debug)]
pub(super) enum VisibleProof {
    Process(#[expect(dead_code, reason = "held for its drop")] ProofHelper),
    File(PathBuf),
}

impl VisibleProof {
    /// Creates the file of a proof at `path`, with the mode and the modification time that the
    /// sidecar expects, and its directory if that is missing.
    fn create_file(path: PathBuf) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path)?;
        // From here on `Drop` removes the file, also after an error.
        let proof = Self::File(path);
        file.set_permissions(std::fs::Permissions::from_mode(PROOF_MODE))?;
        let (seconds, nanoseconds) = PROOF_MTIME;
        let mtime = UNIX_EPOCH + Duration::new(seconds.unsigned_abs(), nanoseconds);
        file.set_modified(mtime)?;
        Ok(proof)
    }

    /// Returns the message that tells the sidecar how the proof is shown.
    pub(super) fn to_message(&self) -> ProofShown {
        match self {
            Self::Process(_) => ProofShown::Process,
            Self::File(path) => ProofShown::File { path: path.clone() },
        }
    }
}

impl Drop for VisibleProof {
    fn drop(&mut self) {
        if let Self::File(path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A child process that has the proof in its arguments and does nothing else.
///
/// The child exits when its standard input ends. So it can't outlive its parent, and needs no
/// signal to end it: if `loopgate exec` is PID 1 and has already reaped the child, a signal could
/// reach another process with the same id.
#[derive(Debug)]
pub(super) struct ProofHelper(Child);

impl ProofHelper {
    /// Starts `program` as a helper for `proof`, without this process's environment.
    fn start(program: &Path, proof: &str) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg0(PROOF_PROCESS_NAME).args([PROOF_SUBCOMMAND, proof]).env_clear();
        Self::spawn_and_wait_for_output(command)
    }

    /// Starts `command`, and waits for its first byte of output, since the arguments are not
    /// visible before the program runs.
    fn spawn_and_wait_for_output(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut helper = Self(command.spawn()?);
        let mut byte = [0];
        helper.0.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut byte)?;
        Ok(helper)
    }
}

impl Drop for ProofHelper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Runs the hidden subcommand [`PROOF_SUBCOMMAND`] in the helper process: writes a byte to standard
/// output, and waits until standard input ends. Returns false at once if `proof` is not a proof.
pub fn run_proof_helper(proof: &str) -> bool {
    if !proof.starts_with(PROOF_PREFIX) {
        return false;
    }
    let mut stdout = io::stdout();
    let _ = stdout.write_all(b"\n").and_then(|()| stdout.flush());
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    true
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_proof_file_exists_while_it_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let visible = ProofMethod::File(directory.path().to_owned()).show("loopgate-proof-x").unwrap();
        let path = directory.path().join("loopgate-proof-x");
        assert_eq!(visible.to_message(), ProofShown::File { path: path.clone() });
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(
            (metadata.len(), metadata.mode() & 0o7777, (metadata.mtime(), metadata.mtime_nsec() as u32)),
            (0, PROOF_MODE, PROOF_MTIME)
        );
        drop(visible);
        assert!(!path.exists());
    }

    #[test]
    fn a_helper_has_the_proof_in_its_arguments_until_it_is_dropped() {
        // Like the helper, this shell writes a line when it runs, and exits when its standard input
        // ends.
        let mut command = Command::new("sh");
        command.args(["-c", "echo; read -r line", PROOF_SUBCOMMAND, "loopgate-proof-x"]);
        let helper = ProofHelper::spawn_and_wait_for_output(command).unwrap();
        let cmdline = format!("/proc/{}/cmdline", helper.0.id());
        let arguments = std::fs::read_to_string(&cmdline).unwrap();
        assert!(arguments.contains("attest-proof\0loopgate-proof-x"), "{arguments:?}");
        drop(helper);
        assert!(!Path::new(&cmdline).exists());
    }
}

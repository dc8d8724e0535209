//! Enrolment message by message, as an attacker could do it: with any message, and the proof in any
//! container.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use loopgate::enrolment_protocol::{
    self, Challenge, Enrolled, EnrolmentRefused, EnrolmentRequest, PROOF_SUBCOMMAND, ProofShown, Reply,
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::container::Running;

/// A connection for enrolment from a container to the sidecar.
pub struct Conversation {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Conversation {
    /// Connects from `container`.
    pub fn begin(container: &Running) -> Self {
        let connect = "exec openssl s_client -quiet -verify_quiet -verify_return_error -CAfile /state/ca.pem \
                       -alpn loopgate-enrol/1 -servername gateway -connect gateway:18443";
        let mut process = interactive(container, &["sh", "-c", connect]);
        let (stdin, stdout) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, stdin, stdout }
    }

    /// Requests a certificate for `key`; returns the proof that has to be shown.
    pub fn request(&mut self, key: &KeyPair) -> Result<String, EnrolmentRefused> {
        let csr = CertificateParams::default().serialize_request(key).unwrap().pem().unwrap();
        self.send(&EnrolmentRequest { csr, token: None });
        let challenge: Challenge = self.receive()?;
        Ok(enrolment_protocol::proof_for_key(&challenge.nonce, &key.subject_public_key_info()))
    }

    /// Claims that the proof is shown as a process, and returns the sidecar's reply.
    pub fn claim(&mut self) -> Result<Enrolled, EnrolmentRefused> {
        self.send(&ProofShown::Process);
        self.receive()
    }

    fn send<T: Serialize>(&mut self, message: &T) {
        // If the sidecar refused the connection, it may be closed already. The refusal can still be
        // received.
        let _ = writeln!(self.stdin, "{}", serde_json::to_string(message).unwrap());
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Result<T, EnrolmentRefused> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        match serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}")) {
            Reply::Next(message) => Ok(message),
            Reply::Refused(refused) => Err(refused),
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process in a container that shows a proof until the value is dropped.
pub struct ShownIn(Child);

impl ShownIn {
    /// Shows `proof` in `container` with loopgate's own command.
    pub fn new(container: &Running, proof: &str) -> Self {
        let mut process = interactive(container, &["/loopgate", PROOF_SUBCOMMAND, proof]);
        process.stdout.take().unwrap().read_exact(&mut [0]).expect("the process reports its start");
        Self(process)
    }
}

impl Drop for ShownIn {
    fn drop(&mut self) {
        // The process ends with its standard input, and not with `docker exec`.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Starts a command in the container, with pipes to its standard input and output.
fn interactive(container: &Running, command: &[&str]) -> Child {
    let mut docker = Command::new("docker");
    docker.args(["exec", "--interactive", container.name()]).args(command);
    docker.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("docker can be run")
}

//! Enrolment line by line, held by hand: what an attacker would say, and where he would show his proof.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use loopgate::enrolment_protocol::{self, Challenge, Enrolled, EnrolmentRefused, Reply, Request, SHOW_COMMAND, Shown};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::container::Running;

/// A conversation with the sidecar out of one container.
pub struct Conversation {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Conversation {
    /// Connects out of `container`.
    pub fn begin(container: &Running) -> Self {
        let connect = "exec openssl s_client -quiet -verify_quiet -verify_return_error -CAfile /state/ca.pem \
                       -alpn loopgate-enrol/1 -servername gateway -connect gateway:18443";
        let mut process = interactive(container, &["sh", "-c", connect]);
        let (stdin, stdout) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, stdin, stdout }
    }

    /// Requests a certificate for `key`; what would have to be shown.
    pub fn request(&mut self, key: &KeyPair) -> Result<String, EnrolmentRefused> {
        let csr = CertificateParams::default().serialize_request(key).unwrap().pem().unwrap();
        self.say(&Request { csr, token: None });
        let challenge: Challenge = self.hear()?;
        Ok(enrolment_protocol::proof(&challenge.nonce, &key.subject_public_key_info()))
    }

    /// Says that the proof is shown as a process.
    pub fn claim(&mut self) -> Result<Enrolled, EnrolmentRefused> {
        self.say(&Shown::Process);
        self.hear()
    }

    fn say<T: Serialize>(&mut self, message: &T) {
        // Whoever was refused at once may find nobody to talk to; what he was told is still to be heard.
        let _ = writeln!(self.stdin, "{}", serde_json::to_string(message).unwrap());
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T, EnrolmentRefused> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        match serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}")) {
            Reply::Granted(granted) => Ok(granted),
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

/// A proof that is shown in a container as long as this lives.
pub struct ShownIn(Child);

impl ShownIn {
    /// Shows `proof` in `container` as loopgate itself would.
    pub fn new(container: &Running, proof: &str) -> Self {
        let mut process = interactive(container, &["/loopgate", SHOW_COMMAND, proof]);
        process.stdout.take().unwrap().read_exact(&mut [0]).expect("it says when it is there");
        Self(process)
    }
}

impl Drop for ShownIn {
    fn drop(&mut self) {
        // It ends when its standard input does, and not with `docker exec`.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn interactive(container: &Running, command: &[&str]) -> Child {
    let mut docker = Command::new("docker");
    docker.args(["exec", "--interactive", container.name()]).args(command);
    docker.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("docker can be run")
}

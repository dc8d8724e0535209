//! The flags that `agent` and `exec` share.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::agent::{self, Attestation, CredentialSource, Endpoint, ProofMethod, ServerTrust, Settings};
use crate::config::layer::Problem;
use crate::config::{self, CertificateFiles, GATEWAY_PORT, Log, LogFormat, SIDECAR_PORT, parse};
use crate::enrolment_protocol::{PROOF_DIRECTORY, ProofKind};
use crate::fingerprint::Fingerprint;

/// The path at which the shipped compose files mount the CA's certificate.
const CA_FILE: &str = "/ca/ca.pem";
/// The default of `--hold`.
const DEFAULT_HOLD: Duration = Duration::from_secs(10);

/// Every option is also an environment variable, LOOPGATE_ and its name.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Address for local clients [default: 127.0.0.1:18789; `exec`: the port in
    /// OPENCLAW_GATEWAY_PORT]
    #[arg(long, env = "LOOPGATE_LISTEN", value_name = "ADDR", value_parser = maybe_empty(parse::socket_address))]
    listen: Option<MaybeEmpty<SocketAddr>>,
    /// Listen on an address that is not loopback: every client that reaches it becomes this agent
    #[arg(long, env = "LOOPGATE_UNSAFE_LISTEN", value_parser = clap::builder::FalseyValueParser::new())]
    unsafe_listen: bool,
    /// Address of the sidecar [default: gateway:18443]
    #[arg(long, env = "LOOPGATE_SIDECAR", value_name = "HOST:PORT", value_parser = maybe_empty(parse_endpoint))]
    sidecar: Option<MaybeEmpty<Endpoint>>,
    /// The name that the sidecar's certificate must carry [default: the sidecar's host]
    #[arg(long, env = "LOOPGATE_SERVER_NAME", value_name = "NAME", value_parser = maybe_empty(parse_text))]
    server_name: Option<MaybeEmpty<String>>,
    /// The CA that must have issued the sidecar's certificate (loopgate's ca.pem) [default:
    /// /ca/ca.pem]
    #[arg(long, env = "LOOPGATE_CA", value_name = "FILE", value_parser = maybe_empty(parse::path))]
    ca: Option<MaybeEmpty<PathBuf>>,
    /// The SHA-256 fingerprint of the sidecar's certificate, instead of a CA
    #[arg(long, env = "LOOPGATE_SERVER_FINGERPRINT", value_name = "HEX", value_parser = maybe_empty(parse_fingerprint))]
    server_fingerprint: Option<MaybeEmpty<Fingerprint>>,
    /// A client certificate from `loopgate cert issue` or an own CA, instead of enrolment
    #[arg(long, env = "LOOPGATE_CERT", value_name = "FILE", value_parser = maybe_empty(parse::path))]
    cert: Option<MaybeEmpty<PathBuf>>,
    /// The client certificate's key
    #[arg(long, env = "LOOPGATE_KEY", value_name = "FILE", value_parser = maybe_empty(parse::path))]
    key: Option<MaybeEmpty<PathBuf>>,
    /// How the proof of enrolment is shown in this container; file needs agents.proofs on the
    /// sidecar [default: process]
    #[arg(long, env = "LOOPGATE_PROOF", value_name = "process|file", value_parser = maybe_empty(parse_proof_kind))]
    proof: Option<MaybeEmpty<ProofKind>>,
    /// In a pod: enrol by the service-account token in this file, projected with the sidecar's
    /// audience (loopgate)
    #[arg(long, env = "LOOPGATE_KUBERNETES_TOKEN", value_name = "FILE", value_parser = maybe_empty(parse::path))]
    kubernetes_token: Option<MaybeEmpty<PathBuf>>,
    /// Where an inherited gateway token is written, readable by its owner alone
    #[arg(long, env = "LOOPGATE_TOKEN_OUT", value_name = "FILE", value_parser = maybe_empty(parse::path))]
    token_out: Option<MaybeEmpty<PathBuf>>,
    /// How long a local connection waits for a sidecar that can't be reached [default: 10s]
    #[arg(long, env = "LOOPGATE_HOLD", value_name = "DURATION", value_parser = maybe_empty(parse::duration))]
    hold: Option<MaybeEmpty<Duration>>,
    /// Log level, or a filter such as loopgate::agent=debug,warn
    #[arg(long, env = "LOOPGATE_LOG_LEVEL", value_name = "FILTER", value_parser = maybe_empty(parse::log_filter))]
    log_level: Option<MaybeEmpty<String>>,
    /// Format of log lines [default: text]
    #[arg(long, env = "LOOPGATE_LOG_FORMAT", value_name = "text|json", value_parser = maybe_empty(parse_log_format))]
    log_format: Option<MaybeEmpty<LogFormat>>,
}

/// A value of a flag or variable; `None` if it is empty. An empty value counts as absent, because
/// compose files pass a variable that the host does not have as an empty one (`LOOPGATE_CA:
/// ${CA:-}`).
#[derive(Clone, Debug)]
pub struct MaybeEmpty<T>(Option<T>);

/// Returns a parser that accepts an empty text, and passes any other to `parser`.
pub fn maybe_empty<T>(
    parser: impl Fn(&str) -> Result<T, String> + Clone,
) -> impl Fn(&str) -> Result<MaybeEmpty<T>, String> + Clone {
    move |text| if text.is_empty() { Ok(MaybeEmpty(None)) } else { parser(text).map(|value| MaybeEmpty(Some(value))) }
}

/// Returns the value, or `None` if it is absent or empty.
pub fn non_empty<T>(text: Option<MaybeEmpty<T>>) -> Option<T> {
    text.and_then(|text| text.0)
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    text.parse().map_err(|_| "is not host:port".into())
}

fn parse_fingerprint(text: &str) -> Result<Fingerprint, String> {
    text.parse().map_err(|error: crate::fingerprint::ParseError| error.to_string())
}

fn parse_text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn parse_proof_kind(text: &str) -> Result<ProofKind, String> {
    parse::choice(&[("process", ProofKind::Process), ("file", ProofKind::File)])(text)
}

fn parse_log_format(text: &str) -> Result<LogFormat, String> {
    parse::choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])(text)
}

impl Flags {
    /// Returns the log options of the command, whose default level is `default_level`.
    pub fn log_options(&self, default_level: &str) -> Log {
        let format = non_empty(self.log_format.clone()).unwrap_or(LogFormat::Text);
        Log {
            format,
            level: non_empty(self.log_level.clone()).unwrap_or_else(|| default_level.into()),
            access: false,
            ..config::Config::default().log
        }
    }

    /// Returns the settings of the agent, which listens on 127.0.0.1 and `port` unless `--listen`
    /// is given.
    ///
    /// # Errors
    /// If flags contradict each other.
    pub fn settings(self, port: Option<u16>) -> Result<Settings, config::Error> {
        let trust = match (non_empty(self.ca), non_empty(self.server_fingerprint)) {
            (Some(_), Some(_)) => {
                return Err(flag_error("--server-fingerprint", "is of no use beside --ca: give one of them"));
            }
            (None, Some(fingerprint)) => ServerTrust::Fingerprint(fingerprint),
            (ca, None) => ServerTrust::Ca(ca.unwrap_or_else(|| CA_FILE.into())),
        };
        let token = non_empty(self.kubernetes_token);
        let kind = non_empty(self.proof).unwrap_or(ProofKind::Process);
        let credential_source = match (non_empty(self.cert), non_empty(self.key)) {
            (Some(_), _) | (_, Some(_)) if token.is_some() => {
                return Err(flag_error("--kubernetes-token", "is of no use beside --cert and --key: give one of them"));
            }
            (Some(chain), Some(key)) => CredentialSource::Files(CertificateFiles { chain, key }),
            (Some(_), None) => return Err(flag_error("--cert", "needs --key")),
            (None, Some(_)) => return Err(flag_error("--key", "needs --cert")),
            (None, None) => CredentialSource::Enrol(match (token, kind) {
                (Some(file), _) => Attestation::Token(file),
                (None, ProofKind::Process) => Attestation::Show(ProofMethod::Process),
                (None, _) => Attestation::Show(ProofMethod::File(PROOF_DIRECTORY.into())),
            }),
        };
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(GATEWAY_PORT)));
        let listen = non_empty(self.listen).unwrap_or(listen);
        if !self.unsafe_listen && !listen.ip().is_loopback() {
            return Err(flag_error("--listen", &agent::Error::NotLoopback(listen).to_string()));
        }
        Ok(Settings {
            listen,
            unsafe_listen: self.unsafe_listen,
            sidecar: non_empty(self.sidecar).unwrap_or_else(|| Endpoint { host: "gateway".into(), port: SIDECAR_PORT }),
            server_name: non_empty(self.server_name),
            trust,
            credential_source,
            token_out: non_empty(self.token_out),
            wait_limit: non_empty(self.hold).unwrap_or(DEFAULT_HOLD),
        })
    }
}

/// Returns the error for a problem of `flag`.
pub fn flag_error(flag: &str, message: &str) -> config::Error {
    config::Error(vec![Problem { place: flag.into(), message: message.into() }])
}

/// Creates the runtime of `agent` and `exec`. Two threads are enough for the traffic of one agent.
///
/// # Errors
/// If the runtime can't be created.
pub fn create_runtime() -> Result<tokio::runtime::Runtime, super::error::Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(super::error::Error::io("starting the runtime"))
}

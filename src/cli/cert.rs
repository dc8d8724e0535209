//! `loopgate cert`: certificates, from the files alone and whether or not a sidecar runs on them.

use std::path::PathBuf;
use std::time::Duration;

use super::error::Error;
use super::flags::{Flags, Selection};
use super::output;
use crate::config::key::Key;
use crate::config::parse;
use crate::pki::{RotateKey, offline};

/// Shows certificates and makes new ones
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Prints names, expiry and the fingerprints that clients pin
    Show {
        #[command(flatten)]
        flags: Flags<Files>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Prints the CA's certificate (PEM), for clients to trust
    Export {
        #[command(flatten)]
        flags: Flags<Files>,
        /// Write it to this file, as a whole or not at all, instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Makes a certificate for an agent that can't enrol by itself
    Issue {
        #[command(flatten)]
        flags: Flags<Files>,
        /// The agent's name, the last part of its SPIFFE ID
        #[arg(long, value_parser = offline::agent_name)]
        name: String,
        /// Directory for agent.pem, agent.key and ca.pem
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
        /// How long it is valid, 397 days at most
        #[arg(long, value_name = "DURATION", default_value = "90days", value_parser = parse::issued_life)]
        life: Duration,
    },
    /// Revokes a certificate of `cert issue` or of an enrolled agent; a running sidecar closes its connections within seconds
    #[command(group(clap::ArgGroup::new("which").required(true).args(["serial", "cert"])))]
    Revoke {
        #[command(flatten)]
        flags: Flags<Files>,
        /// The certificate's serial number, as `cert issue` prints it
        #[arg(long, value_name = "HEX", value_parser = |text: &str| offline::serial(text).map(Serial))]
        serial: Option<Serial>,
        /// The certificate's file (PEM)
        #[arg(long, value_name = "FILE")]
        cert: Option<PathBuf>,
    },
    /// Replaces the server's certificate now
    Rotate {
        #[command(flatten)]
        flags: Flags<Files>,
        /// Replace its key too, which breaks pins on it
        #[arg(long)]
        new_key: bool,
    },
}

/// A serial number.
#[derive(Clone, Debug)]
pub struct Serial(Vec<u8>);

/// The options that say which files are meant, and the trust domain.
#[derive(Clone, Debug)]
pub struct Files;

impl Selection for Files {
    fn takes(key: &Key) -> bool {
        matches!(key.flag, "state-dir" | "tls-cert" | "tls-key" | "trust-domain")
    }
}

/// Shows, exports, issues or rotates.
pub fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Show { flags, json } => {
            let config = flags.load()?;
            let chain = config.tls.provided.as_ref().map(|pair| pair.chain.as_path());
            show(&offline::show(&config.state_dir, chain)?, json)
        }
        Command::Export { flags, out } => {
            let state_dir = served_from(flags)?;
            match out {
                None => output::print(offline::export(&state_dir)?),
                Some(file) => Ok(offline::export_to(&state_dir, &file)?),
            }
        }
        Command::Issue { flags, name, out, life } => {
            let config = flags.load()?;
            // Only the sidecar knows the names for the constraints of a new CA.
            if config.tls.constrain_names {
                offline::export(&config.state_dir)?;
            }
            let agent = offline::Agent { trust_domain: &config.agents.trust_domain, name: &name, life };
            output::print(offline::issue(&config.state_dir, &agent, &out)?.to_string())
        }
        Command::Revoke { flags, serial, cert } => {
            let config = flags.load()?;
            let serial = match (serial, cert) {
                (Some(Serial(serial)), _) => serial,
                (None, Some(file)) => offline::serial_of(&file)?,
                (None, None) => unreachable!("clap requires one of them"),
            };
            let done = if offline::revoke(&config.state_dir, &serial)? { "revoked" } else { "was revoked before" };
            output::print(format!("{} {done}\n", offline::serial_text(&serial)))
        }
        Command::Rotate { flags, new_key } => {
            let key = if new_key { RotateKey::Replace } else { RotateKey::Keep };
            show(&offline::rotate(&served_from(flags)?, key)?, false)
        }
    }
}

/// The state directory, if what is served is out of there.
fn served_from(flags: Flags<Files>) -> Result<PathBuf, Error> {
    let config = flags.load()?;
    match config.tls.provided {
        None => Ok(config.state_dir),
        Some(pair) => Err(Error::OwnPair(pair.chain)),
    }
}

fn show(report: &offline::Report, json: bool) -> Result<(), Error> {
    if json { output::print(format!("{:#}\n", serde_json::json!(report))) } else { output::print(report.to_string()) }
}

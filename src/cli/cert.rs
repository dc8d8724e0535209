//! `loopgate cert`: certificates seen, exported, made and replaced, with or without a running sidecar.

use std::path::PathBuf;
use std::time::Duration;

use super::flags::{Flags, Selection};
use super::{Error, output};
use crate::config::key::Key;
use crate::pki::RotateKey;
use crate::pki::offline::{self, Agent};

/// Certificates: fingerprints, the CA, agents' certificates
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Prints names, expiry and fingerprints of what is served
    Show(Show),
    /// Prints the CA's certificate, for clients to trust
    Export {
        #[command(flatten)]
        flags: Flags<Files>,
    },
    /// Makes a certificate for an agent that can't enrol by itself
    Issue(Issue),
    /// Replaces the server's certificate; a running sidecar notices
    Rotate(Rotate),
}

/// The options that say where certificates are and whose.
#[derive(Clone, Debug)]
pub struct Files;

impl Selection for Files {
    fn takes(key: &Key) -> bool {
        matches!(key.flag, "state-dir" | "tls-cert" | "tls-key" | "trust-domain")
    }
}

/// Flags of `cert show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    flags: Flags<Files>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `cert issue`.
#[derive(Debug, clap::Args)]
pub struct Issue {
    #[command(flatten)]
    flags: Flags<Files>,
    /// The agent's name: letters, digits, `-`, `_`, `.`
    #[arg(long)]
    name: String,
    /// Where to write agent.pem, agent.key and ca.pem [default: a new directory of the agent's name]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How many days the certificate lives, 1 to 397
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=397))]
    days: u16,
}

/// Flags of `cert rotate`.
#[derive(Debug, clap::Args)]
pub struct Rotate {
    #[command(flatten)]
    flags: Flags<Files>,
    /// Make a new key too; clients that pin the key or the certificate must be told
    #[arg(long)]
    new_key: bool,
}

/// Does what was asked for, and prints what came of it.
pub fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Show(Show { flags, json }) => {
            let config = flags.load()?;
            let own_chain = config.tls.own_pair.map(|files| files.chain);
            let report = offline::show(&config.state_dir, own_chain.as_deref())?;
            output::print(if json { format!("{:#}\n", serde_json::json!(report)) } else { report.to_string() })
        }
        Command::Export { flags } => output::print(offline::export(&flags.load()?.state_dir)?),
        Command::Issue(Issue { flags, name, out, days }) => {
            let config = flags.load()?;
            let life = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
            let agent = Agent { trust_domain: &config.agents.trust_domain, name: &name, life };
            let out = out.unwrap_or_else(|| PathBuf::from(&name));
            output::print(offline::issue(&config.state_dir, &agent, &out)?.to_string())
        }
        Command::Rotate(Rotate { flags, new_key }) => {
            let rotate_key = if new_key { RotateKey::Replace } else { RotateKey::Keep };
            output::print(offline::rotate(&flags.load()?.state_dir, rotate_key)?.to_string())
        }
    }
}

//! `loopgate cert`: shows, exports, issues, revokes and rotates certificates. It works on the files
//! in the state directory, whether or not a sidecar runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::error::Error;
use super::flags::{Flags, Selection};
use super::output;
use crate::config::option::Key;
use crate::config::parse;
use crate::pki::offline::Encryption;
use crate::pki::{RotateKey, offline};

/// Shows certificates and makes new ones
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Prints names, expiry and the fingerprints that clients pin
    Show {
        #[command(flatten)]
        flags: Flags<Files>,
        /// Print JSON
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
    /// Makes a certificate for an agent that can't enrol by itself, or for a person's browser or
    /// phone
    #[command(group(clap::ArgGroup::new("whose").required(true).args(["name", "user"])))]
    Issue {
        #[command(flatten)]
        flags: Flags<Files>,
        /// The agent's name, the last part of its SPIFFE ID
        #[arg(long, value_parser = offline::parse_agent_name)]
        name: Option<String>,
        /// The person's e-mail address, which the gateway gets as X-Forwarded-User; makes a PKCS#12
        /// file
        #[arg(long, value_name = "E-MAIL", value_parser = offline::parse_user_email)]
        user: Option<String>,
        /// An agent's directory for agent.pem, agent.key and ca.pem [default: .]; a person's file,
        /// - for standard output [default: E-MAIL.p12]
        #[arg(long, value_name = "DIR|FILE")]
        out: Option<PathBuf>,
        /// File with the PKCS#12 file's password, at least 12 characters; by default one is made
        /// and printed to standard error
        #[arg(long, value_name = "FILE", conflicts_with = "name")]
        password_file: Option<PathBuf>,
        /// Encryption of the PKCS#12 file: 3des, which every system imports, or aes256 for systems
        /// that refuse it
        #[arg(
            long,
            value_name = "WORD",
            default_value = "3des",
            conflicts_with = "name",
            value_parser = encryption_parser()
        )]
        encryption: Encryption,
        /// How long it is valid, 397 days at most
        #[arg(long, value_name = "DURATION", default_value = "90days", value_parser = parse::issued_certificate_life)]
        life: Duration,
    },
    /// Revokes a certificate of `cert issue` or of an enrolled agent; a running sidecar closes its
    /// connections within seconds
    #[command(group(clap::ArgGroup::new("which").required(true).args(["serial", "cert"])))]
    Revoke {
        #[command(flatten)]
        flags: Flags<Files>,
        /// The certificate's serial number, as `cert issue` prints it
        #[arg(long, value_name = "HEX", value_parser = |text: &str| offline::parse_serial(text).map(Serial))]
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

/// The serial number of a certificate.
#[derive(Clone, Debug)]
pub struct Serial(Vec<u8>);

/// Selects the options for the certificate's files, and the trust domain.
#[derive(Clone, Debug)]
pub struct Files;

impl Selection for Files {
    fn takes(key: &Key) -> bool {
        matches!(key.flag, "state-dir" | "tls-cert" | "tls-key" | "trust-domain")
    }
}

/// Runs one of the commands of `loopgate cert`.
pub fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Show { flags, json } => {
            let config = flags.load()?;
            let chain = config.tls.provided.as_ref().map(|pair| pair.chain.as_path());
            print_report(&offline::show(&config.state_dir, chain)?, json)
        }
        Command::Export { flags, out } => {
            let state_dir = state_dir_of_served(flags)?;
            match out {
                None => output::print(offline::export(&state_dir)?),
                Some(file) => Ok(offline::export_to(&state_dir, &file)?),
            }
        }
        Command::Issue { flags, name, user, out, password_file, encryption, life } => {
            let config = flags.load()?;
            // Issuing would create a missing CA. With name constraints only the sidecar can create
            // it, because it knows the names, so a missing CA is an error here.
            if config.tls.constrain_names {
                offline::export(&config.state_dir)?;
            }
            match (name, user) {
                (Some(name), _) => {
                    let agent = offline::Agent { trust_domain: &config.agents.trust_domain, name: &name, life };
                    output::print(
                        offline::issue(&config.state_dir, &agent, &out.unwrap_or_else(|| ".".into()))?.to_string(),
                    )
                }
                (None, Some(user)) => {
                    let file = out.unwrap_or_else(|| format!("{user}.p12").into());
                    let user = offline::User { mail: &user, life, encryption };
                    issue_user(&config.state_dir, &user, &file, password_file.as_deref())
                }
                (None, None) => unreachable!("clap requires one of them"),
            }
        }
        Command::Revoke { flags, serial, cert } => {
            let config = flags.load()?;
            let serial = match (serial, cert) {
                (Some(Serial(serial)), _) => serial,
                (None, Some(file)) => offline::read_serial(&file)?,
                (None, None) => unreachable!("clap requires one of them"),
            };
            let outcome = if offline::revoke(&config.state_dir, &serial)? { "revoked" } else { "was revoked before" };
            output::print(format!("{} {outcome}\n", offline::format_serial(&serial)))
        }
        Command::Rotate { flags, new_key } => {
            let key = if new_key { RotateKey::Replace } else { RotateKey::Keep };
            print_report(&offline::rotate(&state_dir_of_served(flags)?, key)?, false)
        }
    }
}

/// Issues a certificate for a person, and writes its PKCS#12 file. A generated password is printed
/// after the file was written, and not stored.
fn issue_user(
    state_dir: &Path,
    user: &offline::User<'_>,
    file: &Path,
    password_file: Option<&Path>,
) -> Result<(), Error> {
    let password = match password_file {
        Some(path) => offline::read_password(path)?,
        None => offline::generate_password()?,
    };
    let (content, description) = offline::issue_user(state_dir, user, &password, file)?;
    if file == Path::new("-") {
        output::print(&content)?;
        output::print_to_stderr(&format!(
            "issued to {}, valid until {}, serial {}",
            user.mail, description.not_after, description.serial
        ));
    } else {
        offline::write_secret(file, &content)?;
        output::print(description.to_string())?;
    }
    if password_file.is_none() {
        output::print_to_stderr(&format!("password of this file, shown only now: {}", *password));
    }
    Ok(())
}

/// Returns the parser of a PKCS#12 file's encryption.
fn encryption_parser() -> impl clap::builder::TypedValueParser<Value = Encryption> {
    PossibleValuesParser::new(["3des", "aes256"]).map(|word| match word.as_str() {
        "aes256" => Encryption::Aes256,
        _ => Encryption::TripleDes,
    })
}

/// Returns the state directory.
///
/// # Errors
/// If the operator provides the certificate, so that the served one is not in the state directory.
fn state_dir_of_served(flags: Flags<Files>) -> Result<PathBuf, Error> {
    let config = flags.load()?;
    match config.tls.provided {
        None => Ok(config.state_dir),
        Some(pair) => Err(Error::OwnPair(pair.chain)),
    }
}

fn print_report(report: &offline::CertificateReport, json: bool) -> Result<(), Error> {
    if json { output::print(format!("{:#}\n", serde_json::json!(report))) } else { output::print(report.to_string()) }
}

//! The command line: one file for each command, and what they say to the shell.
//!
//! Exit status: 0 for a clean end, 1 for a failure at run time, 2 for a wrong flag, variable, key or value, 75 when a sidecar must be
//! started anew because its network namespace has lost its owner.
//! `exec` ends with the status of its command.

mod agent;
mod agent_flags;
mod attest_proof;
mod cert;
mod check;
mod completions;
mod compose;
mod config;
mod demo;
mod exec;
mod flags;
mod healthcheck;
mod log;
mod man;
mod output;
mod pair;
mod pause;
mod run;
mod status;
mod table;
mod worker_threads;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A TLS sidecar for a gateway that must stay on loopback.
#[derive(Debug, Parser)]
#[command(name = "loopgate", version, arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Agent(agent::Args),
    Exec(exec::Args),
    Pair(pair::Args),
    Check(check::Args),
    Status(status::Args),
    Healthcheck(healthcheck::Args),
    Pause(pause::Args),
    Demo(demo::Args),
    #[command(subcommand)]
    Cert(cert::Command),
    #[command(subcommand)]
    Config(config::Command),
    Compose(compose::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    AttestProof(attest_proof::Args),
}

/// Why a command ended other than well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, variable, key or value is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The sidecar failed.
    #[error(transparent)]
    App(#[from] crate::app::Error),
    /// The demonstration failed.
    #[error(transparent)]
    Demo(#[from] crate::demo::Error),
    /// A certificate can't be read or made.
    #[error(transparent)]
    Pki(#[from] crate::pki::Error),
    /// It is not loopgate's certificate that is served.
    #[error("the operator's own pair is served ({} of tls.cert): clients trust who issued that, and only its files can renew it", .0.display())]
    OwnPair(std::path::PathBuf),
    /// The sidecar is not ready, or not there.
    #[error(transparent)]
    Admin(#[from] crate::admin::client::Error),
    /// The agent failed.
    #[error(transparent)]
    Agent(#[from] crate::agent::Error),
    /// The command of `exec` can't be run.
    #[error(transparent)]
    Spawn(#[from] crate::agent::supervise::SpawnError),
    /// There is no device identity.
    #[error(transparent)]
    Device(#[from] crate::openclaw::device::Error),
    /// The device is not paired.
    #[error(transparent)]
    Pair(#[from] crate::openclaw::pair::Error),
    /// The operating system refused something.
    #[error("{doing}")]
    Io {
        /// What we were doing.
        doing: String,
        /// What it said.
        source: std::io::Error,
    },
}

impl Error {
    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        |source| Self::Io { doing, source }
    }

    /// The exit status of the process.
    fn status(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::App(error) => error.status(),
            Self::Spawn(error) => error.status(),
            _ => 1,
        }
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return output::usage(&error),
    };
    let done = |()| ExitCode::SUCCESS;
    let ended = worker_threads::check().and_then(|()| match command {
        Command::Run(args) => run::run(args).map(done),
        Command::Agent(args) => agent::run(args).map(done),
        Command::Exec(args) => exec::run(args),
        Command::Pair(args) => pair::run(&args).map(done),
        Command::Check(args) => check::run(args),
        Command::Status(args) => status::run(args).map(done),
        Command::Healthcheck(args) => healthcheck::run(args).map(done),
        Command::Pause(args) => pause::run(&args).map(done),
        Command::Demo(args) => demo::run(args).map(done),
        Command::Cert(command) => cert::run(command).map(done),
        Command::Config(command) => config::run(command).map(done),
        Command::Compose(args) => compose::run(args),
        Command::Completions(args) => completions::run(&args).map(done),
        Command::Man(args) => man::run(&args).map(done),
        Command::AttestProof(args) => Ok(attest_proof::run(&args)),
    });
    ended.unwrap_or_else(|error| {
        output::error(&error);
        error.status().into()
    })
}

/// The whole command line, for what is generated from it.
fn command() -> clap::Command {
    Cli::command()
}

//! The command line: one file for each command, and what they say to the shell.
//!
//! Exit status: 0 for a clean end, 1 for a failure at run time, 2 for a wrong flag, variable, key or value, 75 when a sidecar must be
//! started anew because its network namespace has lost its owner.

mod cert;
mod completions;
mod config;
mod demo;
mod flags;
mod healthcheck;
mod log;
mod man;
mod output;
mod pause;
mod run;
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
    Healthcheck(healthcheck::Args),
    Pause(pause::Args),
    Demo(demo::Args),
    #[command(subcommand)]
    Cert(cert::Command),
    #[command(subcommand)]
    Config(config::Command),
    Completions(completions::Args),
    Man(man::Args),
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
    /// The sidecar is not ready, or not there.
    #[error(transparent)]
    Healthcheck(#[from] healthcheck::Error),
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
            Self::Demo(_) | Self::Healthcheck(_) | Self::Pki(_) | Self::Io { .. } => 1,
        }
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return output::usage(&error),
    };
    let ended = worker_threads::check().and_then(|()| match command {
        Command::Run(args) => run::run(args),
        Command::Healthcheck(args) => healthcheck::run(args),
        Command::Pause(args) => pause::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Cert(command) => cert::run(command),
        Command::Config(command) => config::run(command),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            error.status().into()
        }
    }
}

/// The whole command line, for what is generated from it.
fn command() -> clap::Command {
    Cli::command()
}

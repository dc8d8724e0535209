//! The command line: one file for each command.
//!
//! The exit status is 0 for a clean end; 1 for a failure at run time; 2 for a wrong flag, variable,
//! key or value; and 75 if the sidecar must be restarted, because the owner of its network
//! namespace runs in another one, or could not be found. `exec` ends with the status of its
//! command.

mod agent;
mod agent_flags;
mod attest_proof;
mod cert;
mod check;
mod completions;
mod compose;
mod config;
mod demo;
mod devices;
mod error;
mod exec;
mod flags;
mod healthcheck;
mod log;
mod man;
mod output;
mod pair;
mod pause;
mod reload;
mod run;
mod status;
mod table;
mod worker_threads;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use error::Error;

/// A TLS sidecar for a gateway that must stay on loopback.
#[derive(Debug, Parser)]
#[command(
    name = "loopgate",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    disable_help_subcommand = true
)]
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
    Reload(reload::Args),
    Healthcheck(healthcheck::Args),
    Pause(pause::Args),
    Demo(demo::Args),
    #[command(subcommand)]
    Cert(cert::Command),
    Devices(devices::Args),
    #[command(subcommand)]
    Config(config::Command),
    Compose(compose::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    AttestProof(attest_proof::Args),
}

/// Parses the process's arguments, runs the command, and returns its exit status.
pub fn main() -> ExitCode {
    // `Cli::try_parse` would define all flags of all commands a second time, which is a large part
    // of the start.
    let mut definition = Cli::command();
    flags::set_variables_of_commands(&definition);
    let matches = definition.try_get_matches_from_mut(std::env::args_os());
    let parsed = matches
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut definition)));
    drop(definition);
    let command = match parsed {
        Ok(cli) => cli.command,
        Err(error) => return output::report_clap_error(&error),
    };
    let succeeded = |()| ExitCode::SUCCESS;
    let outcome = worker_threads::check_variable().and_then(|()| match command {
        Command::Run(args) => run::run(args).map(succeeded),
        Command::Agent(args) => agent::run(args).map(succeeded),
        Command::Exec(args) => exec::run(args),
        Command::Pair(args) => pair::run(&args).map(succeeded),
        Command::Check(args) => check::run(args),
        Command::Status(args) => status::run(args).map(succeeded),
        Command::Reload(args) => reload::run(args).map(succeeded),
        Command::Healthcheck(args) => healthcheck::run(args).map(succeeded),
        Command::Pause(args) => pause::run(&args).map(succeeded),
        Command::Demo(args) => demo::run(args).map(succeeded),
        Command::Cert(command) => cert::run(command).map(succeeded),
        Command::Devices(args) => devices::run(args).map(succeeded),
        Command::Config(command) => config::run(command).map(succeeded),
        Command::Compose(args) => compose::run(args),
        Command::Completions(args) => completions::run(&args, Cli::command()).map(succeeded),
        Command::Man(args) => man::run(&args, Cli::command()).map(succeeded),
        Command::AttestProof(args) => Ok(attest_proof::run(&args)),
    });
    outcome.unwrap_or_else(|error| {
        output::print_error(&error);
        error.exit_status().into()
    })
}

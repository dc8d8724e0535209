//! The hidden command that shows a proof of enrolment in its arguments.

use std::process::ExitCode;

use crate::agent::show;

/// Shows a proof of enrolment to Docker
#[derive(Debug, clap::Args)]
pub struct Args {
    proof: String,
}

/// Waits until standard input ends.
pub fn run(args: &Args) -> ExitCode {
    if show::run_proof_helper(&args.proof) { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

//! `loopgate completions`.

use clap_complete::Shell;

use super::error::Error;
use super::output;

/// Prints completions for a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Prints the completions of `command`.
pub fn run(args: &Args, mut command: clap::Command) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "loopgate", &mut script);
    output::print(script)
}

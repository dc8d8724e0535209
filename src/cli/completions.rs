//! `loopgate completions`.

use clap_complete::Shell;

use super::{Error, output};

/// Prints completions for a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Prints them.
pub fn run(args: &Args) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "loopgate", &mut script);
    output::print(script)
}

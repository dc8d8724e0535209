//! `loopgate run`.

use super::error::Error;
use super::flags::Flags;
use super::log;
use crate::app;

/// Runs the sidecar
///
/// Each option is also an environment variable, LOOPGATE_ and its name (LOOPGATE_TRUSTED_PROXY for --trusted-proxy; several values are
/// separated by commas), and a key of the file. A flag beats a variable beats the file.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
}

/// Runs until told to stop.
pub fn run(args: Args) -> Result<(), Error> {
    let config = args.flags.clone().load()?;
    let level = log::init(&config.log);
    Ok(app::run(config, || args.flags.clone().load_again(), |log| level.set(log))?)
}

//! `loopgate run`.

use super::error::Error;
use super::flags::Flags;
use super::log;
use crate::app;

/// Runs the sidecar
///
/// Each option is also an environment variable, LOOPGATE_ and its name (LOOPGATE_TRUSTED_PROXY for
/// --trusted-proxy; several values are separated by commas), and a key of the file. A flag
/// overrides a variable, which overrides the file.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
}

/// Loads the configuration, and runs the sidecar until a signal stops it.
pub fn run(args: Args) -> Result<(), Error> {
    let config = args.flags.clone().load()?;
    let logging = log::init(&config.log)?;
    let reload = app::Reload {
        file: args.flags.file().map(Into::into),
        load: || args.flags.clone().load_again(),
        set_log: |log: &crate::config::Log| logging.update(log),
    };
    let ended = app::run(config, reload);
    logging.flush();
    Ok(ended?)
}

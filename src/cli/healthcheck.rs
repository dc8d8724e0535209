//! `loopgate healthcheck`: for HEALTHCHECK in an image without a shell.

use super::flags::{Flags, Selection};
use crate::admin::client;
use crate::config::option::Key;
use crate::config::validate;

/// Asks the running sidecar whether it is ready; exit status 0 or 1
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags<AdminOption>,
    /// Ask whether it is alive rather than whether it is ready
    #[arg(long)]
    live: bool,
}

/// Selects the option for the address of the admin listener.
#[derive(Clone, Debug)]
pub struct AdminOption;

impl Selection for AdminOption {
    fn takes(key: &Key) -> bool {
        key.flag == "admin"
    }
}

/// Asks the sidecar once.
pub fn run(args: Args) -> Result<(), super::error::Error> {
    // Only this value is validated: other options may be invalid in a file that was edited since
    // the sidecar read it.
    let admin = validate::admin_address(&args.flags.merge())?;
    let admin = admin.ok_or(client::Error::Off)?;
    client::get(admin, if args.live { "/healthz" } else { "/readyz" })?;
    Ok(())
}

//! `loopgate devices`: shows or releases the devices that agents have used. It works on the state
//! directory, whether or not a sidecar runs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::Error;
use super::flags::{Flags, Selection};
use super::output;
use super::table::{Table, Tone, stdout_gets_colours};
use crate::config::option::Key;
use crate::openclaw::devices::{self, FILE};

/// Shows the devices that are bound to agents, or releases one
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(flatten)]
    flags: Flags<StateDirOption>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Lets a device connect on the external lane
    Release {
        #[command(flatten)]
        flags: Flags<StateDirOption>,
        /// The device's id, or its beginning
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

/// Selects the option for the state directory.
#[derive(Clone, Debug)]
pub struct StateDirOption;

impl Selection for StateDirOption {
    fn takes(key: &Key) -> bool {
        key.flag == "state-dir"
    }
}

/// Shows the devices, or releases some.
pub fn run(Args { flags, json, command }: Args) -> Result<(), Error> {
    if let Some(Command::Release { flags, ids }) = command {
        let directory = flags.load()?.state_dir;
        return devices::release(&directory, &ids)
            .map_err(Error::io(format!("changing {}", directory.join(FILE).display())));
    }
    let directory = flags.load()?.state_dir;
    let devices =
        devices::read(&directory).map_err(Error::io(format!("reading {}", directory.join(FILE).display())))?;
    if json {
        return output::print(serde_json::to_string_pretty(&devices).unwrap_or_default() + "\n");
    }
    let mut table = Table::new(&["device", "bound to", "since"]);
    for (device, entry) in devices {
        let since = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(entry.since).min(unix_time()))
            .to_string();
        let agent = entry.agent.unwrap_or_else(|| "-".into());
        table.row([(device, Tone::Plain), (agent, Tone::Plain), (since, Tone::Plain)]);
    }
    output::print(table.render(stdout_gets_colours()))
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

//! `loopgate demo`.

use std::net::SocketAddr;

use super::error::Error;
use super::log;
use super::table::stdout_gets_colours;
use crate::config::{Config, Log, parse};
use crate::demo;

/// Shows what each lane looks like, on this machine and without Docker
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Exit after the self-check, with status 0 only if every check passed
    #[arg(long)]
    once: bool,
    /// Where the sidecar of the demonstration listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = parse::socket_address)]
    listen: SocketAddr,
}

/// Runs the demonstration.
pub fn run(args: Args) -> Result<(), Error> {
    // The sidecar's log lines would appear within the table.
    log::init(&Log { level: "warn".into(), ..Config::default().log })?;
    let mut stdout = std::io::stdout();
    let options = demo::Options { once: args.once, listen: args.listen, colours: stdout_gets_colours() };
    Ok(demo::run(&options, &mut stdout)?)
}

//! `loopgate demo`.

use std::net::SocketAddr;

use super::Error;
use crate::config::parse;
use crate::demo;

/// Shows what each lane looks like, on this machine and without Docker
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End after the self-check, with exit status 0 only if all of it held
    #[arg(long)]
    once: bool,
    /// Where the sidecar of the demonstration listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = parse::socket_address)]
    listen: SocketAddr,
}

/// Runs the demonstration.
pub fn run(args: Args) -> Result<(), Error> {
    Ok(demo::run(demo::Options { once: args.once, listen: args.listen })?)
}

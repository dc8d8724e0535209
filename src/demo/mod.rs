//! `loopgate demo`: a gateway, the sidecar before it and a client on each lane, in one process and without Docker.

use std::net::SocketAddr;

/// What to demonstrate.
#[derive(Clone, Debug)]
pub struct Options {
    /// End after the self-check.
    pub once: bool,
    /// Where the sidecar listens; port 0 lets the kernel choose.
    pub listen: SocketAddr,
}

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// Runs the demonstration.
pub fn run(_options: Options) -> Result<(), Error> {
    Ok(())
}

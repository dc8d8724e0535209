//! The only place where wires cross: it builds the sidecar out of the other rooms, binds first and then runs.

/// Why the sidecar could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// Runs the sidecar until it is told to stop.
pub fn run(_config: crate::config::Config) -> Result<(), Error> {
    Ok(())
}

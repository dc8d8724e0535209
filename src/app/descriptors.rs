//! File descriptors: as many as this process may have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

/// What is open besides connections: listeners, event queues, files, Docker, the admin desk, idle connections to the gateway.
const RESERVE: u64 = 256;

/// Raises the soft limit, which is 1024 in many places, to the hard one; says so where `max_connections` needs more than that.
pub(super) fn make_room(max_connections: usize) {
    let limit = match raised() {
        Ok(limit) => limit,
        Err(error) => return warn!(%error, "can't raise the limit of open file descriptors"),
    };
    debug!(limit, "file descriptors");
    let needed = needed(max_connections);
    if limit < needed {
        warn!(
            limit,
            needed,
            max_connections,
            "max_connections needs more file descriptors than there may be: beyond that clients wait (ulimit -n, nofile)"
        );
    }
}

fn raised() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// How many there have to be for so many connections, each of which may have one to the gateway.
fn needed(max_connections: usize) -> u64 {
    u64::try_from(max_connections).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(RESERVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_needs_two() {
        for (connections, expected) in [(0, 256), (1, 258), (8192, 16640), (usize::MAX, u64::MAX)] {
            assert_eq!(needed(connections), expected);
        }
    }
}

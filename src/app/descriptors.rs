//! File descriptors: as many as this process may have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::listener::WAITING;
use crate::proxy::MAX_IDLE;
use crate::workers;

/// What is open besides connections: listeners, event queues, files, Docker, the admin desk.
const RESERVE: u64 = 256;

/// Raises the soft limit, which is 1024 in many places, to the hard one; says so where `max_connections` needs more than that.
pub(super) fn make_room(max_connections: usize) {
    let limit = match raised() {
        Ok(limit) => limit,
        Err(error) => return warn!(%error, "can't raise the limit of open file descriptors"),
    };
    debug!(limit, "file descriptors");
    let needed = needed(max_connections, workers::count());
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

/// How many there have to be for so many connections, as many to the gateway, and what waits and idles.
fn needed(max_connections: usize, workers: usize) -> u64 {
    let more = 2 * WAITING + workers * MAX_IDLE;
    u64::try_from(max_connections.saturating_mul(2).saturating_add(more)).unwrap_or(u64::MAX).saturating_add(RESERVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_needs_two() {
        for (connections, workers, expected) in [(0, 1, 1024), (1, 1, 1026), (8192, 4, 18_176), (usize::MAX, 1, u64::MAX)] {
            assert_eq!(needed(connections, workers), expected);
        }
    }
}

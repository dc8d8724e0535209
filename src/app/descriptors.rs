//! The limit of open file descriptors.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::listener::MAX_WAITING;
use crate::proxy::MAX_IDLE;
use crate::workers;

/// Descriptors for everything but connections: listeners, event queues, files, Docker, the admin listener.
const RESERVE: u64 = 256;

/// Raises the soft limit, often 1024, to the hard limit. Logs a warning if `max_connections` needs more than that.
pub(super) fn raise_limit(max_connections: usize) {
    let limit = match raised() {
        Ok(limit) => limit,
        Err(error) => return warn!(%error, "can't raise the open-file limit"),
    };
    debug!(limit, "open-file limit");
    let needed = needed(max_connections, workers::count());
    if limit < needed {
        warn!(
            limit,
            needed,
            max_connections,
            "the open-file limit is below what max_connections needs; beyond it clients wait: raise nofile (ulimit -n)"
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

/// Returns the descriptors needed for `max_connections` clients, as many connections to the gateway, and queued and idle connections.
fn needed(max_connections: usize, workers: usize) -> u64 {
    let more = 2 * MAX_WAITING + workers * MAX_IDLE;
    u64::try_from(max_connections.saturating_mul(2).saturating_add(more)).unwrap_or(u64::MAX).saturating_add(RESERVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_needs_two_descriptors() {
        for (connections, workers, expected) in [(0, 1, 1024), (1, 1, 1026), (8192, 4, 18_176), (usize::MAX, 1, u64::MAX)] {
            assert_eq!(needed(connections, workers), expected);
        }
    }
}

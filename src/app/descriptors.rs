//! The limit of open file descriptors, and the number of connections that it allows.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::listener::MAX_WAITING;

/// The number of descriptors that are reserved for everything except connections: listeners, event
/// queues, key files, Docker, the admin listener.
const RESERVE: usize = 256;
/// The number that is reserved if the limit is low. It is enough for an idle sidecar.
const MIN_RESERVE: usize = 48;

/// The numbers of connections that the open-file limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    /// The number of connections that can be served, each with a connection to the gateway.
    pub(super) connections: usize,
    /// The number of accepted connections that can wait to be served. As many connections of agents
    /// can wait beside them.
    pub(super) waiting_connections: usize,
}

/// Raises the soft open-file limit, which is often 1024, to the hard limit, and returns the
/// connections that it allows, at most `max_connections`. Logs a warning if they are fewer. If the
/// limit can't be read or raised, logs that and returns `max_connections`.
pub(super) fn raise_open_file_limit(max_connections: usize) -> Capacity {
    let limit = match raise_soft_limit() {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            warn!(%error, "can't read or raise the open-file limit; assuming that it suffices for limits.max_connections");
            usize::MAX
        }
    };
    debug!(limit, "read the open-file limit");
    let capacity = capacity_of_limit(limit, max_connections);
    if capacity.connections < max_connections {
        warn!(
            limit,
            max_connections,
            allowed = capacity.connections,
            "the open-file limit allows fewer connections than limits.max_connections; raise nofile (ulimit -n)"
        );
    }
    capacity
}

/// Raises the soft limit to the hard limit, and returns it.
fn raise_soft_limit() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Returns the number of descriptors of `limit` that are reserved for everything except
/// connections.
fn reserved_descriptors(limit: usize) -> usize {
    (limit / 4).clamp(MIN_RESERVE, RESERVE)
}

/// Divides `limit` descriptors among the reserve, waiting connections and served ones. A served
/// connection needs two descriptors: one for the client, and one for the gateway. At least one
/// connection is allowed, even if the limit is too low for it.
fn capacity_of_limit(limit: usize, max_connections: usize) -> Capacity {
    let reserve = reserved_descriptors(limit);
    let waiting_connections = MAX_WAITING.min(limit / 16);
    let connections = (limit.saturating_sub(reserve + 2 * waiting_connections) / 2).clamp(1, max_connections);
    Capacity { connections, waiting_connections }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_in_the_open_file_limit() {
        for (limit, max_connections, connections, waiting_connections) in [
            (64, 8192, 4, 4),
            (256, 8192, 80, 16),
            (1024, 8192, 320, 64),
            (1024, 100, 100, 64),
            (4096, 8192, 1664, 256),
            (1 << 20, 8192, 8192, 256),
            (usize::MAX, 8192, 8192, 256),
        ] {
            assert_eq!(
                capacity_of_limit(limit, max_connections),
                Capacity { connections, waiting_connections },
                "{limit}"
            );
            assert!(2 * connections + 2 * waiting_connections + reserved_descriptors(limit) <= limit);
        }
    }
}

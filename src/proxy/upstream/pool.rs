//! IdleConnection connections to the gateway, kept for the next request.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::budget::GatewayPermit;
use super::connection::UpstreamConnection;
use crate::lane::GatewayRoute;
use crate::shutdown::Shutdown;

/// IdleConnection connections that each worker keeps for each route.
pub const MAX_IDLE: usize = 256;
/// How long the rest of a request's body may take after the response has ended.
const REQUEST_END_LIMIT: Duration = Duration::from_secs(1);

/// IdleConnection connections of one worker by route, the most recently used last.
#[derive(Debug)]
pub struct Pool {
    idle: Mutex<HashMap<GatewayRoute, Vec<IdleConnection>>>,
    shutdown: Shutdown,
}

#[derive(Debug)]
struct IdleConnection {
    until: Instant,
    connection: Box<UpstreamConnection>,
}

/// A connection in use, and the pool that it belongs to.
#[derive(Debug)]
pub struct PooledConnection {
    connection: Box<UpstreamConnection>,
    pool: Arc<Pool>,
    /// The right to the request that it carries.
    permit: Option<GatewayPermit>,
}

impl Deref for PooledConnection {
    type Target = UpstreamConnection;

    fn deref(&self) -> &UpstreamConnection {
        &self.connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut UpstreamConnection {
        &mut self.connection
    }
}

impl PooledConnection {
    /// A new connection for `pool`.
    pub fn new(connection: UpstreamConnection, pool: &Arc<Pool>) -> Self {
        Self { connection: Box::new(connection), pool: Arc::clone(pool), permit: None }
    }

    /// Holds `permit` until the request and its response have ended.
    pub fn set_permit(&mut self, permit: GatewayPermit) {
        self.permit = Some(permit);
    }

    /// Takes the permit, which the caller then holds for the rest of the request.
    pub fn take_permit(&mut self) -> Option<GatewayPermit> {
        self.permit.take()
    }

    /// Notes that the client does not read the response, which is reset for it.
    pub fn note_stall(&self) {
        if let Some(permit) = &self.permit {
            permit.note_stall();
        }
    }

    /// Returns the connection to its pool. Where the response ended before the request's body, the
    /// rest of that has a moment to arrive first: to stop reading it would tell an HTTP/2 client of
    /// an error (RFC 9113 section 8.1) that some report as their own.
    pub fn give_back(self, now: Instant) {
        let Self { mut connection, pool, permit } = self;
        if connection.has_ended() {
            return;
        }
        if connection.is_ready() {
            if connection.is_usable() {
                pool.put(connection, now);
            }
            return;
        }
        let shutdown = pool.shutdown.clone();
        shutdown.spawn(async move {
            let _permit = permit;
            if timeout(REQUEST_END_LIMIT, connection.until_ready()).await.is_ok() && connection.is_usable() {
                pool.put(connection, Instant::now());
            }
        });
    }

    /// Keeps the connection out of the pool.
    pub fn set_single_use(&mut self) {
        self.connection.set_single_use();
    }

    /// See [`UpstreamConnection::into_tunnel`].
    pub async fn into_tunnel(self) -> Option<(TcpStream, Bytes, Option<GatewayPermit>)> {
        let (stream, early) = self.connection.into_tunnel().await?;
        Some((stream, early, self.permit))
    }
}

impl Pool {
    pub fn new(shutdown: &Shutdown) -> Self {
        Self { idle: Mutex::default(), shutdown: shutdown.clone() }
    }

    /// Returns the most recently used connection along `route`. The gateway may have closed it
    /// meanwhile: then nothing is sent on it.
    pub fn take(self: &Arc<Self>, route: GatewayRoute, now: Instant) -> Option<PooledConnection> {
        // Declared before the lock, so that expired connections are closed after it is released.
        let _expired;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = idle.get_mut(&route)?;
        if idle.last()?.until <= now {
            // The most recently used has expired, so all have.
            _expired = std::mem::take(idle);
            return None;
        }
        let IdleConnection { mut connection, .. } = idle.pop()?;
        connection.set_reused();
        Some(PooledConnection { connection, pool: Arc::clone(self), permit: None })
    }

    fn put(&self, connection: Box<UpstreamConnection>, now: Instant) {
        let until = now + connection.keep_idle();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = idle.entry(connection.route()).or_default();
        if idle.len() < MAX_IDLE {
            idle.push(IdleConnection { until, connection });
        }
    }

    /// Closes connections that have been idle for too long.
    pub fn sweep(&self) {
        let now = Instant::now();
        // Declared before the lock, as in `take`.
        let mut expired = Vec::new();
        let mut all = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, idle| {
            expired.extend(idle.extract_if(.., |idle| idle.until <= now));
            !idle.is_empty()
        });
    }
}

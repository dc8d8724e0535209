//! Idle connections to the gateway, kept for later requests.

use std::collections::BTreeMap;
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

/// The most idle connections that each worker keeps for each route.
pub const MAX_IDLE: usize = 256;
/// The time for which the rest of a request's body is read after the response has ended.
const REQUEST_END_LIMIT: Duration = Duration::from_secs(1);

/// The idle connections of one worker, by route. The most recently used is the last.
#[derive(Debug)]
pub struct Pool {
    idle: Mutex<BTreeMap<GatewayRoute, Vec<IdleConnection>>>,
    shutdown: Shutdown,
}

#[derive(Debug)]
struct IdleConnection {
    until: Instant,
    connection: Box<UpstreamConnection>,
}

/// A connection in use, and the pool that it is returned to.
#[derive(Debug)]
pub struct PooledConnection {
    connection: Box<UpstreamConnection>,
    pool: Arc<Pool>,
    /// The permit of the current request.
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
    /// Wraps a new connection, which is returned to `pool` later.
    pub fn new(connection: UpstreamConnection, pool: &Arc<Pool>) -> Self {
        Self { connection: Box::new(connection), pool: Arc::clone(pool), permit: None }
    }

    /// Holds `permit` until the request and its response have ended.
    pub fn set_permit(&mut self, permit: GatewayPermit) {
        self.permit = Some(permit);
    }

    /// Takes the permit. The caller holds it for the rest of the request.
    pub fn take_permit(&mut self) -> Option<GatewayPermit> {
        self.permit.take()
    }

    /// Records that the response is reset because the client does not read it.
    pub fn record_stall(&self) {
        if let Some(permit) = &self.permit {
            permit.record_stall();
        }
    }

    /// Returns the connection to its pool, or closes it if it can't take another request. If the
    /// response ended before the request's body, first reads the rest of the body, for at most
    /// [`REQUEST_END_LIMIT`]: otherwise an HTTP/2 client would get RST_STREAM with NO_ERROR (RFC
    /// 9113 section 8.1), which some clients report as a failure.
    pub fn return_to_pool(self, now: Instant) {
        let Self { mut connection, pool, permit } = self;
        if connection.is_reusable() {
            pool.add_idle(connection, now);
        } else if !connection.is_request_done() {
            let shutdown = pool.shutdown.clone();
            shutdown.spawn(async move {
                let _permit = permit;
                if timeout(REQUEST_END_LIMIT, connection.wait_until_sent()).await.is_ok() && connection.is_reusable() {
                    pool.add_idle(connection, Instant::now());
                }
            });
        }
    }

    /// Keeps the connection from being returned to the pool.
    pub fn set_single_use(&mut self) {
        self.connection.set_single_use();
    }

    /// Returns what [`UpstreamConnection::into_upgraded`] returns, and the permit.
    pub fn into_upgraded(self) -> Option<(TcpStream, Bytes, Option<GatewayPermit>)> {
        let (stream, early) = self.connection.into_upgraded()?;
        Some((stream, early, self.permit))
    }
}

impl Pool {
    pub fn new(shutdown: &Shutdown) -> Self {
        Self { idle: Mutex::default(), shutdown: shutdown.clone() }
    }

    /// Takes the most recently used connection along `route` that may still be used at `now`;
    /// `None` if there is none, and then closes all expired ones along `route`. If the gateway has
    /// closed the connection meanwhile, sending fails before the first byte.
    pub fn take_idle(self: &Arc<Self>, route: GatewayRoute, now: Instant) -> Option<PooledConnection> {
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
        connection.mark_reused();
        Some(PooledConnection { connection, pool: Arc::clone(self), permit: None })
    }

    /// Adds a connection that is idle since `now`; closes it if the pool is full.
    fn add_idle(&self, connection: Box<UpstreamConnection>, now: Instant) {
        let until = now + connection.idle_timeout();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = idle.entry(connection.route()).or_default();
        if idle.len() < MAX_IDLE {
            idle.push(IdleConnection { until, connection });
        }
    }

    /// Closes connections that have been idle for longer than their idle timeout.
    pub fn close_idle(&self) {
        let now = Instant::now();
        // Declared before the lock, so that expired connections are closed after it is released.
        let mut expired = Vec::new();
        let mut all = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, idle| {
            expired.extend(idle.extract_if(.., |idle| idle.until <= now));
            !idle.is_empty()
        });
    }
}

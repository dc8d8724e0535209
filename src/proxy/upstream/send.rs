//! Sends requests to the gateway.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Body;
use tokio::time::{Instant, timeout};

use super::budget::{GatewayBudgets, GatewayPermit};
use super::connection::{ResponseTimeout, SendError, UpstreamConnection};
use super::dial::dial;
use super::gateway_request::{EncodedHead, GatewayRequest, InterimSender};
use super::h1::error::ExchangeError;
use super::h1::response_head::ResponseHead;
use super::pool::{Pool, PooledConnection};
use super::request_body::{BodyProgress, RequestBody};
use crate::config::{Config, Limits};
use crate::lane::{GatewayHead, GatewayRoute, decode_path};
use crate::metrics::traffic::Traffic;
use crate::openclaw::tls_detector::TlsDetector;
use crate::proxy::error::Error;
use crate::shutdown::Shutdown;
use crate::workers;

/// The pause between two attempts to connect to a gateway that does not accept connections.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Returns the time in which the gateway must answer a request with `head`.
fn response_timeout(head: &GatewayHead, limits: &Limits) -> Duration {
    // A path that the gateway might normalize differently gets the default timeout.
    decode_path(head.path()).map_or(limits.request_timeout, |path| limits.request_timeout_of(&path))
}

/// A failed attempt to send a request.
#[derive(Clone, Copy, Debug)]
enum Failure {
    /// No byte of the request was sent.
    Unsent {
        /// Whether [`RETRY_PAUSE`] from now is after the end of the wait for the gateway.
        is_too_late_to_retry: bool,
    },
    /// The connection broke before the response's head was read.
    Broken {
        /// Whether another attempt would fail in the same way, or the gateway has begun to answer.
        is_final: bool,
        /// Whether the request may be sent again: its method is safe, it has no body, and no new
        /// connection broke under it before.
        is_repeatable: bool,
    },
}

/// Returns the pause before the request is sent again; `None` if it must not be sent again.
/// `is_reused` is whether the connection had carried an earlier request.
fn pause_before_retry(failure: Failure, is_reused: bool) -> Option<Duration> {
    let may_repeat = match failure {
        Failure::Unsent { is_too_late_to_retry } => is_reused || !is_too_late_to_retry,
        Failure::Broken { is_final, is_repeatable } => !is_final && is_repeatable,
    };
    // The gateway probably closed a reused connection because it was idle: no pause. A new
    // connection that the gateway closed at once counts as one that it did not accept.
    may_repeat.then_some(if is_reused { Duration::ZERO } else { RETRY_PAUSE })
}

/// Returns whether the wait for the gateway, which ends at `give_up`, ends before another attempt.
fn is_too_late_to_retry(give_up: Instant) -> bool {
    Instant::now() + RETRY_PAUSE >= give_up
}

/// Sends requests to the gateway. All downstream connections share it.
#[derive(Debug)]
pub struct Upstream {
    gateway: SocketAddr,
    /// One pool for each worker: the socket of a connection is in the event queue of its worker's
    /// thread.
    pools: Box<[Arc<Pool>]>,
    budgets: GatewayBudgets,
    tls_detector: TlsDetector,
    metrics: Arc<Traffic>,
}

impl Upstream {
    pub fn new(config: &Config, metrics: Arc<Traffic>, workers: usize, shutdown: &Shutdown) -> Self {
        let pools = std::iter::repeat_with(|| Arc::new(Pool::new(shutdown))).take(workers).collect();
        let budgets = GatewayBudgets::new(&config.limits, Arc::clone(&metrics));
        let gateway = config.gateway.address;
        Self { gateway, pools, budgets, tls_detector: TlsDetector::new(gateway), metrics }
    }

    /// Returns the budgets that limit the requests of clients.
    pub fn budgets(&self) -> &GatewayBudgets {
        &self.budgets
    }

    /// Returns the detector that finds out whether the gateway speaks TLS.
    pub fn tls_detector(&self) -> &TlsDetector {
        &self.tls_detector
    }

    /// Returns the pool of the current worker.
    fn pool(&self) -> &Arc<Pool> {
        &self.pools[workers::current_index()]
    }

    /// Sends a request, and waits for the head of its response. `granted_at` is the time at which
    /// `permit` was granted: the wait for a gateway that accepts no connection counts from then.
    /// The timeouts of an exchange count from the beginning of each attempt.
    ///
    /// A request is sent again only if no byte of it was sent, or if its method is safe, it has no
    /// body and no byte of a response was read. In the second case it is sent at most twice over
    /// new connections: the request itself may make the gateway break off.
    ///
    /// # Errors
    /// The reason why there is no response.
    pub fn send<'a>(
        &'a self,
        head: GatewayHead,
        body: RequestBody,
        interim_sender: InterimSender,
        permit: GatewayPermit,
        limits: &'a Limits,
        granted_at: Instant,
    ) -> impl Future<Output = Result<(ResponseHead, PooledConnection), Error>> + 'a {
        let route = head.route();
        let response_timeout = response_timeout(&head, limits);
        let is_repeatable = head.is_repeatable() && body.is_end_stream();
        let progress = body.progress();
        let mut request = GatewayRequest::new(head, body, interim_sender);
        let mut attempts = Attempts {
            upstream: self,
            route,
            retry: is_repeatable.then(|| request.head().clone()),
            only_new_connections: false,
            progress,
            give_up: granted_at + limits.gateway_wait,
        };
        async move {
            let mut began = granted_at;
            loop {
                let mut connection = match attempts.take_idle(began) {
                    Some(connection) => connection,
                    None => {
                        let connection = Box::pin(self.open_connection(route, limits, attempts.give_up)).await?;
                        began = Instant::now();
                        connection
                    }
                };
                let timeout = ResponseTimeout {
                    gateway: response_timeout,
                    client: limits.stall_timeout,
                    began,
                    progress: attempts.progress.as_deref(),
                };
                let (next_request, pause) = match connection.send_request(request, timeout).await {
                    Ok(head) => {
                        connection.apply_keep_alive(&head.headers);
                        connection.set_permit(permit);
                        return Ok((head, connection));
                    }
                    Err(SendError::Unsent(unsent)) => attempts.plan_retry_of_unsent(*unsent, &connection)?,
                    Err(SendError::Broken(error)) => {
                        let has_response_begun = connection.has_response_begun();
                        match attempts.plan_retry_of_broken(error, &connection) {
                            Ok(attempt) => attempt,
                            Err(error) => return Err(Box::pin(attempts.why_broken(error, has_response_begun)).await),
                        }
                    }
                    Err(SendError::GatewayTimeout) => return Err(Error::GatewayTimeout(response_timeout)),
                    Err(SendError::BodyTimeout) => return Err(Error::RequestBodyTimeout(limits.stall_timeout)),
                };
                request = next_request;
                if !pause.is_zero() {
                    Box::pin(tokio::time::sleep(pause)).await;
                }
                began = Instant::now();
            }
        }
    }

    /// Opens a connection along `route`. If the gateway does not accept it, tries again until
    /// `give_up`.
    ///
    /// # Errors
    /// The error of the last attempt.
    async fn open_connection(
        &self,
        route: GatewayRoute,
        limits: &Limits,
        give_up: Instant,
    ) -> Result<PooledConnection, Error> {
        loop {
            let error = match timeout(limits.connect_timeout, dial(route)).await {
                Ok(Ok(stream)) => {
                    self.metrics.gateway_connections.inc();
                    return Ok(PooledConnection::new(UpstreamConnection::new(stream, route, limits), self.pool()));
                }
                Ok(Err(error)) => error,
                Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer to the connection attempt"),
            };
            if is_too_late_to_retry(give_up) {
                return Err(Error::from_connect(error));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Closes connections that have been idle for too long. Must be called every few seconds.
    pub fn close_idle(&self) {
        for pool in &self.pools {
            pool.close_idle();
        }
    }
}

/// The attempts to send one request.
struct Attempts<'a> {
    upstream: &'a Upstream,
    route: GatewayRoute,
    /// The head, if the request may be sent again after the connection broke under it.
    retry: Option<EncodedHead>,
    /// Whether a connection broke under the request, so that no idle one is used any more.
    only_new_connections: bool,
    progress: Option<Arc<BodyProgress>>,
    /// When the wait for a gateway that does not accept connections is over.
    give_up: Instant,
}

impl Attempts<'_> {
    /// Returns an idle connection for the next attempt; `None` if a new one must be opened.
    fn take_idle(&self, now: Instant) -> Option<PooledConnection> {
        if self.only_new_connections { None } else { self.upstream.pool().take_idle(self.route, now) }
    }

    /// Returns what to send after `connection` failed before a byte of `request` was sent, and the
    /// pause before it.
    ///
    /// # Errors
    /// The connection was new, and the wait for the gateway ends before another attempt.
    fn plan_retry_of_unsent(
        &self,
        request: GatewayRequest,
        connection: &PooledConnection,
    ) -> Result<(GatewayRequest, Duration), Error> {
        let failure = Failure::Unsent { is_too_late_to_retry: is_too_late_to_retry(self.give_up) };
        match pause_before_retry(failure, connection.is_reused()) {
            Some(pause) => Ok((request, pause)),
            None => Err(Error::GatewayUnavailable(io::ErrorKind::ConnectionReset.into())),
        }
    }

    /// Returns what to send after `connection` broke with `error` under the request, and the pause
    /// before it.
    ///
    /// # Errors
    /// `error`, if the request must not be sent again.
    fn plan_retry_of_broken(
        &mut self,
        error: ExchangeError,
        connection: &PooledConnection,
    ) -> Result<(GatewayRequest, Duration), ExchangeError> {
        let is_bad_body = self.progress.as_deref().is_some_and(BodyProgress::is_broken);
        let is_final = is_bad_body || connection.has_response_begun();
        let failure = Failure::Broken { is_final, is_repeatable: self.retry.is_some() };
        let pause = pause_before_retry(failure, connection.is_reused());
        let (Some(pause), Some(head)) = (pause, self.retry.take()) else { return Err(error) };
        self.retry = connection.is_reused().then(|| head.clone());
        self.only_new_connections = true;
        Ok((GatewayRequest::repeat(head), pause))
    }

    /// Returns why the last attempt broke with `error`. `has_response_begun` is whether a byte of a
    /// response was read. May try a TLS handshake with the gateway.
    async fn why_broken(&self, error: ExchangeError, has_response_begun: bool) -> Error {
        if let Some(progress) = self.progress.as_deref().filter(|progress| progress.is_broken()) {
            return if progress.has_client_left() { Error::ClientLeft(error) } else { Error::BadRequestBody(error) };
        }
        match error {
            ExchangeError::HeadTooLarge => return Error::GatewayHeadTooLarge,
            ExchangeError::TransferEncoding => return Error::GatewayTransferEncoding,
            _ => {}
        }
        let may_be_tls =
            (error.is_malformed_head() || !has_response_begun) && self.route.target == self.upstream.gateway;
        if may_be_tls && self.upstream.tls_detector.detect_tls_after_broken_answer().await {
            return Error::GatewayTls;
        }
        Error::GatewayClosed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_failed_attempt() {
        let unsent = |is_too_late_to_retry| Failure::Unsent { is_too_late_to_retry };
        let broken = |is_final, is_repeatable| Failure::Broken { is_final, is_repeatable };
        // The failure, and the pause before the next attempt if the connection was new, and if it
        // was reused.
        for (failure, after_new, after_reused) in [
            (unsent(false), Some(RETRY_PAUSE), Some(Duration::ZERO)),
            (unsent(true), None, Some(Duration::ZERO)),
            (broken(false, true), Some(RETRY_PAUSE), Some(Duration::ZERO)),
            (broken(false, false), None, None),
            (broken(true, true), None, None),
            (broken(true, false), None, None),
        ] {
            assert_eq!(pause_before_retry(failure, false), after_new, "{failure:?}, new");
            assert_eq!(pause_before_retry(failure, true), after_reused, "{failure:?}, reused");
        }
    }
}

//! Drives a tunnel between a client and the gateway on one task. While both are quiet, it holds no
//! buffer.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::buffers::{BufferLease, TunnelBufferBudget};
use super::connect_response::ConnectResponseWatcher;
use super::direction::{Direction, GateChange};
use super::first_message::FirstMessage;
use super::readable_after_write_error::ReadableAfterWriteError;
use super::websocket_frames::{GOING_AWAY, POLICY_VIOLATION, WebSocketFrames, policy_violation};
use crate::proxy::close_signal::{CloseReason, CloseSignal, REVOKED_GRACE};
use crate::proxy::lazy_timer::LazyTimer;

#[cfg(test)]
mod tests;

/// The time that a client has to close the tunnel after loopgate sent a close frame, after the
/// gateway closed a WebSocket, or after the gateway closed another kind of tunnel and a write to it
/// failed.
const TUNNEL_CLOSE_GRACE: Duration = Duration::from_secs(3);
/// The time that the last bytes have to leave after either side broke off.
const LAST_BYTES_GRACE: Duration = Duration::from_millis(50);
/// The time without a byte in either direction after which a WebSocket counts as quiet.
const QUIET_TIME: Duration = Duration::from_millis(250);
/// The same time if the last bytes came from the client, since the gateway may still answer.
const QUIET_TIME_UNANSWERED: Duration = Duration::from_secs(1);

/// The reason why a tunnel ended before both directions were closed.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The client lost its authorization, or loopgate or the gateway refused its first message.
    #[error("the client is not authorized, or is no longer")]
    Unauthorized,
    /// The client or the gateway broke off.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// The time after which a WebSocket is closed for a shutdown even if it is not quiet. It is a
/// function, which reads the current setting, because a reload may change the time while the tunnel
/// is open.
pub type QuietLimit = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The options of a tunnel.
pub struct TunnelOptions {
    /// Whether the tunnel carries a WebSocket, so that a close frame can be sent between two
    /// frames.
    pub is_websocket: bool,
    /// Whether the client's side is a stream of an HTTP/2 connection.
    pub is_h2: bool,
    /// The memory for bytes that can't be written at once.
    pub buffer_budget: Arc<TunnelBufferBudget>,
    /// Tells the tunnel to close.
    pub close_signal: CloseSignal,
    /// The time after which a WebSocket is closed for a shutdown even if it is not quiet.
    pub quiet_limit: QuietLimit,
    /// Checks the client's first message before the gateway gets it. Later messages wait for
    /// `connect_response`.
    pub first_message: Option<FirstMessage>,
    /// Finds the gateway's response to the first message.
    pub connect_response: Option<ConnectResponseWatcher>,
    /// Counts bytes from the client.
    pub received_bytes: Counter,
    /// Counts bytes to the client.
    pub sent_bytes: Counter,
}

/// Carries bytes between `client` and `gateway` until both directions are closed, one fails, or the
/// client is refused.
///
/// When loopgate shuts down, a WebSocket gets a close frame with status 1001 once it is quiet. If
/// its client is revoked, it gets a close frame with status 1008 at the end of the current frame,
/// if that ends within [`REVOKED_GRACE`].
///
/// `early` are the bytes that were read together with the heads: from the client, and from the
/// gateway.
///
/// # Errors
/// Either side broke off, or the client was refused or revoked.
pub fn run<C, G>(
    client: C,
    gateway: G,
    early: (Bytes, Bytes),
    options: TunnelOptions,
) -> impl Future<Output = Result<(), TunnelError>>
where
    C: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    let close_signal = options.close_signal.clone();
    let mut tunnel = Tunnel::new(client, gateway, early, options);
    // An `async fn` would hold its arguments beside the tunnel that is made of them, as long as the
    // tunnel lasts.
    async move {
        let ended = {
            let mut closing = pin!(close_signal.wait());
            poll_fn(|cx| {
                while !matches!(tunnel.stage, TunnelStage::Rejecting { .. }) {
                    // A tunnel that the gateway has closed ends by itself, so a drain changes
                    // nothing.
                    let ignores_drain = tunnel.stage != TunnelStage::Open;
                    let Poll::Ready(reason) = closing.as_mut().poll_reason(cx, ignores_drain) else { break };
                    tunnel.begin_close(reason)?;
                }
                tunnel.poll(cx)
            })
            .await
        };
        // The caller resets the client's stream or connection. Bytes that the gateway sent before
        // may leave first.
        if matches!(ended, Err(TunnelError::Broken(_))) {
            tokio::time::sleep(LAST_BYTES_GRACE).await;
        }
        ended
    }
}

/// How far the tunnel is in closing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TunnelStage {
    Open,
    /// loopgate shuts down. A WebSocket gets its close frame at `quiet_at`, which is put off while
    /// bytes pass, or at `limit`. Other tunnels stay open until they end or the shutdown aborts
    /// them.
    AwaitingQuiet {
        limit: Instant,
        quiet_at: Instant,
    },
    /// The close frame for the shutdown is due or sent. The client may answer the close frame until
    /// `until`.
    CloseSent {
        until: Instant,
    },
    /// The gateway has closed its direction. The client may close its own until `until`.
    GatewayClosed {
        until: Instant,
    },
    /// The client is refused or revoked: its bytes are not read any more. The close frame to it may
    /// leave until `until`.
    Rejecting {
        until: Instant,
    },
}

/// The two streams of a tunnel, and the state of each direction.
struct Tunnel<C, G> {
    client: C,
    /// Stays readable after a failed write: a client that still sends to a gateway that has closed
    /// must get the last bytes of the gateway.
    gateway: ReadableAfterWriteError<G>,
    to_gateway: Direction,
    to_client: Direction,
    is_websocket: bool,
    quiet_limit: QuietLimit,
    /// Whether the last bytes came from the client.
    is_unanswered: bool,
    stage: TunnelStage,
    timer: Option<LazyTimer>,
}

impl<C, G> Tunnel<C, G>
where
    C: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    /// Creates the state of a tunnel. `early` are the bytes that were already read for the gateway
    /// and for the client.
    fn new(client: C, gateway: G, early: (Bytes, Bytes), options: TunnelOptions) -> Self {
        let is_websocket = options.is_websocket;
        let lease = |is_h2| BufferLease::new(&options.buffer_budget, is_h2);
        let (to_gateway_lease, to_client_lease) = (lease(false), lease(options.is_h2));
        let mut to_gateway = Direction::new(early.0, to_gateway_lease, options.received_bytes, None);
        to_gateway.set_first_message(options.first_message);
        let frames = is_websocket.then(WebSocketFrames::default);
        let mut to_client = Direction::new(early.1, to_client_lease, options.sent_bytes, frames);
        to_client.set_connect_response(options.connect_response);
        Self {
            client,
            gateway: ReadableAfterWriteError::new(gateway),
            to_gateway,
            to_client,
            is_websocket,
            quiet_limit: options.quiet_limit,
            is_unanswered: false,
            stage: TunnelStage::Open,
            timer: None,
        }
    }

    /// Begins to close for `reason`.
    ///
    /// # Errors
    /// The tunnel must end at once, because it can't send a close frame, or has sent one.
    fn begin_close(&mut self, reason: CloseReason) -> Result<(), TunnelError> {
        let now = Instant::now();
        self.stage = match reason {
            CloseReason::Revoked if self.is_websocket && !self.to_client.is_close_sent => {
                self.to_client.close_with = Some(Bytes::from_static(&POLICY_VIOLATION));
                TunnelStage::Rejecting { until: now + REVOKED_GRACE }
            }
            CloseReason::Revoked => return Err(TunnelError::Unauthorized),
            CloseReason::Drain => {
                TunnelStage::AwaitingQuiet { limit: now + (self.quiet_limit)(), quiet_at: now + self.quiet_time() }
            }
        };
        Ok(())
    }

    /// Copies in both directions, and moves on from stage to stage; ready when the tunnel has
    /// ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        if let TunnelStage::Rejecting { until } = self.stage {
            return self.poll_rejecting(cx, until);
        }
        loop {
            let to_gateway_done = self.to_gateway.poll_copy(cx, &mut self.client, &mut self.gateway)?.is_ready();
            if let Some(close) = self.to_gateway.refused_with.take() {
                self.to_client.close_with = Some(*close);
                return self.begin_rejecting(cx, REVOKED_GRACE);
            }
            let to_client_done = self.to_client.poll_copy(cx, &mut self.gateway, &mut self.client)?.is_ready();
            match self.poll_gate(cx) {
                GateChange::Unchanged => {}
                GateChange::Progressed => continue,
                // The gateway closes the WebSocket with its own reason.
                GateChange::Refused => return self.begin_rejecting(cx, TUNNEL_CLOSE_GRACE),
            }
            if to_gateway_done && to_client_done {
                return Poll::Ready(Ok(()));
            }
            self.restart_quiet_time_if_moved();
            // A WebSocket can't be half-closed (RFC 6455 section 7.1.1). If loopgate closed the
            // client's side at once, a client that is still sending could lose the last frames, so
            // it may close first.
            if to_client_done && (self.is_websocket || self.gateway.has_write_failed()) {
                let until = match self.stage {
                    TunnelStage::GatewayClosed { until } => until,
                    _ => Instant::now() + TUNNEL_CLOSE_GRACE,
                };
                self.stage = TunnelStage::GatewayClosed { until };
                return self.poll_timer(cx, until).map(|_| Ok(()));
            }
            match self.stage {
                TunnelStage::AwaitingQuiet { limit, quiet_at } if self.is_websocket => {
                    ready!(self.poll_timer(cx, quiet_at.min(limit)));
                    self.to_client.close_with = Some(Bytes::from_static(&GOING_AWAY));
                    self.stage = TunnelStage::CloseSent { until: Instant::now() + TUNNEL_CLOSE_GRACE };
                }
                TunnelStage::CloseSent { until } => return self.poll_timer(cx, until).map(|_| Ok(())),
                // The tunnel is open, or it is no WebSocket, so there is no close frame to send.
                _ => return Poll::Pending,
            }
        }
    }

    /// Stops reading from the client. Bytes to it may leave for the time `grace`.
    fn begin_rejecting(&mut self, cx: &Context<'_>, grace: Duration) -> Poll<Result<(), TunnelError>> {
        self.stage = TunnelStage::Rejecting { until: Instant::now() + grace };
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends the last bytes and the close frame to a client that is refused or revoked; then fails
    /// with [`TunnelError::Unauthorized`].
    fn poll_rejecting(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<Result<(), TunnelError>> {
        let ended = self.to_client.poll_copy(cx, &mut self.gateway, &mut self.client)?.is_ready();
        // If the gateway sent a close frame, loopgate sends none.
        self.to_client.is_close_sent |= self.to_client.gateway_sent().closed;
        if ended || self.to_client.is_close_delivered() || self.poll_timer(cx, until).is_ready() {
            let _ = Pin::new(&mut self.client).poll_shutdown(cx);
            return Poll::Ready(Err(TunnelError::Unauthorized));
        }
        Poll::Pending
    }

    /// Tells the gate what the gateway has sent, and whether a deadline of the gate has passed;
    /// returns the change.
    fn poll_gate(&mut self, cx: &mut Context<'_>) -> GateChange {
        if self.to_gateway.gate.is_none() {
            return GateChange::Unchanged;
        }
        let change = self.to_gateway.observe_gateway(self.to_client.gateway_sent());
        if !matches!(change, GateChange::Unchanged) {
            if self.to_gateway.gate.is_none() {
                self.to_client.connect_response = None;
            }
            return change;
        }
        if let Some((due, reason)) = self.to_gateway.gate.as_ref().and_then(|gate| gate.deadline())
            && self.poll_timer(cx, due).is_ready()
        {
            self.to_gateway.refused_with = Some(Box::new(policy_violation(reason)));
            return GateChange::Progressed;
        }
        GateChange::Unchanged
    }

    /// Records which directions carried bytes. If one did, puts off the time at which the tunnel
    /// counts as quiet.
    fn restart_quiet_time_if_moved(&mut self) {
        let (from_client, from_gateway) = (self.to_gateway.take_moved_flag(), self.to_client.take_moved_flag());
        if from_client || from_gateway {
            self.is_unanswered = !from_gateway;
        }
        if let TunnelStage::AwaitingQuiet { limit, .. } = self.stage
            && (from_client || from_gateway)
        {
            self.stage = TunnelStage::AwaitingQuiet { limit, quiet_at: Instant::now() + self.quiet_time() };
        }
    }

    /// Returns the time without a byte after which the tunnel counts as quiet.
    fn quiet_time(&self) -> Duration {
        if self.is_unanswered { QUIET_TIME_UNANSWERED } else { QUIET_TIME }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<Instant> {
        self.timer.get_or_insert_with(|| LazyTimer::new(TUNNEL_CLOSE_GRACE)).poll_due(cx, Some(until))
    }
}

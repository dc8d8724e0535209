//! Joins a client and the gateway on one task, with no buffer of its own while both are quiet.

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

use super::buffers::{BufferLease, TunnelBuffers};
use super::connect_response::ConnectResponse;
use super::direction::{Direction, GateChange};
use super::first_message::FirstMessage;
use super::websocket_frames::{GOING_AWAY, POLICY_VIOLATION, WebSocketFrames, policy_violation};
use crate::proxy::close_signal::{CloseReason, CloseSignal, REVOKED_GRACE};
use crate::proxy::lazy_timer::LazyTimer;
use crate::proxy::upstream::readable_after_write_error::ReadableAfterWriteError;

/// How long a client may take to close after its close frame was sent, after the gateway closed the
/// WebSocket, or after the gateway closed another tunnel and a write to it failed.
const TUNNEL_CLOSE_GRACE: Duration = Duration::from_secs(3);
/// How long the last bytes may take to leave after either side broke off.
const LAST_BYTES_GRACE: Duration = Duration::from_millis(50);
/// A WebSocket is at rest when no byte has passed for this time.
const REST: Duration = Duration::from_millis(250);
/// The same where the client spoke last, since the gateway may yet answer.
const REST_UNANSWERED: Duration = Duration::from_secs(1);

/// Why a tunnel ended before both directions were closed.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The client lost its authorization, or its first message was refused.
    #[error("the client is not authorized, or is no longer")]
    Unauthorized,
    /// A side broke off.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// Returns how long a WebSocket may take to come to rest before it is closed for a shutdown: a
/// reload may change it while the tunnel is open.
pub type RestLimit = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What a tunnel needs besides its two streams.
pub struct TunnelOptions {
    /// Whether it is a WebSocket, so that a close frame can be sent between two frames.
    pub is_websocket: bool,
    /// Whether the client is a stream of an HTTP/2 connection.
    pub is_h2: bool,
    /// The memory for what can't be passed on at once.
    pub buffers: Arc<TunnelBuffers>,
    /// Tells it to close.
    pub close_signal: CloseSignal,
    /// How long a WebSocket may take to come to rest before it is closed for a shutdown.
    pub rest_limit: RestLimit,
    /// Checks the client's first message before the gateway gets it. What follows waits for `connect_response`.
    pub first_message: Option<FirstMessage>,
    /// Finds the gateway's response to that message.
    pub connect_response: Option<ConnectResponse>,
    /// Bytes from the client.
    pub received: Counter,
    /// Bytes to the client.
    pub sent: Counter,
}

/// Joins `client` and `gateway` until both directions are closed, one fails, or the connection is revoked.
///
/// When loopgate shuts down, a WebSocket first finishes the messages under way, and then gets a close frame with
/// status 1001. One that is revoked gets status 1008 at the end of the current frame, if that comes soon.
///
/// `early` are bytes that were read together with the heads: from the client, and from the gateway.
///
/// # Errors
/// Either side broke off, or the connection was revoked.
pub async fn run<C, G>(
    client: C,
    gateway: G,
    early: (Bytes, Bytes),
    mut options: TunnelOptions,
) -> Result<(), TunnelError>
where
    C: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    let mut tunnel = Tunnel::new(client, gateway, early, &mut options);
    let (closing, revoked) = options.close_signal.futures();
    let (mut closing, mut revoked) = (pin!(closing), pin!(revoked));
    let ended = poll_fn(|cx| {
        while !matches!(tunnel.stage, TunnelStage::Rejecting { .. }) {
            // A tunnel that the gateway has closed ends by itself, so a drain changes nothing.
            let ignores_drain = tunnel.stage != TunnelStage::Open;
            let signal = options.close_signal.poll_reason(cx, closing.as_mut(), revoked.as_mut(), ignores_drain);
            let Poll::Ready(reason) = signal else { break };
            tunnel.begin_close(reason)?;
        }
        tunnel.poll(cx)
    })
    .await;
    // The caller resets the client's stream or connection. What the gateway sent before may leave first.
    if matches!(ended, Err(TunnelError::Broken(_))) {
        tokio::time::sleep(LAST_BYTES_GRACE).await;
    }
    ended
}

/// The stage of closing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TunnelStage {
    Open,
    /// loopgate shuts down. A WebSocket gets its close frame at `quiet_at`, which moves while bytes
    /// pass, or at `limit`. Other tunnels have no close frame: they go on until they end or are aborted.
    AwaitingRest {
        limit: Instant,
        quiet_at: Instant,
    },
    /// The close frame for a shutdown is on its way. The client may answer it until `until`.
    CloseSent {
        until: Instant,
    },
    /// The gateway has closed. The client may do the same until `until`.
    GatewayClosed {
        until: Instant,
    },
    /// The client is refused or revoked: nothing more from it is forwarded. Its close frame may leave until `until`.
    Rejecting {
        until: Instant,
    },
}

/// A tunnel that runs.
struct Tunnel<C, G> {
    client: C,
    /// Readable after a failed write: a client that is still sending to a gateway that has closed
    /// must get what the gateway sent last.
    gateway: ReadableAfterWriteError<G>,
    to_gateway: Direction,
    to_client: Direction,
    is_websocket: bool,
    rest_limit: RestLimit,
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
    fn new(client: C, gateway: G, early: (Bytes, Bytes), options: &mut TunnelOptions) -> Self {
        let is_websocket = options.is_websocket;
        let lease = |is_h2| BufferLease::new(&options.buffers, is_h2);
        let (to_gateway_lease, to_client_lease) = (lease(false), lease(options.is_h2));
        let mut to_gateway = Direction::new(early.0, to_gateway_lease, options.received.clone(), None);
        to_gateway.set_first_message(options.first_message.take());
        let frames = is_websocket.then(WebSocketFrames::default);
        let mut to_client = Direction::new(early.1, to_client_lease, options.sent.clone(), frames);
        to_client.set_connect_response(options.connect_response.take());
        Self {
            client,
            gateway: ReadableAfterWriteError::new(gateway),
            to_gateway,
            to_client,
            is_websocket,
            rest_limit: Arc::clone(&options.rest_limit),
            is_unanswered: false,
            stage: TunnelStage::Open,
            timer: None,
        }
    }

    /// Begins to close for `reason`.
    ///
    /// # Errors
    /// The tunnel must end at once.
    fn begin_close(&mut self, reason: CloseReason) -> Result<(), TunnelError> {
        let now = Instant::now();
        self.stage = match reason {
            CloseReason::Revoked if self.is_websocket && !self.to_client.is_close_sent => {
                self.to_client.close_with = Some(Bytes::from_static(&POLICY_VIOLATION));
                TunnelStage::Rejecting { until: now + REVOKED_GRACE }
            }
            CloseReason::Revoked => return Err(TunnelError::Unauthorized),
            CloseReason::Drain => {
                TunnelStage::AwaitingRest { limit: now + (self.rest_limit)(), quiet_at: now + self.rest_time() }
            }
        };
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        if let TunnelStage::Rejecting { until } = self.stage {
            return self.poll_rejecting(cx, until);
        }
        loop {
            let to_gateway_done = self.to_gateway.poll_copy(cx, &mut self.client, &mut self.gateway)?.is_ready();
            if let Some(close) = self.to_gateway.refused_with.take() {
                self.to_client.close_with = Some(close);
                return self.reject(cx, REVOKED_GRACE);
            }
            let to_client_done = self.to_client.poll_copy(cx, &mut self.gateway, &mut self.client)?.is_ready();
            match self.poll_gate(cx) {
                GateChange::Unchanged => {}
                GateChange::Progressed => continue,
                // The gateway closes with its own reason. Its client's answer to that does not matter any more.
                GateChange::Refused => return self.reject(cx, TUNNEL_CLOSE_GRACE),
            }
            if to_gateway_done && to_client_done {
                return Poll::Ready(Ok(()));
            }
            self.note_bytes_moved();
            // A WebSocket has no half-closes (RFC 6455 section 7.1.1): once closed by the gateway
            // it is closed. To close at once could cost a client that is still sending the last
            // frames, so it has a moment to close itself.
            if to_client_done && (self.is_websocket || self.gateway.state().has_write_failed()) {
                let until = match self.stage {
                    TunnelStage::GatewayClosed { until } => until,
                    _ => Instant::now() + TUNNEL_CLOSE_GRACE,
                };
                self.stage = TunnelStage::GatewayClosed { until };
                return self.poll_timer(cx, until).map(|_| Ok(()));
            }
            match self.stage {
                TunnelStage::AwaitingRest { limit, quiet_at } if self.is_websocket => {
                    ready!(self.poll_timer(cx, quiet_at.min(limit)));
                    self.to_client.close_with = Some(Bytes::from_static(&GOING_AWAY));
                    self.stage = TunnelStage::CloseSent { until: Instant::now() + TUNNEL_CLOSE_GRACE };
                }
                TunnelStage::CloseSent { until } => return self.poll_timer(cx, until).map(|_| Ok(())),
                // A tunnel that is open, or that has no close frame.
                _ => return Poll::Pending,
            }
        }
    }

    /// Stops reading from the client; what is due to it has `grace` to leave.
    fn reject(&mut self, cx: &Context<'_>, grace: Duration) -> Poll<Result<(), TunnelError>> {
        self.stage = TunnelStage::Rejecting { until: Instant::now() + grace };
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends what is due to a client that is refused or revoked; ends with an error.
    fn poll_rejecting(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<Result<(), TunnelError>> {
        let ended = self.to_client.poll_copy(cx, &mut self.gateway, &mut self.client)?.is_ready();
        // The gateway's own close frame gives the better reason.
        self.to_client.is_close_sent |= self.to_client.gateway_sent().closed;
        if ended || self.to_client.is_close_delivered() || self.poll_timer(cx, until).is_ready() {
            let _ = Pin::new(&mut self.client).poll_shutdown(cx);
            return Poll::Ready(Err(TunnelError::Unauthorized));
        }
        Poll::Pending
    }

    /// Returns what the gateway's answers, or the end of the wait for one, mean for the first message.
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
            self.to_gateway.refused_with = Some(policy_violation(reason));
            return GateChange::Progressed;
        }
        GateChange::Unchanged
    }

    /// Notes which directions moved bytes, and moves the moment of rest accordingly.
    fn note_bytes_moved(&mut self) {
        let (from_client, from_gateway) = (self.to_gateway.take_has_moved(), self.to_client.take_has_moved());
        if from_client || from_gateway {
            self.is_unanswered = !from_gateway;
        }
        if let TunnelStage::AwaitingRest { limit, .. } = self.stage
            && (from_client || from_gateway)
        {
            self.stage = TunnelStage::AwaitingRest { limit, quiet_at: Instant::now() + self.rest_time() };
        }
    }

    fn rest_time(&self) -> Duration {
        if self.is_unanswered { REST_UNANSWERED } else { REST }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<Instant> {
        self.timer.get_or_insert_with(|| LazyTimer::new(TUNNEL_CLOSE_GRACE)).poll_due(cx, Some(until))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// The options of a WebSocket that drains when `end` is cancelled.
    fn options(end: &CancellationToken) -> TunnelOptions {
        TunnelOptions {
            is_websocket: true,
            is_h2: false,
            buffers: TunnelBuffers::new(1 << 20),
            close_signal: CloseSignal::new(end),
            rest_limit: Arc::new(|| Duration::from_secs(4)),
            first_message: None,
            connect_response: None,
            received: Counter::default(),
            sent: Counter::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_close_frame_follows_a_frame_that_was_under_way_though_the_gateway_is_quiet() {
        let end = CancellationToken::new();
        let ((mut client, near), (far, mut gateway)) = (duplex(16), duplex(1024));
        let frame = [&[0x82, 100][..], &[7; 100]].concat();
        gateway.write_all(&frame).await.unwrap();
        let reading = async {
            // The client has read a part of a frame when loopgate begins to shut down.
            let mut got = [0; 10];
            client.read_exact(&mut got).await.unwrap();
            end.cancel();
            let mut rest = vec![0; frame.len() - got.len() + GOING_AWAY.len()];
            client.read_exact(&mut rest).await.unwrap();
            assert_eq!([&got[..], &rest].concat(), [&frame[..], &GOING_AWAY].concat());
        };
        tokio::select! {
            ended = run(near, far, (Bytes::new(), Bytes::new()), options(&end)) => panic!("{ended:?}"),
            read = tokio::time::timeout(Duration::from_secs(5), reading) => read.expect("the close frame"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_under_way_is_answered_before_the_close_frame() {
        let end = CancellationToken::new();
        let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
        let gateway = async {
            let mut message = [0; 7];
            gateway.read_exact(&mut message).await.unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
            gateway.write_all(&[0x81, 1, b'b']).await.unwrap();
            std::future::pending::<()>().await
        };
        let client = async {
            client.write_all(&[0x81, 0x81, 0, 0, 0, 0, b'a']).await.unwrap();
            end.cancel();
            let mut got = [0; 7];
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [0x81, 1, b'b', 0x88, 0x02, 0x03, 0xe9]);
        };
        tokio::select! {
            ended = run(near, far, (Bytes::new(), Bytes::new()), options(&end)) => panic!("{ended:?}"),
            () = gateway => {}
            read = tokio::time::timeout(Duration::from_secs(5), client) => read.expect("an answer and the close frame"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_never_rests_does_not_put_off_the_close_frame_for_ever() {
        let end = CancellationToken::new();
        let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
        let gateway = async {
            loop {
                gateway.write_all(&[0x81, 1, b'x']).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let started = Instant::now();
        let client = async {
            end.cancel();
            let mut got = Vec::new();
            while !got.ends_with(&GOING_AWAY) {
                got.push(client.read_u8().await.unwrap());
            }
        };
        tokio::select! {
            ended = run(near, far, (Bytes::new(), Bytes::new()), options(&end)) => panic!("{ended:?}"),
            () = gateway => {}
            read = tokio::time::timeout(Duration::from_secs(5), client) => read.expect("the close frame"),
        }
        assert!(started.elapsed() >= Duration::from_secs(4), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_client_gets_status_1008_at_the_end_of_the_current_frame() {
        for (sent, expected) in [(100, true), (40, false)] {
            let options = options(&CancellationToken::new());
            let signal = options.close_signal.clone();
            let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
            let frame = [&[0x82, 100][..], &[7; 100]].concat();
            gateway.write_all(&frame[..2 + 20]).await.unwrap();
            let reading = async {
                let mut got = vec![0; 22];
                client.read_exact(&mut got).await.unwrap();
                signal.revoke();
                client.write_all(b"must not arrive").await.unwrap();
                gateway.write_all(&frame[22..2 + sent]).await.unwrap();
                client.read_to_end(&mut got).await.unwrap();
                assert_eq!(got.ends_with(&POLICY_VIOLATION), expected);
                assert_eq!(got.len(), 2 + sent + if expected { 4 } else { 0 });
                let mut up = Vec::new();
                gateway.read_to_end(&mut up).await.unwrap();
                assert!(up.is_empty(), "{up:?}");
            };
            let joined = run(near, far, (Bytes::new(), Bytes::new()), options);
            let (ended, read) = tokio::join!(joined, tokio::time::timeout(Duration::from_secs(2), reading));
            assert!(matches!(ended, Err(TunnelError::Unauthorized)), "{ended:?}");
            read.expect("the end within a second");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_still_sending_gets_all_that_the_gateway_sent() {
        let ((mut client, near), (far, gateway)) = (duplex(64), duplex(100_000));
        let (read, mut write) = tokio::io::split(gateway);
        let sent = [&[0x82, 126, 0x7f, 0xff][..], &[7; 0x7fff], &[0x88, 2, 3, 0xf0]].concat();
        write.write_all(&sent).await.unwrap();
        // Closed in both directions: what the client writes from now on fails.
        drop((read, write));
        let chatting = async {
            let mut got = Vec::new();
            while got.len() < sent.len() {
                client.write_all(&[0x81, 0x80, 0, 0, 0, 0]).await.unwrap();
                got.push(client.read_u8().await.unwrap());
            }
            assert!(got == sent);
            // It has a moment to close, and no longer.
            std::future::pending::<()>().await
        };
        tokio::select! {
            ended = run(near, far, (Bytes::new(), Bytes::new()), options(&CancellationToken::new())) => ended.unwrap(),
            () = chatting => {}
        }
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}

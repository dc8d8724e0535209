//! Holds back what a client sends after its first message until the gateway has answered that
//! message.
//!
//! Until a `connect` has succeeded, the gateway handles messages concurrently. So it would also
//! handle a second `connect` that follows the first one at once, although only the first one was
//! checked.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::connect_response::GatewaySent;
use super::first_message::{FirstMessage, Verdict};
use super::first_message_budget::FirstMessageLease;
use super::websocket_frames::{WebSocketFrames, policy_violation, protocol_error};

/// The time for the client's first message, from its first byte or from the gateway's request for
/// it. The gateway itself waits for as long.
const FIRST_MESSAGE_LIMIT: Duration = Duration::from_secs(15);
/// The time for the gateway's answer to a `connect`. The gateway itself gives up after 15 s.
const RESPONSE_LIMIT: Duration = Duration::from_secs(30);

/// The gate between a client and the gateway: which bytes pass, and which are held back.
pub struct Gate {
    stage: GateStage,
    /// The bytes that were read together with the first message and follow it.
    after_message: Bytes,
    /// The memory of `after_message`.
    lease: Option<FirstMessageLease>,
    /// Whether the gateway has sent a challenge, which asks for a `connect`.
    is_challenged: bool,
    /// Whether all bytes pass once it is known that the gateway speaks another protocol.
    allows_other_protocols: bool,
    deadline: Option<Instant>,
}

/// The progress of the first message.
enum GateStage {
    /// The first message is not complete yet.
    Check(Box<FirstMessage>),
    /// The first message is a `connect`. It passes once the future completes.
    Prepare(BoxFuture<'static, ()>, Bytes),
    /// The `connect` has passed, and the gateway has not answered it yet.
    Response,
    /// The first message is not a `connect`. It passes, up to its end.
    Other(WebSocketFrames),
    /// A message that is not a `connect` has passed. The gateway has not shown yet which protocol
    /// it speaks.
    Protocol,
    /// Nothing more passes.
    Discard,
}

/// The next step of the tunnel.
pub enum GateStep {
    /// Wait for further bytes.
    Wait,
    /// Send these bytes to the gateway.
    Pass(Bytes),
    /// Send these bytes to the gateway, and all later ones without the gate.
    Open(Bytes),
    /// End the tunnel: the gateway has refused the `connect`, or closes without an answer.
    Refused,
    /// Close the WebSocket with this frame.
    Close(Bytes),
}

impl Gate {
    /// Creates a gate. `first` checks the first message.
    pub fn new(first: FirstMessage) -> Self {
        let allows_other_protocols = first.allows_other_protocols();
        Self {
            stage: GateStage::Check(Box::new(first)),
            after_message: Bytes::new(),
            lease: None,
            is_challenged: false,
            allows_other_protocols,
            deadline: None,
        }
    }

    /// Returns how many bytes may be read from the client now.
    pub fn readable_bytes(&self) -> usize {
        match &self.stage {
            GateStage::Check(first) => first.remaining_capacity().max(1),
            GateStage::Other(_) | GateStage::Discard => usize::MAX,
            GateStage::Prepare(..) | GateStage::Response | GateStage::Protocol => 0,
        }
    }

    /// Takes bytes that were read from the client; returns the next step.
    pub fn push_client_bytes(&mut self, read: Bytes) -> GateStep {
        match &mut self.stage {
            GateStage::Check(first) => match first.check_next_bytes(&read) {
                Verdict::Wait => {
                    self.set_deadline_once(FIRST_MESSAGE_LIMIT);
                    GateStep::Wait
                }
                Verdict::Connect { ready, message, rest } => {
                    self.lease = first.take_lease();
                    self.stage = GateStage::Prepare(ready, message);
                    self.after_message = rest;
                    self.deadline = None;
                    GateStep::Wait
                }
                Verdict::Other(_) if self.is_challenged => close_for_other_message(),
                Verdict::Other(held) => {
                    self.lease = first.take_lease();
                    self.stage = GateStage::Other(WebSocketFrames::default());
                    self.deadline = None;
                    self.pass_other_message(held)
                }
                Verdict::Close(held) => {
                    self.stage = GateStage::Discard;
                    self.deadline = None;
                    GateStep::Pass(held)
                }
                Verdict::Control(frames) => {
                    if first.is_holding() {
                        self.set_deadline_once(FIRST_MESSAGE_LIMIT);
                    }
                    GateStep::Pass(frames)
                }
                Verdict::Refuse(reason) => GateStep::Close(policy_violation(&reason)),
                Verdict::Malformed(reason) => GateStep::Close(protocol_error(&reason)),
            },
            GateStage::Other(_) => self.pass_other_message(read),
            GateStage::Prepare(..) | GateStage::Response | GateStage::Protocol | GateStage::Discard => GateStep::Wait,
        }
    }

    /// Passes the bytes up to the end of a first message that is not a `connect`.
    fn pass_other_message(&mut self, mut bytes: Bytes) -> GateStep {
        let GateStage::Other(frames) = &mut self.stage else { return GateStep::Wait };
        if let Some(end) = frames.parse_to_message_end(&bytes) {
            self.stage = GateStage::Protocol;
            self.after_message = bytes.split_off(end);
        }
        GateStep::Pass(bytes)
    }

    /// Completes with the bytes of the `connect` once it may pass.
    pub fn poll_checked_connect(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let GateStage::Prepare(ready, message) = &mut self.stage else { return Poll::Pending };
        if ready.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let message = std::mem::take(message);
        self.stage = GateStage::Response;
        self.set_deadline_once(RESPONSE_LIMIT);
        Poll::Ready(message)
    }

    /// Takes what the gateway has sent so far; returns the next step.
    pub fn observe_gateway(&mut self, sent: GatewaySent) -> GateStep {
        match self.stage {
            GateStage::Response => self.step_after_answer(sent),
            _ => self.step_after_challenge(sent.challenge),
        }
    }

    /// Returns the next step after the gateway's answer to the `connect`, if there is one. After a
    /// refusal or a close frame, discards the client's bytes, those that were held back too.
    fn step_after_answer(&mut self, sent: GatewaySent) -> GateStep {
        match sent.answer {
            Some(true) => return GateStep::Open(std::mem::take(&mut self.after_message)),
            None if !sent.closed => return GateStep::Wait,
            // The gateway may have accepted the `connect`, but it closes, so that it takes no
            // further message.
            Some(false) | None => {}
        }
        self.stage = GateStage::Discard;
        self.after_message = Bytes::new();
        drop(self.lease.take());
        self.deadline = None;
        GateStep::Refused
    }

    /// Returns the next step after the gateway's first message. `challenge` is whether that asks
    /// for a `connect`.
    fn step_after_challenge(&mut self, challenge: Option<bool>) -> GateStep {
        match (challenge, &mut self.stage) {
            (Some(true), GateStage::Other(_) | GateStage::Protocol) => close_for_other_message(),
            (Some(true), GateStage::Check(_)) => {
                if !self.is_challenged {
                    self.is_challenged = true;
                    self.set_deadline_once(FIRST_MESSAGE_LIMIT);
                }
                GateStep::Wait
            }
            (Some(false), GateStage::Check(first)) if self.allows_other_protocols => GateStep::Open(first.take_held()),
            (Some(false), GateStage::Other(_) | GateStage::Protocol) if self.allows_other_protocols => {
                GateStep::Open(std::mem::take(&mut self.after_message))
            }
            _ => GateStep::Wait,
        }
    }

    /// Sets the deadline, unless one is set already.
    fn set_deadline_once(&mut self, limit: Duration) {
        self.deadline.get_or_insert_with(|| Instant::now() + limit);
    }

    /// Returns the time at which the WebSocket must close, and the reason for the close frame.
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        let reason = match self.stage {
            GateStage::Response => "loopgate: the gateway did not answer the connect in time",
            _ => "loopgate: the first message was not complete in time",
        };
        self.deadline.map(|deadline| (deadline, reason))
    }
}

fn close_for_other_message() -> GateStep {
    GateStep::Close(policy_violation("loopgate: the first message must be a connect"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::proxy::close_signal::CloseSignal;
    use crate::proxy::tunnel::buffers::TunnelBufferBudget;
    use crate::proxy::tunnel::connect_response::{ConnectResponseWatcher, PendingConnect};
    use crate::proxy::tunnel::first_message::Checked;
    use crate::proxy::tunnel::first_message_budget::FirstMessageBudget;
    use crate::proxy::tunnel::{TunnelError, TunnelOptions, run};

    /// Returns a message of a client, masked with zeros.
    fn client_message(text: &str) -> Vec<u8> {
        let length = u8::try_from(text.len()).unwrap();
        assert!(length < 126);
        [&[0x81, 0x80 | length, 0, 0, 0, 0][..], text.as_bytes()].concat()
    }

    fn gateway_message(text: &str) -> Vec<u8> {
        [&[0x81, u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat()
    }

    const CHALLENGE: &str = r#"{"event":"connect.challenge"}"#;

    /// Runs a tunnel whose check treats `{"a"...` as a `connect` with the id 1, and all else as
    /// other messages.
    async fn run_tunnel(client: DuplexStream, gateway: DuplexStream, objects_only: bool) -> Result<(), TunnelError> {
        let pending = Arc::new(PendingConnect::default());
        let response = ConnectResponseWatcher::new(Arc::clone(&pending));
        let check = move |message: &[u8]| {
            if message.starts_with(b"{\"a\"") {
                pending.expect_answer("1", |_| {});
                return Checked::Connect(Box::pin(tokio::task::yield_now()));
            }
            Checked::Other
        };
        let options = TunnelOptions {
            is_websocket: true,
            is_h2: false,
            buffer_budget: TunnelBufferBudget::new(1 << 20),
            close_signal: CloseSignal::new(&CancellationToken::new()),
            quiet_limit: Arc::new(|| Duration::from_secs(4)),
            first_message: Some(FirstMessage::new(objects_only, FirstMessageBudget::new(1 << 20), Box::new(check))),
            connect_response: Some(response),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
        };
        run(client, gateway, (Bytes::new(), Bytes::new()), options).await
    }

    /// Returns the bytes that arrive at `stream` within a second.
    async fn read_for_a_second(stream: &mut DuplexStream) -> Vec<u8> {
        let mut got = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut got)).await;
        got
    }

    #[tokio::test(start_paused = true)]
    async fn what_follows_a_connect_reaches_the_gateway_only_once_it_is_accepted() {
        let (first, second) = (client_message(r#"{"a":1}"#), client_message(r#"{"a":2}"#));
        for accepted in [true, false] {
            let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
            let mut tasks = JoinSet::new();
            let tunnel = tasks.spawn(run_tunnel(near, far, true));
            client.write_all(&[&first[..], &second].concat()).await.unwrap();
            gateway.write_all(&gateway_message(CHALLENGE)).await.unwrap();
            assert_eq!(read_for_a_second(&mut gateway).await, first);
            gateway.write_all(&[0x89, 0]).await.unwrap();
            client.write_all(&second).await.unwrap();
            assert_eq!(
                read_for_a_second(&mut gateway).await,
                b"",
                "no later message passes, whether it was read with the connect or after it"
            );
            let answer = gateway_message(&format!(r#"{{"type":"res","id":"1","ok":{accepted}}}"#));
            gateway.write_all(&answer).await.unwrap();
            let expected = if accepted { [&second[..], &second].concat() } else { Vec::new() };
            assert_eq!(read_for_a_second(&mut gateway).await, expected, "{accepted}");
            let close = [0x88, 2, 3, 0xf0];
            gateway.write_all(&close).await.unwrap();
            let got = read_for_a_second(&mut client).await;
            assert!(got.ends_with(&[&answer[..], &close].concat()), "{got:?}");
            assert_eq!(tunnel.is_finished(), !accepted, "after a refusal, the gateway's close frame ends the tunnel");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_closes_without_an_answer_ends_the_tunnel() {
        let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
        let mut tasks = JoinSet::new();
        let tunnel = tasks.spawn(run_tunnel(near, far, true));
        client.write_all(&client_message(r#"{"a":1}"#)).await.unwrap();
        read_for_a_second(&mut gateway).await;
        gateway.write_all(&[0x88, 2, 3, 0xe8]).await.unwrap();
        assert_eq!(read_for_a_second(&mut client).await, [0x88, 2, 3, 0xe8]);
        assert!(tunnel.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn another_message_opens_the_gate_only_if_the_gateway_speaks_another_protocol() {
        let (connect, close) = (client_message(r#"{"a":1}"#), 0x88);
        for other in [client_message("{}"), client_message("RFB 003.008")] {
            // The gateway's first message, whether it comes before the client's, and whether the
            // gate opens.
            for (greeting, gateway_first, opens) in [
                (CHALLENGE, true, false),
                (CHALLENGE, false, false),
                ("RFB 003.008", true, true),
                ("RFB 003.008", false, true),
            ] {
                let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
                let mut tasks = JoinSet::new();
                tasks.spawn(run_tunnel(near, far, true));
                if gateway_first {
                    gateway.write_all(&gateway_message(greeting)).await.unwrap();
                    read_for_a_second(&mut client).await;
                }
                client.write_all(&[&other[..], &connect].concat()).await.unwrap();
                let mut got = read_for_a_second(&mut gateway).await;
                if !gateway_first {
                    assert_eq!(got, other, "the message passes: in another protocol the client may speak first");
                    gateway.write_all(&gateway_message(greeting)).await.unwrap();
                    got.extend(read_for_a_second(&mut gateway).await);
                }
                assert_eq!(got.ends_with(&connect), opens, "{greeting} {gateway_first}");
                let sent = read_for_a_second(&mut client).await;
                assert_eq!(sent.contains(&close), !opens, "{sent:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_must_complete_its_first_message_in_time_once_it_is_asked_for() {
        let part = &client_message(r#"{"a":1}"#)[..9];
        let ping = [0x89, 0x80, 0, 0, 0, 0];
        let with_ping = [&ping[..], part].concat();
        // Whether the gateway asks for the message, what the client sends, and whether the tunnel
        // is closed.
        for (asked, begun, closed) in [
            (true, &[][..], true),
            (false, part, true),
            (false, &with_ping, true),
            (false, &ping, false),
            (false, &[], false),
        ] {
            let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
            let mut tasks = JoinSet::new();
            let tunnel = tasks.spawn(run_tunnel(near, far, true));
            if asked {
                gateway.write_all(&gateway_message(CHALLENGE)).await.unwrap();
            }
            client.write_all(begun).await.unwrap();
            tokio::time::sleep(FIRST_MESSAGE_LIMIT - Duration::from_secs(1)).await;
            assert!(!tunnel.is_finished());
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(tunnel.is_finished(), closed, "{asked} {begun:x?}");
            drop(gateway);
        }
    }
}

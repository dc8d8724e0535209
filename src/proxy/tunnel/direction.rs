//! One direction of a tunnel: reads from one side and writes to the other, through the gate if
//! there is one.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffers::{BufferLease, MAX_BLOCK};
use super::connect_response::{ConnectResponse, GatewaySent};
use super::first_message::FirstMessage;
use super::gate::{Gate, GateStep};
use super::websocket_frames::WebSocketFrames;

thread_local! {
    /// Read buffer shared by this thread's tunnels, so that a quiet one holds none.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_BLOCK].into_boxed_slice());
}

/// One direction: what was read and could not be written yet, and whether it has ended.
pub struct Direction {
    pending: Bytes,
    is_unflushed: bool,
    /// The size of the last block read; a part of it may not have left.
    block: usize,
    lease: BufferLease,
    end: EndStage,
    bytes_passed: Counter,
    /// To the client only: where the gateway's frames end.
    frames: Option<WebSocketFrames>,
    /// To the client only: the close frame to send at the next frame boundary.
    pub close_with: Option<Bytes>,
    /// To the client only: whether it was sent, so that what still comes is discarded.
    pub is_close_sent: bool,
    /// Whether bytes were read since the last [`Direction::take_has_moved`].
    has_moved: bool,
    /// From the client only: holds back what is read until the gateway has answered the first message.
    pub gate: Option<Box<Gate>>,
    /// From the client only: the close frame for a client whose first message is refused.
    pub refused_with: Option<Bytes>,
    /// To the client only: follows what the gateway sends until it has answered the first message.
    pub connect_response: Option<ConnectResponse>,
}

/// What the gateway's latest bytes mean for the client's first message.
pub enum GateChange {
    Unchanged,
    Progressed,
    /// The gateway has refused the `connect`.
    Refused,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EndStage {
    Open,
    Ending,
    Closed,
}

impl Direction {
    /// Starts with `early`, which was read together with the head.
    pub fn new(early: Bytes, lease: BufferLease, bytes_passed: Counter, mut frames: Option<WebSocketFrames>) -> Self {
        if let Some(frames) = &mut frames {
            frames.feed(&early);
        }
        bytes_passed.inc_by(early.len() as u64);
        let has_moved = !early.is_empty();
        Self {
            pending: early,
            is_unflushed: false,
            block: 0,
            lease,
            end: EndStage::Open,
            bytes_passed,
            frames,
            close_with: None,
            is_close_sent: false,
            has_moved,
            gate: None,
            refused_with: None,
            connect_response: None,
        }
    }

    /// Has `first_message` check what was read already, and what is read from now on.
    pub fn set_first_message(&mut self, first_message: Option<FirstMessage>) {
        self.gate = first_message.map(|first| Box::new(Gate::new(first)));
        if self.gate.is_some() && !self.pending.is_empty() {
            let early = std::mem::take(&mut self.pending);
            self.feed_gate(early);
        }
    }

    /// Has `connect_response` see what was read already, and what is read from now on.
    pub fn set_connect_response(&mut self, connect_response: Option<ConnectResponse>) {
        self.connect_response = connect_response;
        let early = self.pending.clone();
        self.follow_gateway(&early);
    }

    fn follow_gateway(&mut self, read: &[u8]) {
        if let Some(response) = &mut self.connect_response {
            response.feed(read);
        }
    }

    /// Returns what the gateway has sent, if that is followed.
    pub fn gateway_sent(&self) -> GatewaySent {
        self.connect_response.as_ref().map(ConnectResponse::sent).unwrap_or_default()
    }

    /// Gives `read` to the gate.
    fn feed_gate(&mut self, read: Bytes) {
        if let Some(gate) = &mut self.gate {
            let step = gate.feed(read);
            self.apply_step(step);
        }
    }

    /// Tells the gate what the gateway has sent.
    pub fn observe_gateway(&mut self, sent: GatewaySent) -> GateChange {
        let step = self.gate.as_mut().map_or(GateStep::Wait, |gate| gate.observe(sent));
        self.apply_step(step)
    }

    fn apply_step(&mut self, step: GateStep) -> GateChange {
        match step {
            GateStep::Wait => return GateChange::Unchanged,
            GateStep::Refused => return GateChange::Refused,
            GateStep::Pass(bytes) => self.add_pending(bytes),
            GateStep::Open(bytes) => {
                self.gate = None;
                self.add_pending(bytes);
            }
            GateStep::Close(frame) => self.refused_with = Some(frame),
        }
        GateChange::Progressed
    }

    /// Adds what was held back to what could not be written yet.
    fn add_pending(&mut self, bytes: Bytes) {
        self.pending = if self.pending.is_empty() { bytes } else { [&self.pending[..], &bytes].concat().into() };
    }

    /// Returns whether bytes were read since the last call.
    pub fn take_has_moved(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    /// Returns whether the close frame was written and flushed.
    pub fn is_close_delivered(&self) -> bool {
        self.is_close_sent && self.pending.is_empty() && !self.is_unflushed
    }

    /// Copies what can be read and written now; completes when this direction is closed.
    pub fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<Poll<()>> {
        let copied = SCRATCH.with_borrow_mut(|scratch| self.poll_copy_with(cx, from, to, scratch));
        let is_empty = self.pending.is_empty() && !self.is_unflushed;
        self.lease.hold(if is_empty { 0 } else { self.block.max(self.pending.len()) });
        copied
    }

    fn poll_copy_with(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        scratch: &mut [u8],
    ) -> io::Result<Poll<()>> {
        loop {
            if self.refused_with.is_some() {
                return Ok(Poll::Pending);
            }
            if self.poll_write_pending(cx, to)?.is_pending() {
                return Ok(Poll::Pending);
            }
            match self.end {
                EndStage::Closed => return Ok(Poll::Ready(())),
                EndStage::Ending => {
                    if Pin::new(&mut *to).poll_shutdown(cx)?.is_pending() {
                        return Ok(Poll::Pending);
                    }
                    self.end = EndStage::Closed;
                    continue;
                }
                EndStage::Open => {}
            }
            // Here as well as in `write_on`: it may be long until more is read.
            if let Some(frame) = self.due_close()
                && self.frames.as_ref().is_some_and(WebSocketFrames::is_at_boundary)
            {
                self.is_close_sent = true;
                self.pending = frame;
                continue;
            }
            // Before the next read, so that nothing is read while the last bytes have not left.
            if self.is_unflushed {
                if Pin::new(&mut *to).poll_flush(cx)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                self.is_unflushed = false;
            }
            let mut room = self.lease.block();
            if let Some(gate) = &mut self.gate {
                if let Poll::Ready(message) = gate.poll_ready(cx) {
                    self.pending = message;
                    continue;
                }
                room = gate.room().min(room);
                if room == 0 {
                    return Ok(Poll::Pending);
                }
            }
            let mut block = ReadBuf::new(&mut scratch[..room]);
            if Pin::new(&mut *from).poll_read(cx, &mut block)?.is_pending() {
                return Ok(Poll::Pending);
            }
            self.take_block(cx, block.filled(), to)?;
        }
    }

    /// Gives `read` to the gate, or writes it on; it is empty at the end of what is read.
    fn take_block(&mut self, cx: &mut Context<'_>, read: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        self.block = read.len();
        if read.is_empty() {
            self.end = EndStage::Ending;
            return Ok(());
        }
        self.has_moved = true;
        if self.gate.is_some() {
            self.bytes_passed.inc_by(read.len() as u64);
            self.feed_gate(Bytes::copy_from_slice(read));
            return Ok(());
        }
        self.follow_gateway(read);
        self.write_on(cx, read, to)
    }

    fn due_close(&self) -> Option<Bytes> {
        self.close_with.clone().filter(|_| !self.is_close_sent)
    }

    fn poll_write_pending(&mut self, cx: &mut Context<'_>, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<Poll<()>> {
        while !self.pending.is_empty() {
            let Poll::Ready(written) = Pin::new(&mut *to).poll_write(cx, &self.pending)? else {
                return Ok(Poll::Pending);
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.pending.advance(written);
            self.is_unflushed = true;
        }
        // Freed at once: a quiet tunnel holds no buffer.
        self.pending = Bytes::new();
        Ok(Poll::Ready(()))
    }

    /// Writes `read` on, and keeps what can't be written now.
    fn write_on(&mut self, cx: &mut Context<'_>, read: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if self.is_close_sent {
            return Ok(());
        }
        let boundary = self.frames.as_mut().and_then(|frames| frames.feed(read));
        let close = boundary.and_then(|_| self.due_close());
        let mut rest = &read[..boundary.filter(|_| close.is_some()).unwrap_or(read.len())];
        self.bytes_passed.inc_by(rest.len() as u64);
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    rest = &rest[written..];
                    self.is_unflushed = true;
                }
                Poll::Pending => break,
            }
        }
        if let Some(frame) = close {
            self.is_close_sent = true;
            self.pending = [rest, &frame[..]].concat().into();
        } else if !rest.is_empty() {
            self.pending = Bytes::copy_from_slice(rest);
        }
        Ok(())
    }
}

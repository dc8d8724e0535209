//! One direction of a tunnel: reads from one side and writes to the other. The client's bytes pass
//! a [`Gate`] if the first message must be checked.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffers::{BufferLease, MAX_BLOCK};
use super::connect_response::{ConnectResponseWatcher, GatewaySent};
use super::first_message::FirstMessage;
use super::gate::{Gate, GateStep};
use super::websocket_frames::WebSocketFrames;
use crate::proxy::read_offset::READ_OFFSET;

thread_local! {
    /// The read buffer of all tunnels of this thread: a quiet tunnel needs none.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_OFFSET + MAX_BLOCK].into_boxed_slice());
}

/// One direction of a tunnel.
pub struct Direction {
    /// The bytes that were read and not written yet.
    pending: Bytes,
    /// Whether bytes were written since the last flush.
    is_unflushed: bool,
    /// The size of the last block read. All of it counts as held until it was written and flushed.
    block: usize,
    lease: BufferLease,
    end: EndStage,
    bytes_passed: Counter,
    /// To the client only: finds the ends of the gateway's frames.
    frames: Option<WebSocketFrames>,
    /// To the client only: the close frame to send at the next frame boundary.
    pub close_with: Option<Bytes>,
    /// To the client only: whether the close frame was added to the output. Later bytes of the
    /// gateway are discarded.
    pub is_close_sent: bool,
    /// Whether bytes were read since the last call of [`Direction::take_moved_flag`].
    has_moved: bool,
    /// From the client only: holds bytes back until the gateway has accepted the first message.
    pub gate: Option<Box<Gate>>,
    /// From the client only: the close frame for a client whose first message is refused. Boxed,
    /// because it is rare.
    pub refused_with: Option<Box<Bytes>>,
    /// To the client only: follows what the gateway sends until it has answered the first message.
    pub connect_response: Option<ConnectResponseWatcher>,
}

/// The change of the gate by bytes of the client or the gateway.
pub enum GateChange {
    Unchanged,
    /// Bytes may pass, or the client is refused: the directions must be polled again.
    Progressed,
    /// The gateway has refused the `connect`.
    Refused,
}

/// How far the end of a direction is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EndStage {
    /// Bytes may still be read.
    Open,
    /// The end was read, and the other side is being shut down.
    Ending,
    /// The other side was shut down.
    Closed,
}

impl Direction {
    /// Creates a direction. `early` are the bytes that were read together with the head.
    pub fn new(early: Bytes, lease: BufferLease, bytes_passed: Counter, mut frames: Option<WebSocketFrames>) -> Self {
        if let Some(frames) = &mut frames {
            frames.parse_frames(&early);
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

    /// Sets the check of the client's first message. It also gets the bytes that were read already.
    pub fn set_first_message(&mut self, first_message: Option<FirstMessage>) {
        self.gate = first_message.map(|first| Box::new(Gate::new(first)));
        if self.gate.is_some() && !self.pending.is_empty() {
            let early = std::mem::take(&mut self.pending);
            self.push_to_gate(early);
        }
    }

    /// Sets the watcher of the gateway's bytes. It also gets the bytes that were read already.
    pub fn set_connect_response(&mut self, connect_response: Option<ConnectResponseWatcher>) {
        self.connect_response = connect_response;
        let early = self.pending.clone();
        self.observe_gateway_bytes(&early);
    }

    fn observe_gateway_bytes(&mut self, read: &[u8]) {
        if let Some(response) = &mut self.connect_response {
            response.observe_bytes(read);
        }
    }

    /// Returns what the gateway has sent so far; the default if nothing observes it.
    pub fn gateway_sent(&self) -> GatewaySent {
        self.connect_response.as_ref().map(ConnectResponseWatcher::gateway_sent).unwrap_or_default()
    }

    /// Gives bytes of the client to the gate.
    fn push_to_gate(&mut self, read: Bytes) {
        if let Some(gate) = &mut self.gate {
            let step = gate.push_client_bytes(read);
            self.apply_gate_step(step);
        }
    }

    /// Tells the gate what the gateway has sent.
    pub fn observe_gateway(&mut self, sent: GatewaySent) -> GateChange {
        let step = self.gate.as_mut().map_or(GateStep::Wait, |gate| gate.observe_gateway(sent));
        self.apply_gate_step(step)
    }

    /// Applies a step of the gate; returns what it changed.
    fn apply_gate_step(&mut self, step: GateStep) -> GateChange {
        match step {
            GateStep::Wait => return GateChange::Unchanged,
            GateStep::Refused => return GateChange::Refused,
            GateStep::Pass(bytes) => self.add_pending(bytes),
            GateStep::Open(bytes) => {
                self.gate = None;
                self.add_pending(bytes);
            }
            GateStep::Close(frame) => self.refused_with = Some(Box::new(frame)),
        }
        GateChange::Progressed
    }

    /// Appends bytes that the gate lets pass to the pending ones.
    fn add_pending(&mut self, bytes: Bytes) {
        self.pending = if self.pending.is_empty() { bytes } else { [&self.pending[..], &bytes].concat().into() };
    }

    /// Returns whether bytes were read since the last call.
    pub fn take_moved_flag(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    /// Returns whether the close frame was written and flushed.
    pub fn is_close_delivered(&self) -> bool {
        self.is_close_sent && self.pending.is_empty() && !self.is_unflushed
    }

    /// Copies the bytes that can be read and written now; completes when the direction is closed.
    ///
    /// # Errors
    /// Reading or writing fails.
    pub fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<Poll<()>> {
        let copied = SCRATCH.with_borrow_mut(|scratch| self.poll_copy_with(cx, from, to, &mut scratch[READ_OFFSET..]));
        let is_empty = self.pending.is_empty() && !self.is_unflushed;
        self.lease.set_unsent(if is_empty { 0 } else { self.block.max(self.pending.len()) });
        copied
    }

    /// Does the work of [`Self::poll_copy`], with `scratch` as the buffer of reads.
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
            // `write_block` adds a close frame after bytes of the gateway. Here it is added if no
            // further bytes come.
            if let Some(frame) = self.due_close_frame()
                && self.frames.as_ref().is_some_and(WebSocketFrames::is_at_boundary)
            {
                self.is_close_sent = true;
                self.pending = frame;
                continue;
            }
            // Flush before the next read: nothing is read while bytes wait to be sent.
            if self.is_unflushed {
                if Pin::new(&mut *to).poll_flush(cx)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                self.is_unflushed = false;
            }
            let mut room = self.lease.block_size();
            if let Some(gate) = &mut self.gate {
                if let Poll::Ready(message) = gate.poll_checked_connect(cx) {
                    self.pending = message;
                    continue;
                }
                room = gate.readable_bytes().min(room);
                if room == 0 {
                    return Ok(Poll::Pending);
                }
            }
            let mut block = ReadBuf::new(&mut scratch[..room]);
            if Pin::new(&mut *from).poll_read(cx, &mut block)?.is_pending() {
                return Ok(Poll::Pending);
            }
            self.gate_or_write_block(cx, block.filled(), to)?;
        }
    }

    /// Gives a block to the gate, or writes it. An empty block is the end of the stream.
    fn gate_or_write_block(
        &mut self,
        cx: &mut Context<'_>,
        read: &[u8],
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        self.block = read.len();
        if read.is_empty() {
            self.end = EndStage::Ending;
            return Ok(());
        }
        self.has_moved = true;
        if self.gate.is_some() {
            self.bytes_passed.inc_by(read.len() as u64);
            self.push_to_gate(Bytes::copy_from_slice(read));
            return Ok(());
        }
        self.observe_gateway_bytes(read);
        self.write_block(cx, read, to)
    }

    /// Returns the close frame that must be sent at the next frame boundary.
    fn due_close_frame(&self) -> Option<Bytes> {
        self.close_with.clone().filter(|_| !self.is_close_sent)
    }

    /// Writes all pending bytes to `to`.
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
        // Freed at once, so that a quiet tunnel holds no buffer.
        self.pending = Bytes::new();
        Ok(Poll::Ready(()))
    }

    /// Writes a block, and keeps the part that can't be written now. A close frame that is due goes
    /// to the last frame boundary in the block, and the rest is discarded.
    fn write_block(&mut self, cx: &mut Context<'_>, read: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if self.is_close_sent {
            return Ok(());
        }
        let boundary = self.frames.as_mut().and_then(|frames| frames.parse_frames(read));
        let close = boundary.and_then(|_| self.due_close_frame());
        let mut to_write = &read[..boundary.filter(|_| close.is_some()).unwrap_or(read.len())];
        self.bytes_passed.inc_by(to_write.len() as u64);
        while !to_write.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, to_write)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    to_write = &to_write[written..];
                    self.is_unflushed = true;
                }
                Poll::Pending => break,
            }
        }
        if let Some(frame) = close {
            self.is_close_sent = true;
            self.pending = [to_write, &frame[..]].concat().into();
        } else if !to_write.is_empty() {
            self.pending = Bytes::copy_from_slice(to_write);
        }
        Ok(())
    }
}

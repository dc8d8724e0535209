//! The stream that hyper reads and writes: follows the bytes of a downstream connection in both
//! directions.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;
use super::h1_refusal::{HyperRefusals, head_timeout_response};
use super::h1_request_guard::{GuardedInput, H1RequestGuard};
use super::h2_input_frames::{ENHANCE_YOUR_CALM, H2InputFrames, PROTOCOL_ERROR, Violation};
use super::h2_output_frames::H2OutputFrames;
use super::h2_trailers::{H2Trailers, TooLarge};
use super::head_tracker::HeadTracker;
use super::transport::Transport;
use crate::labels::Protocol;
use crate::listener::ConnectionPermit;
use crate::metrics::traffic::{GaugeGuard, Traffic};
use crate::proxy::chunked_trailers::first_nonempty;
use crate::proxy::registry::RegistryGuard;
use crate::workers::WorkerSlot;

/// The largest write over HTTP/2, in bytes, that may consist of control frames alone, such as
/// answers to PINGs. Such a write does not show that the client reads a response.
const MAX_CONTROL_WRITE: usize = 64;

/// The permit and the worker slot of a connection. Must be held until the connection ends.
pub struct ConnectionCapacity {
    _permit: ConnectionPermit,
    _slot: WorkerSlot,
}

impl ConnectionCapacity {
    pub(in crate::proxy) fn new(permit: ConnectionPermit, slot: WorkerSlot) -> Self {
        Self { _permit: permit, _slot: slot }
    }
}

/// The guards and permits that a connection holds until its end, tunnels included.
pub struct ConnectionResources {
    _capacity: ConnectionCapacity,
    _registered: RegistryGuard,
    _open: GaugeGuard,
}

impl ConnectionResources {
    pub(in crate::proxy) fn new(capacity: ConnectionCapacity, registered: RegistryGuard, open: GaugeGuard) -> Self {
        Self { _capacity: capacity, _registered: registered, _open: open }
    }
}

/// The stream of a downstream connection, and the resources that are released when it is dropped.
/// After an HTTP/1.1 upgrade the tunnel takes it over.
pub struct Downstream<S = Transport> {
    stream: S,
    /// The observer of HTTP; `None` in a tunnel. Boxed, so that a tunnel does not hold the memory
    /// of its fields.
    observer: Option<Box<Observer>>,
    /// Rewritten bytes that hyper reads before any others.
    unread: Bytes,
    /// Whether the socket took only a part of the last write, so that the next bytes continue it.
    is_partly_written: bool,
    _resources: Option<ConnectionResources>,
}

/// Inspects the bytes of an HTTP connection in both directions, before any upgrade.
struct Observer {
    activity: Arc<Activity>,
    head_tracker: Arc<HeadTracker>,
    guard: ProtocolGuard,
}

/// The state of the guards of one protocol.
enum ProtocolGuard {
    H1 { guard: H1RequestGuard, refusals: HyperRefusals, replacement: Option<Replacement> },
    H2 { guard: H2InputFrames, frames: H2OutputFrames, trailers: H2Trailers, floods: Counter },
}

/// A response that is written in place of one of hyper's.
struct Replacement {
    unwritten: Bytes,
    /// The length of hyper's response, in bytes.
    hyper_length: usize,
}

/// What may be done with the bytes that hyper offers to write.
enum WriteTurn {
    /// All may be written.
    All,
    /// At most this many bytes may be written, because interim responses come after them.
    AtMost(usize),
    /// Other bytes were written in place of this many.
    Replaced(usize),
}

/// What hyper gets for bytes that were read.
enum ReadOutcome {
    /// The same bytes.
    Passed,
    /// These bytes in their place.
    Rewritten(Vec<u8>),
    /// Nothing. The client gets these bytes, and the connection is closed.
    Refused(&'static [u8]),
}

impl Observer {
    /// Passes bytes that were read from the client through the guards, and records the activity
    /// that they show; returns what hyper gets.
    fn observe_read(&mut self, bytes: &[u8]) -> ReadOutcome {
        match &mut self.guard {
            ProtocolGuard::H1 { guard, .. } => {
                let guarded = guard.guard_input(bytes);
                self.activity.record_h1_read(guard.is_in_head());
                match guarded {
                    GuardedInput::Unchanged => ReadOutcome::Passed,
                    GuardedInput::Encoded(bytes) | GuardedInput::Refused(bytes) => ReadOutcome::Rewritten(bytes),
                }
            }
            ProtocolGuard::H2 { guard, frames, trailers, floods } => {
                let had_begun = guard.has_begun();
                let check_result = guard.check_input(bytes, frames);
                if !had_begun && guard.has_begun() {
                    self.activity.record_preface_end();
                }
                self.activity.set_unfinished_header_block(guard.unfinished_block());
                match check_result {
                    Ok(()) => match trailers.rewrite_input(bytes) {
                        Ok(rewritten) => rewritten.map_or(ReadOutcome::Passed, ReadOutcome::Rewritten),
                        Err(TooLarge) => ReadOutcome::Refused(&ENHANCE_YOUR_CALM),
                    },
                    Err(Violation::Flood) => {
                        floods.inc();
                        ReadOutcome::Refused(&ENHANCE_YOUR_CALM)
                    }
                    Err(Violation::NoSettings) => ReadOutcome::Refused(&PROTOCOL_ERROR),
                }
            }
        }
    }

    /// Counts bytes that the socket took. Records that the client reads, unless the bytes may be
    /// HTTP/2 control frames alone.
    fn count_written(&mut self, count: usize) {
        match &mut self.guard {
            ProtocolGuard::H1 { .. } => self.activity.record_write_progress(),
            ProtocolGuard::H2 { guard, .. } => {
                guard.count_written(count);
                if count > MAX_CONTROL_WRITE {
                    self.activity.record_write_progress();
                }
            }
        }
    }

    /// Observes the first `count` bytes of `bufs`, which hyper wrote.
    fn observe_written(&mut self, bufs: &[IoSlice<'_>], mut count: usize) {
        if let ProtocolGuard::H2 { frames, .. } = &mut self.guard {
            for buf in bufs {
                let step = count.min(buf.len());
                frames.observe_output(&buf[..step]);
                count -= step;
            }
        }
    }

    /// Writes what must come before the bytes that hyper offers (`offered`), or in place of them;
    /// returns what may be done with `offered` then.
    fn poll_before_write<S>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        offered: &[IoSlice<'_>],
    ) -> Poll<io::Result<WriteTurn>>
    where
        S: AsyncWrite + Unpin,
    {
        match &mut self.guard {
            ProtocolGuard::H1 { guard, refusals, replacement } => {
                ready!(self.head_tracker.interims().poll_write(stream, cx, true))?;
                if let Some(write_poll) =
                    self.activity.output().trailer_slot().poll_replace_last_chunk(stream, cx, first_nonempty(offered))
                {
                    return write_poll.map_ok(WriteTurn::Replaced);
                }
                if replacement.is_none() {
                    let pieces = offered.iter().map(|piece| &**piece);
                    let refusal = refusals.find_replacement(pieces, &self.activity, guard.head_fault());
                    let hyper_length = offered.iter().map(|piece| piece.len()).sum();
                    *replacement = refusal.map(|(bytes, reason)| {
                        self.head_tracker.record_refused_head(reason);
                        Replacement { unwritten: bytes.into(), hyper_length }
                    });
                }
                let Some(Replacement { unwritten, hyper_length }) = replacement else {
                    return Poll::Ready(Ok(WriteTurn::All));
                };
                while !unwritten.is_empty() {
                    match ready!(Pin::new(&mut *stream).poll_write(cx, unwritten))? {
                        0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        count => unwritten.advance(count),
                    }
                }
                let replaced = *hyper_length;
                *replacement = None;
                Poll::Ready(Ok(WriteTurn::Replaced(replaced)))
            }
            ProtocolGuard::H2 { frames, .. } => {
                if self.head_tracker.interims().is_empty() {
                    return Poll::Ready(Ok(WriteTurn::All));
                }
                ready!(self.head_tracker.interims().poll_write(
                    stream,
                    cx,
                    !(frames.is_at_boundary() && frames.allows_interims())
                ))?;
                let must_stop = !self.head_tracker.interims().is_empty() && frames.allows_interims();
                Poll::Ready(Ok(if must_stop { WriteTurn::AtMost(frames.bytes_to_boundary()) } else { WriteTurn::All }))
            }
        }
    }

    /// Writes the interim responses that wait. Must be called when hyper flushes, so that its
    /// buffer is empty. Registers the task of `cx` for further ones, and over HTTP/1.1 records the
    /// flush.
    fn poll_interims<S: AsyncWrite + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.head_tracker.interims().register_writer(cx);
        let only_rest = match &mut self.guard {
            ProtocolGuard::H1 { refusals, .. } => {
                refusals.record_flush(&self.activity);
                false
            }
            ProtocolGuard::H2 { frames, .. } => !(frames.is_at_boundary() && frames.allows_interims()),
        };
        self.head_tracker.interims().poll_write(stream, cx, only_rest)
    }
}

impl Downstream {
    /// Creates the stream of a connection over `stream`, which holds `resources` until it is
    /// dropped.
    pub fn new(
        stream: Transport,
        protocol: Protocol,
        activity: Arc<Activity>,
        head_tracker: Arc<HeadTracker>,
        traffic: &Traffic,
        resources: ConnectionResources,
    ) -> Self {
        Self {
            _resources: Some(resources),
            ..Self::with_observer(stream, protocol, activity, head_tracker, traffic.floods.clone())
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Downstream<S> {
    /// Creates the stream above `stream`, on which HTTP begins. Floods of HTTP/2 frames are counted
    /// in `floods`.
    pub fn with_observer(
        stream: S,
        protocol: Protocol,
        activity: Arc<Activity>,
        head_tracker: Arc<HeadTracker>,
        floods: Counter,
    ) -> Self {
        let guard = match protocol {
            Protocol::H2 => ProtocolGuard::H2 {
                guard: H2InputFrames::new(),
                frames: H2OutputFrames::new(Arc::clone(&head_tracker)),
                trailers: H2Trailers::new(),
                floods,
            },
            Protocol::H1 => ProtocolGuard::H1 {
                guard: H1RequestGuard::default(),
                refusals: HyperRefusals::new(),
                replacement: None,
            },
        };
        let observer = Some(Box::new(Observer { activity, head_tracker, guard }));
        Self { stream, observer, unread: Bytes::new(), is_partly_written: false, _resources: None }
    }

    /// Stops observing the bytes: after an upgrade they are no longer HTTP/1.1.
    pub fn stop_observing(&mut self) {
        self.observer = None;
    }

    /// Records that the socket does not take all that is to be written.
    fn record_blocked(&self) {
        if let Some(observer) = &self.observer {
            observer.head_tracker.set_write_blocked(true);
        }
    }

    /// Records the result of a write of `bufs`, which hyper offered. If `is_hyper_output` is
    /// false, other bytes were written in their place.
    fn record_write(&mut self, poll: &Poll<io::Result<usize>>, bufs: &[IoSlice<'_>], is_hyper_output: bool) {
        let offered: usize = bufs.iter().map(|buf| buf.len()).sum();
        let written = if let Poll::Ready(Ok(written)) = poll { *written } else { 0 };
        self.is_partly_written = written < offered;
        if let Some(observer) = &mut self.observer {
            observer.activity.output().record_write(written, !self.is_partly_written);
            if written > 0 {
                observer.count_written(written);
                if is_hyper_output {
                    observer.observe_written(bufs, written);
                }
            }
        }
    }

    /// Ends the connection with `bytes`. The bytes are left out if they would continue a message or
    /// frame that is partly written.
    ///
    /// # Errors
    /// Always: hyper must not use the connection any more.
    fn poll_end_with(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(&mut self.stream);
        let interim =
            self.observer.as_ref().is_some_and(|observer| observer.head_tracker.interims().is_partly_written());
        if !self.is_partly_written
            && !interim
            && let Poll::Ready(Ok(_)) = stream.as_mut().poll_write(cx, bytes)
        {
            let _ = stream.poll_shutdown(cx);
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }

    /// Moves bytes of `unread` to `buf`.
    fn fill_from_unread(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Downstream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.unread.is_empty() {
                this.fill_from_unread(buf);
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            let poll = Pin::new(&mut this.stream).poll_read(cx, buf);
            let Some(observer) = &mut this.observer else { return poll };
            if buf.filled().len() > before {
                match observer.observe_read(&buf.filled()[before..]) {
                    ReadOutcome::Passed => return poll,
                    ReadOutcome::Refused(bytes) => {
                        observer.head_tracker.mark_closed_for_client_fault();
                        return this.poll_end_with(bytes, cx);
                    }
                    // `bytes` may be empty, which hyper must not take for the end of the
                    // connection.
                    ReadOutcome::Rewritten(bytes) => {
                        this.unread = bytes.into();
                        buf.set_filled(before);
                    }
                }
                continue;
            }
            if poll.is_ready() {
                observer.head_tracker.record_client_end();
            }
            if observer.activity.is_head_abandoned() {
                let response = match observer.guard {
                    ProtocolGuard::H1 { .. } => head_timeout_response(),
                    ProtocolGuard::H2 { .. } if observer.activity.is_in_header_block() => ENHANCE_YOUR_CALM.to_vec(),
                    // A client that did not end its preface can't read a response.
                    ProtocolGuard::H2 { .. } => Vec::new(),
                };
                return this.poll_end_with(&response, cx);
            }
            return poll;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Downstream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let turn = match &mut this.observer {
            Some(observer) => {
                let turn = observer.poll_before_write(&mut this.stream, cx, bufs);
                if turn.is_pending() {
                    this.record_blocked();
                }
                ready!(turn)?
            }
            None => WriteTurn::All,
        };
        let stream = Pin::new(&mut this.stream);
        let poll = match (turn, bufs) {
            (WriteTurn::Replaced(count), _) => {
                let poll = Poll::Ready(Ok(count));
                this.record_write(&poll, bufs, false);
                return poll;
            }
            (WriteTurn::AtMost(most), _) => {
                let first = first_nonempty(bufs);
                stream.poll_write(cx, &first[..most.min(first.len())])
            }
            (WriteTurn::All, [buf]) => stream.poll_write(cx, buf),
            (WriteTurn::All, bufs) => stream.poll_write_vectored(cx, bufs),
        };
        if poll.is_pending() {
            this.record_blocked();
        }
        this.record_write(&poll, bufs, true);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(observer) = &mut this.observer {
            let interims = observer.poll_interims(&mut this.stream, cx);
            if interims.is_pending() {
                this.record_blocked();
            }
            ready!(interims)?;
        }
        let poll = Pin::new(&mut this.stream).poll_flush(cx);
        if let Some(observer) = &this.observer {
            observer.head_tracker.set_write_blocked(poll.is_pending());
            observer.activity.output().record_flush(poll.is_ready());
        }
        poll
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! Writes a request to the stream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::io::AsyncWrite;

use super::encode::{Framing, LAST_CHUNK, push_chunk_size};
use super::error::ExchangeError;
use crate::proxy::h1_fields::push_fields;
use crate::proxy::upstream::request_body::BrokenBody;

/// Parts of the body up to this size are copied, so that several of them are one write.
const SMALL_PART: usize = 1024;
/// Small parts of a request are joined for one write, until together they have this many bytes.
const MAX_JOINED: usize = 8 * 1024;

/// A request that is being written.
///
/// A failed write does not end it: a gateway that does not want a body answers before it has read
/// the body, and closes the connection. From then on all bytes are discarded, and the response can
/// still be read.
#[derive(Debug)]
pub struct Outgoing<B> {
    /// The body; `None` once all of it was taken.
    body: Option<B>,
    framing: Framing,
    // The bytes that are to be written, in this order.
    head: Bytes,
    joined: Vec<u8>,
    joined_written: usize,
    part: Bytes,
    part_end: &'static [u8],
    has_failed: bool,
}

impl<B: Body<Data = Bytes, Error = BrokenBody> + Unpin> Outgoing<B> {
    /// Creates the state without a request: nothing is to be written.
    pub fn none() -> Self {
        Self::new(Bytes::new(), Framing::Length(0), None)
    }

    /// Creates a request with a body that is framed as `head` states.
    pub fn new(head: Bytes, framing: Framing, body: Option<B>) -> Self {
        let (joined, joined_written, part, part_end) = (Vec::new(), 0, Bytes::new(), &b""[..]);
        Self { body, framing, head, joined, joined_written, part, part_end, has_failed: false }
    }

    /// Returns the body; `None` once all of it was taken.
    pub fn body_mut(&mut self) -> Option<&mut B> {
        self.body.as_mut()
    }

    /// Returns whether a write has failed.
    pub fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Returns whether all bytes were written, or discarded after a failed write.
    pub fn is_done(&self) -> bool {
        self.body.is_none() && self.is_written()
    }

    fn is_written(&self) -> bool {
        self.head.is_empty() && self.joined.is_empty() && self.part.is_empty() && self.part_end.is_empty()
    }

    /// Writes as much as the body has and `stream` takes. Completes when all bytes were written, or
    /// discarded after a failed write.
    ///
    /// # Errors
    /// The body broke off.
    pub fn poll_send<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<Result<(), ExchangeError>>
    where
        S: AsyncWrite + Unpin,
    {
        loop {
            self.fill(cx)?;
            if self.is_written() {
                return if self.body.is_none() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            if !self.has_failed && ready!(self.poll_write(stream, cx)).is_err() {
                self.has_failed = true;
            }
            if self.has_failed {
                self.advance(usize::MAX);
            }
        }
    }

    /// Takes parts of the body, until it has no more for now, a part is large, or [`MAX_JOINED`]
    /// bytes are joined.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), ExchangeError> {
        while self.part.is_empty() && self.part_end.is_empty() && self.joined.len() < MAX_JOINED {
            let Some(body) = &mut self.body else { break };
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { break };
            match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => {
                    let is_last = body.is_end_stream();
                    self.push_data(data)?;
                    if is_last {
                        self.end_body(None)?;
                    }
                }
                Some(Err(frame)) => self.end_body(frame.into_trailers().ok())?,
                None => self.end_body(None)?,
            }
        }
        Ok(())
    }

    /// Frames the next part of the body for sending. A small part is copied, a large one is kept as
    /// it is.
    fn push_data(&mut self, data: Bytes) -> Result<(), ExchangeError> {
        if data.is_empty() {
            return Ok(());
        }
        let end: &[u8] = match &mut self.framing {
            Framing::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(ExchangeError::RequestLength)?;
                b""
            }
            Framing::Chunked => {
                push_chunk_size(&mut self.joined, data.len());
                b"\r\n"
            }
        };
        if data.len() <= SMALL_PART {
            self.joined.extend_from_slice(&data);
            self.joined.extend_from_slice(end);
        } else {
            self.part = data;
            self.part_end = end;
        }
        Ok(())
    }

    /// Ends the body. Only a chunked one can have trailers. A pending part means that the body
    /// ended with it, so there are no trailers.
    fn end_body(&mut self, trailers: Option<HeaderMap>) -> Result<(), ExchangeError> {
        self.body = None;
        match self.framing {
            Framing::Length(0) => {}
            Framing::Length(_) => return Err(ExchangeError::RequestLength),
            Framing::Chunked if !self.part.is_empty() => self.part_end = b"\r\n0\r\n\r\n",
            Framing::Chunked => match trailers.filter(|trailers| !trailers.is_empty()) {
                None => self.joined.extend_from_slice(LAST_CHUNK),
                Some(trailers) => {
                    self.joined.extend_from_slice(b"0\r\n");
                    push_fields(&mut self.joined, &trailers);
                }
            },
        }
        Ok(())
    }

    /// Writes the bytes that are left with one write, as many as `stream` takes.
    fn poll_write<S: AsyncWrite + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let joined = &self.joined[self.joined_written..];
        let stream = Pin::new(stream);
        let written = if joined.is_empty() && self.part.is_empty() && self.part_end.is_empty() {
            ready!(stream.poll_write(cx, &self.head))?
        } else {
            let pieces = [&*self.head, joined, &*self.part, self.part_end].map(IoSlice::new);
            ready!(stream.poll_write_vectored(cx, &pieces))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(()))
    }

    /// Removes the first `count` bytes, or all if there are fewer.
    fn advance(&mut self, mut count: usize) {
        let mut step = |length: usize| {
            let step = count.min(length);
            count -= step;
            step
        };
        self.head.advance(step(self.head.len()));
        self.joined_written += step(self.joined.len() - self.joined_written);
        self.part.advance(step(self.part.len()));
        self.part_end = &self.part_end[step(self.part_end.len())..];
        if self.head.is_empty() {
            self.head = Bytes::new();
        }
        if self.part.is_empty() {
            self.part = Bytes::new();
        }
        if self.joined_written == self.joined.len() {
            self.joined_written = 0;
            if self.body.is_some() { self.joined.clear() } else { self.joined = Vec::new() }
        }
    }
}

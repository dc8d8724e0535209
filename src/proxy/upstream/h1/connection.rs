//! A connection that carries one request at a time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use super::decode::Decoder;
use super::encode::Framing;
use super::error::ExchangeError;
use super::outgoing::Outgoing;
use super::read::{SHARED_SIZE, poll_read_block, poll_read_shared};
use super::response_head::{HeadLimits, ResponseHead, parse_head};
use crate::proxy::read_offset::READ_OFFSET;
use crate::proxy::upstream::request_body::BrokenBody;

/// A connection to the gateway, whose requests have bodies of the type `B`.
#[derive(Debug)]
pub struct H1Connection<S, B> {
    stream: S,
    limits: HeadLimits,
    outgoing: Outgoing<B>,
    incoming: Incoming,
    /// An empty map, which the fields of the response are added to.
    spare: HeaderMap,
    /// Bytes that were read and not decoded yet.
    unread: Bytes,
    /// Whether a byte was read since the current request began.
    has_response_begun: bool,
    /// Whether the last read filled its buffer, so that more is probably there.
    is_read_full: bool,
    /// Whether the latest response permits another request.
    may_reuse: bool,
    /// The error of [`Self::poll_upload`], which the next [`Self::poll_frame`] reports. The
    /// request's body is not polled after it.
    upload_error: Option<ExchangeError>,
}

/// The state of the response.
#[derive(Debug)]
enum Incoming {
    /// In the head of a response. No head ends in the first `searched` bytes.
    Head {
        is_head_request: bool,
        searched: usize,
    },
    Body(Decoder),
    /// The response has ended, or no request was sent yet.
    Done,
    /// The gateway agreed to an upgrade.
    Upgraded,
    /// The exchange has failed.
    Failed,
}

impl<S, B> H1Connection<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes, Error = BrokenBody> + Unpin,
{
    /// Begins HTTP on `stream`.
    pub fn new(stream: S, limits: HeadLimits) -> Self {
        Self {
            stream,
            limits,
            outgoing: Outgoing::none(),
            incoming: Incoming::Done,
            spare: HeaderMap::new(),
            unread: Bytes::new(),
            has_response_begun: false,
            is_read_full: false,
            may_reuse: true,
            upload_error: None,
        }
    }

    /// Returns whether a request can be sent: the gateway has not closed the connection, and has
    /// sent nothing since the last response. Is pending only if the task's coop budget is spent.
    pub fn poll_can_send(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.is_reusable() {
            return Poll::Ready(false);
        }
        // Once the coop budget is spent, a read is pending even if bytes or the end of the stream
        // are there.
        drop(ready!(coop::poll_proceed(cx)));
        let mut byte = [0];
        Poll::Ready(Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending())
    }

    /// Begins a request with this head, and a body that is framed as the head states.
    /// `is_head_request` is whether its method is HEAD. If the fields of the response fit into
    /// `spare`, which must be empty, no other map is made.
    pub fn begin_request(
        &mut self,
        head: Bytes,
        is_head_request: bool,
        framing: Framing,
        body: Option<B>,
        spare: HeaderMap,
    ) {
        self.spare = spare;
        self.outgoing = Outgoing::new(head, framing, body);
        self.incoming = Incoming::Head { is_head_request, searched: 0 };
        self.has_response_begun = false;
        self.is_read_full = false;
    }

    /// Sends the request as far as possible, and waits for the next interim response or the head of
    /// the final one.
    ///
    /// # Errors
    /// The connection or the request's body broke off, or the head is not acceptable. The
    /// connection can't be used any more.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, ExchangeError>> {
        let head = ready!(self.poll_next_head(cx));
        match &head {
            Err(_) => self.incoming = Incoming::Failed,
            Ok(head) if head.is_interim() => {}
            Ok(head) => {
                self.may_reuse = head.may_reuse;
                self.incoming = if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    Incoming::Upgraded
                } else {
                    Incoming::Body(Decoder::new(head.body, self.limits))
                };
                self.end_if_done();
            }
        }
        Poll::Ready(head)
    }

    /// Sends the request as far as possible, and reads the next head. The caller then moves on to
    /// the body, or records the failure.
    fn poll_next_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, ExchangeError>> {
        if let Poll::Ready(Err(error)) = self.outgoing.poll_send(&mut self.stream, cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            if let Some(head) = self.take_head(false)? {
                return Poll::Ready(Ok(head));
            }
            let Self { stream, unread, .. } = self;
            let count = ready!(poll_read_shared(stream, cx, |bytes| {
                if unread.is_empty() {
                    *unread = Bytes::copy_from_slice(bytes);
                } else {
                    let mut joined = Vec::from(std::mem::take(unread));
                    joined.extend_from_slice(bytes);
                    *unread = joined.into();
                }
                bytes.len()
            }))
            .map_err(ExchangeError::Io)?;
            if count == 0 {
                // At the end, a head that is not complete is an error; parsing tells which one.
                return Poll::Ready(self.take_head(true).and_then(|head| head.ok_or(ExchangeError::Incomplete)));
            }
            self.has_response_begun = true;
            self.is_read_full = count == SHARED_SIZE;
        }
    }

    /// Takes a head from the bytes that were read, if it is complete. After the first attempt, the
    /// head is parsed again only if there is a new empty line, the limit is reached, or `is_end`:
    /// parsing takes time in proportion to the length of the head.
    fn take_head(&mut self, is_end: bool) -> Result<Option<ResponseHead>, ExchangeError> {
        let Incoming::Head { is_head_request, searched } = &mut self.incoming else {
            return Err(ExchangeError::Incomplete);
        };
        let is_first = *searched == 0;
        if self.unread.is_empty()
            || !is_first && !is_end && self.unread.len() < self.limits.bytes && !has_empty_line(&self.unread, *searched)
        {
            *searched = self.unread.len();
            return Ok(None);
        }
        let Some((length, head)) = parse_head(&self.unread, self.limits, *is_head_request, &mut self.spare)? else {
            *searched = self.unread.len();
            return Ok(None);
        };
        drop(self.unread.split_to(length));
        *searched = 0;
        Ok(Some(head))
    }

    /// Sends the request's body as far as possible, and returns the next part of the response's
    /// body; `None` at its end. A read takes at most `block` or [`SHARED_SIZE`] bytes, whichever is
    /// more.
    ///
    /// # Errors
    /// The connection or the request's body broke off, or the response's body is malformed. The
    /// connection can't be used any more.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        block: usize,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let frame = ready!(self.poll_next_frame(cx, block));
        match frame {
            Err(_) => self.incoming = Incoming::Failed,
            Ok(_) => self.end_if_done(),
        }
        Poll::Ready(frame.transpose())
    }

    /// Sends the request's body as far as possible, and reads the next frame of the response's. The
    /// caller records a failure.
    fn poll_next_frame(
        &mut self,
        cx: &mut Context<'_>,
        block: usize,
    ) -> Poll<Result<Option<Frame<Bytes>>, ExchangeError>> {
        self.poll_upload(cx);
        if let Some(error) = self.upload_error.take() {
            return Poll::Ready(Err(error));
        }
        loop {
            let decoder = match &mut self.incoming {
                Incoming::Body(decoder) => decoder,
                Incoming::Done => return Poll::Ready(Ok(None)),
                _ => return Poll::Ready(Err(ExchangeError::Incomplete)),
            };
            if let Some(frame) = decoder.decode(&mut self.unread)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            if decoder.is_done() {
                return Poll::Ready(Ok(None));
            }
            let left = decoder.length_left().map(|left| usize::try_from(left).unwrap_or(usize::MAX));
            // A block of its own only if more than the shared buffer is expected: by the stated
            // length or, without one, because the last read was full.
            let (frame, is_end) = if left.map_or(self.is_read_full, |left| left > SHARED_SIZE) {
                // The end of the body should need no read of its own.
                let most = left.map_or(usize::MAX, |left| left.saturating_add(READ_OFFSET));
                let size = block.max(SHARED_SIZE).min(most);
                let bytes = ready!(poll_read_block(&mut self.stream, cx, size)).map_err(ExchangeError::Io)?;
                self.is_read_full = bytes.len() + READ_OFFSET == size;
                self.unread = bytes;
                (None, self.unread.is_empty())
            } else {
                let unread = &mut self.unread;
                let (count, decoded) = ready!(poll_read_shared(&mut self.stream, cx, |bytes| {
                    let decoded = decoder.decode_small(bytes).map(|(consumed, frame)| {
                        *unread = Bytes::copy_from_slice(&bytes[consumed..]);
                        frame
                    });
                    (bytes.len(), decoded)
                }))
                .map_err(ExchangeError::Io)?;
                self.is_read_full = count == SHARED_SIZE;
                (decoded?, count == 0)
            };
            if is_end {
                let Incoming::Body(Decoder::UntilClose) = self.incoming else {
                    return Poll::Ready(Err(ExchangeError::Incomplete));
                };
                self.incoming = Incoming::Done;
            }
            if let Some(frame) = frame {
                return Poll::Ready(Ok(Some(frame)));
            }
        }
    }

    /// Sends the request's body as far as possible. For use while the client takes no part of the
    /// response. The next call of [`Self::poll_frame`] reports an error of this.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if self.upload_error.is_none()
            && !self.outgoing.is_done()
            && let Poll::Ready(Err(error)) = self.outgoing.poll_send(&mut self.stream, cx)
        {
            self.upload_error = Some(error);
        }
    }

    /// Ends the response once all of its body was returned.
    fn end_if_done(&mut self) {
        if matches!(&self.incoming, Incoming::Body(decoder) if decoder.is_done()) {
            self.incoming = Incoming::Done;
        }
    }

    /// Sends the rest of the request's body, after the response has ended. If that fails, the
    /// connection can't be used any more.
    pub fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.outgoing.poll_send(&mut self.stream, cx)).is_err() {
            self.incoming = Incoming::Failed;
        }
        Poll::Ready(())
    }

    /// Returns the body of the request; `None` once all of it was taken.
    pub fn request_body(&mut self) -> Option<&mut B> {
        self.outgoing.body_mut()
    }

    /// Returns whether a byte of a response to the current request was read.
    pub fn has_response_begun(&self) -> bool {
        self.has_response_begun
    }

    /// Returns the number of bytes that are left of the response's body, if it is known.
    pub fn length_left(&self) -> Option<u64> {
        match &self.incoming {
            Incoming::Body(decoder) => decoder.length_left(),
            _ => Some(0),
        }
    }

    /// Returns whether all of the response's body was returned.
    pub fn is_response_done(&self) -> bool {
        matches!(self.incoming, Incoming::Done)
    }

    /// Returns whether all of the request was sent, or discarded after a failed write.
    pub fn is_request_done(&self) -> bool {
        self.outgoing.is_done()
    }

    /// Returns whether another request may be sent.
    pub fn is_reusable(&self) -> bool {
        self.may_reuse
            && self.is_response_done()
            && self.is_request_done()
            && self.unread.is_empty()
            && !self.outgoing.has_failed()
    }

    /// Returns the stream after a `101`, and the bytes of the new protocol that were read; `None`
    /// if there was none.
    pub fn into_upgraded(self) -> Option<(S, Bytes)> {
        matches!(self.incoming, Incoming::Upgraded).then_some((self.stream, self.unread))
    }
}

/// Returns whether `bytes` has an empty line that ends after the first `searched` bytes.
fn has_empty_line(bytes: &[u8], searched: usize) -> bool {
    let new = &bytes[searched.saturating_sub(2)..];
    memchr::memchr_iter(b'\n', new).any(|at| matches!(&new[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

#[cfg(test)]
mod tests;

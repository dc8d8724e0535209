//! The body of a response to a client: the gateway's, which is streamed, or a short one of
//! loopgate.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::client_authorization::ClientAuthorization;
use super::record::{CountedChunk, RequestRecord};
use crate::lane::scrub_response_trailers;
use crate::proxy::request_end::RequestEnd;
use crate::proxy::upstream::h1::error::ExchangeError;
use crate::proxy::upstream::pool::PooledConnection;

/// The size of reads from the gateway at first, and after the client's socket was full.
const SLOW_BLOCK: usize = 16 * 1024;
/// The size of reads from the gateway after the client's socket took [`FAST_AFTER`] bytes and was
/// never full.
const FAST_BLOCK: usize = 64 * 1024;
/// The same over HTTP/2. It is smaller because hyper holds two blocks: it polls for the next one
/// before the stream's window allows it.
const FAST_H2_BLOCK: usize = 32 * 1024;
/// The number of bytes after which a client is fast.
const FAST_AFTER: u64 = 512 * 1024;

/// The body of a response to a client.
pub enum ResponseBody {
    /// A short body of loopgate.
    Loopgate { text: Option<Bytes>, record: Arc<RequestRecord> },
    /// The body of the gateway's response.
    Gateway(Box<GatewayBody>),
}

/// The body of the gateway's response on its way to the client.
pub struct GatewayBody {
    /// The number of bytes that are left of the body, if it is known.
    length_left: Option<u64>,
    /// Whether the response states the length of the body: over HTTP/1.1 such a body can't have
    /// trailers.
    has_stated_length: bool,
    /// Whether an empty body claims to be of unknown length: hyper's HTTP/1.1 server drops the
    /// `Content-Length` of a 304 with an empty body (`hyper/src/proto/h1/role.rs`, "content-length
    /// value found, but empty body provided"). It writes no body after a 304 in any case.
    hides_end: bool,
    /// The connection to the gateway; `None` once the body has ended.
    upstream: Option<PooledConnection>,
    block_size: BlockSize,
    record: Arc<RequestRecord>,
    authorization: Option<ClientAuthorization>,
    failure: Option<Failure>,
    /// The trailers of a chunked HTTP/1.1 response, and the connection's number of flushes when
    /// they came.
    trailers: Option<(HeaderMap, u64)>,
}

/// The most bytes that are read from the gateway at once. Large reads cost less, but a block stays
/// in memory while the client does not read. So reads are large only while the client reads as fast
/// as the gateway sends.
#[derive(Debug)]
struct BlockSize {
    /// The size of blocks for a client that is fast.
    fast: usize,
    /// The number of bytes that were passed on since the client's socket was full.
    passed: u64,
}

impl BlockSize {
    fn new(is_h2: bool) -> Self {
        Self { fast: if is_h2 { FAST_H2_BLOCK } else { FAST_BLOCK }, passed: 0 }
    }

    fn bytes(&self) -> usize {
        if self.passed < FAST_AFTER { SLOW_BLOCK } else { self.fast }
    }

    fn record_part(&mut self, length: usize) {
        self.passed = self.passed.saturating_add(length as u64);
    }

    fn record_full_socket(&mut self) {
        self.passed = 0;
    }
}

/// The failure of a body because the gateway, or the request's body, broke off. The error is passed
/// on only after all bytes before it have left the process, because hyper discards its buffer when
/// it gets an error.
struct Failure {
    error: Option<ExchangeError>,
    delivered: Delivered,
}

/// The way to find out that all bytes before the error have left the process.
enum Delivered {
    /// HTTP/1.1: the connection has been flushed more often than this.
    Flushed(u64),
    /// HTTP/2: an empty chunk was sent, which comes after all others of the stream. `None` before
    /// it was.
    Marker(Option<oneshot::Receiver<()>>),
}

/// The reason why a response ends early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The gateway, or the request's body, broke off.
    #[error(transparent)]
    Gateway(#[from] ExchangeError),
    /// The rules no longer permit the client.
    #[error("the client is no longer authorized")]
    Denied,
}

impl ResponseBody {
    /// Creates a body that passes on the gateway's body, which comes over `upstream`. That
    /// connection is returned to its pool at the end of the body. With `hides_end`, hyper does not
    /// learn that the body is empty, so that it keeps the `Content-Length`.
    pub fn from_gateway(
        upstream: PooledConnection,
        record: Arc<RequestRecord>,
        authorization: Option<ClientAuthorization>,
        hides_end: bool,
    ) -> Self {
        let now = Instant::now();
        let length_left = upstream.length_left();
        let upstream = if upstream.is_response_done() {
            record.mark_body_complete();
            upstream.return_to_pool(now);
            None
        } else {
            Some(upstream)
        };
        record.guard().mark_pending(now);
        Self::Gateway(Box::new(GatewayBody {
            length_left,
            has_stated_length: length_left.is_some(),
            hides_end,
            upstream,
            block_size: BlockSize::new(record.guard().is_h2()),
            record,
            authorization,
            failure: None,
            trailers: None,
        }))
    }

    /// Creates a short body of loopgate.
    pub fn from_loopgate(text: impl Into<Bytes>, record: Arc<RequestRecord>) -> Self {
        Self::Loopgate { text: Some(text.into()).filter(|text| !text.is_empty()), record }
    }
}

impl GatewayBody {
    /// Polls the authorization and the gateway; returns the next frame for hyper, `None` at the
    /// end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<CountedChunk>, BodyError>>> {
        if let Some(authorization) = &mut self.authorization
            && authorization.poll_revoked(cx).is_ready()
        {
            // Closes the connection to the gateway: the rest of the response is not read.
            self.upstream = None;
            self.record.set_end_once(RequestEnd::Revoked);
            return Poll::Ready(Some(Err(BodyError::Denied)));
        }
        if let Some((_, since)) = &self.trailers {
            ready!(self.record.guard().output().poll_flushed(*since, cx));
        }
        if self.failure.is_none() {
            let frame = match ready!(self.poll_gateway_frame(cx)) {
                Some(Ok(frame)) => match frame.into_trailers() {
                    Ok(trailers) => return self.poll_trailers(trailers, cx),
                    Err(frame) => Some(Ok(frame)),
                },
                frame => frame,
            };
            match frame {
                Some(Err(error)) => {
                    self.record.record_cut(&error);
                    let guard = self.record.guard();
                    let delivered = if guard.is_h2() {
                        Delivered::Marker(None)
                    } else {
                        Delivered::Flushed(guard.output().flush_count())
                    };
                    self.failure = Some(Failure { error: Some(error), delivered });
                }
                None => {
                    if let Some((trailers, _)) = self.trailers.take() {
                        self.record.guard().output().end_with_trailers(&trailers);
                    }
                    return Poll::Ready(None);
                }
                frame => return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Gateway))),
            }
        }
        self.poll_failure(cx)
    }

    /// Handles the trailers at the end of the body.
    fn poll_trailers(
        &mut self,
        mut trailers: HeaderMap,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<CountedChunk>, BodyError>>> {
        scrub_response_trailers(&mut trailers);
        if trailers.is_empty() {
            return self.poll(cx);
        }
        let guard = self.record.guard();
        if guard.is_h2() {
            // hyper does not poll the body after its trailers.
            if self.poll_gateway_frame(cx).is_pending() {
                self.finish_incoming(false, Instant::now());
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if self.record.is_http_1_1_or_later() && !self.has_stated_length {
            self.trailers = Some((trailers, guard.output().flush_count()));
        }
        self.poll(cx)
    }

    /// Records the end of the gateway's body. Gives the permit to the record of the request.
    /// Returns the connection to the pool, or closes it if the body `failed`.
    fn finish_incoming(&mut self, failed: bool, now: Instant) {
        if !failed {
            self.record.mark_body_complete();
        }
        if let Some(mut upstream) = self.upstream.take() {
            if let Some(permit) = upstream.take_permit() {
                self.record.hold_permit(permit);
            }
            if !failed {
                upstream.return_to_pool(now);
            }
        }
    }

    /// Waits until all bytes before the failure have left the process, and then returns its error.
    fn poll_failure(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<CountedChunk>, BodyError>>> {
        let Some(failure) = &mut self.failure else { return Poll::Pending };
        match &mut failure.delivered {
            Delivered::Flushed(since) => ready!(self.record.guard().output().poll_flushed(*since, cx)),
            Delivered::Marker(Some(marker)) => {
                let _ = ready!(Pin::new(marker).poll(cx));
            }
            Delivered::Marker(marker) => {
                let (chunk, delivered) = CountedChunk::delivery_marker(&self.record);
                *marker = Some(delivered);
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
        }
        Poll::Ready(failure.error.take().map(|error| Err(BodyError::Gateway(error))))
    }

    /// Reads the next frame from the gateway, unless hyper has enough bytes for now. At the end,
    /// returns the gateway's connection to the pool.
    fn poll_gateway_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<CountedChunk>, ExchangeError>>> {
        let guard = self.record.guard();
        if guard.poll_below_high_water_mark(cx).is_pending() {
            if guard.output().is_socket_full() {
                self.block_size.record_full_socket();
            }
            // Many clients read the response only after they have sent the whole request.
            if let Some(upstream) = &mut self.upstream {
                upstream.poll_upload(cx);
            }
            return Poll::Pending;
        }
        let Some(upstream) = &mut self.upstream else { return Poll::Ready(None) };
        guard.mark_drained();
        // The connection to the gateway is driven on the client's task, so that no other task must
        // be woken.
        let frame = ready!(upstream.poll_frame(cx, self.block_size.bytes()));
        self.length_left = upstream.length_left();
        let has_ended = !matches!(frame, Some(Ok(_))) || upstream.is_response_done();
        let now = Instant::now();
        guard.mark_pending(now);
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            guard.output().add_buffered(data.len());
            self.block_size.record_part(data.len());
        }
        if has_ended {
            self.finish_incoming(matches!(frame, Some(Err(_))), now);
        }
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| CountedChunk::new(data, &self.record)))))
    }
}

impl Drop for GatewayBody {
    fn drop(&mut self) {
        // This is recorded before the permit is returned, which may let a waiting request of the
        // same client continue.
        if let Some(upstream) = self.upstream.as_ref().filter(|_| self.record.is_client_stalled()) {
            upstream.record_stall();
        }
    }
}

impl Body for ResponseBody {
    type Data = CountedChunk;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<CountedChunk>, BodyError>>> {
        match self.get_mut() {
            Self::Loopgate { text, record } => {
                Poll::Ready(text.take().map(|text| Ok(Frame::data(CountedChunk::new(text, record)))))
            }
            Self::Gateway(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Loopgate { text, .. } => text.is_none(),
            Self::Gateway(body) => {
                !body.hides_end && body.failure.is_none() && body.trailers.is_none() && body.upstream.is_none()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Loopgate { text, .. } => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Gateway(body) if body.hides_end => SizeHint::default(),
            Self::Gateway(body) => body.length_left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_large_only_while_the_client_keeps_up() {
        let mut size = BlockSize::new(false);
        let pass = |size: &mut BlockSize, bytes: u64| size.record_part(usize::try_from(bytes).unwrap());
        pass(&mut size, FAST_AFTER - 1);
        assert_eq!(size.bytes(), SLOW_BLOCK);
        size.record_full_socket();
        pass(&mut size, FAST_AFTER - 1);
        assert_eq!(size.bytes(), SLOW_BLOCK, "a full socket begins a new count");
        pass(&mut size, 1);
        assert_eq!(size.bytes(), FAST_BLOCK);
        size.record_full_socket();
        assert_eq!(size.bytes(), SLOW_BLOCK);
        let mut size = BlockSize::new(true);
        assert_eq!(size.bytes(), SLOW_BLOCK);
        pass(&mut size, FAST_AFTER);
        assert_eq!(size.bytes(), FAST_H2_BLOCK);
    }
}

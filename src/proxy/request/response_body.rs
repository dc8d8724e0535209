//! The body of a response: the gateway's, streamed, or a short one of loopgate's.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::client_authorization::ClientAuthorization;
use super::record::{CountedChunk, RequestRecord};
use crate::lane::scrub_response_trailers;
use crate::proxy::request_end::RequestEnd;
use crate::proxy::upstream::pool::PooledConnection;

/// The body of a response to a client.
pub enum ResponseBody {
    /// One of loopgate's own.
    Loopgate { text: Option<Bytes>, record: Arc<RequestRecord> },
    /// The gateway's.
    Gateway(Box<Download>),
}

/// The gateway's body on its way to the client.
pub struct Download {
    incoming: Incoming,
    /// Whether the body goes to the client with its length stated, so that there is no place for trailers.
    has_stated_length: bool,
    /// Whether an empty body pretends to be one of unknown length: hyper's HTTP/1.1 server drops the `Content-Length`
    /// of a 304 whose body has ended (`hyper/src/proto/h1/role.rs`, "content-length value found, but empty body
    /// provided"). It writes no body after a 304 in any case.
    hides_end: bool,
    upstream: Option<PooledConnection>,
    record: Arc<RequestRecord>,
    authorization: Option<ClientAuthorization>,
    failure: Option<Failure>,
    /// The trailers of a response in HTTP/1.1 chunks, and the flushes of the connection when they came.
    trailers: Option<(HeaderMap, u64)>,
}

/// The gateway broke off: the error is passed on once what arrived before has left, since it makes hyper discard that.
struct Failure {
    error: Option<hyper::Error>,
    delivered: Delivered,
}

/// When everything before the error was delivered.
enum Delivered {
    /// HTTP/1.1: when the connection was flushed since then.
    Flushed(u64),
    /// HTTP/2: an empty DATA frame is sent, which comes behind all others of the stream.
    Marker(Option<oneshot::Receiver<()>>),
}

/// Why a response ends early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The gateway broke off.
    #[error(transparent)]
    Gateway(#[from] hyper::Error),
    /// The rules deny the client now.
    #[error("the client is no longer authorized")]
    Denied,
}

impl ResponseBody {
    /// Passes on the gateway's body, which comes over `upstream`. That is given back to its pool at
    /// the end. With `hides_end`, hyper does not learn that the body is empty, and keeps the length
    /// that the head states.
    pub fn gateway(
        incoming: Incoming,
        upstream: PooledConnection,
        record: Arc<RequestRecord>,
        authorization: Option<ClientAuthorization>,
        hides_end: bool,
    ) -> Self {
        let now = Instant::now();
        let upstream = if incoming.is_end_stream() {
            record.note_body_end();
            upstream.give_back(now);
            None
        } else {
            Some(upstream)
        };
        record.guard().mark_pending(now);
        let has_stated_length = incoming.size_hint().exact().is_some();
        Self::Gateway(Box::new(Download {
            incoming,
            has_stated_length,
            hides_end,
            upstream,
            record,
            authorization,
            failure: None,
            trailers: None,
        }))
    }

    /// Creates a body of loopgate's own.
    pub fn loopgate(text: impl Into<Bytes>, record: Arc<RequestRecord>) -> Self {
        Self::Loopgate { text: Some(text.into()).filter(|text| !text.is_empty()), record }
    }
}

impl Download {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<CountedChunk>, BodyError>>> {
        if let Some(authorization) = &mut self.authorization
            && authorization.poll_revoked(cx).is_ready()
        {
            // Closes the connection to the gateway, on which more is to come.
            self.upstream = None;
            self.record.note_end(RequestEnd::Revoked);
            return Poll::Ready(Some(Err(BodyError::Denied)));
        }
        if let Some((_, since)) = &self.trailers {
            ready!(self.record.guard().poll_flushed(*since, cx));
        }
        if self.failure.is_none() {
            let frame = match ready!(self.poll_gateway(cx)) {
                Some(Ok(frame)) => match frame.into_trailers() {
                    Ok(trailers) => return self.poll_trailers(trailers, cx),
                    Err(frame) => Some(Ok(frame)),
                },
                frame => frame,
            };
            match frame {
                Some(Err(error)) => {
                    self.record.note_gateway_cut(&error);
                    let guard = self.record.guard();
                    let delivered =
                        if guard.is_h2() { Delivered::Marker(None) } else { Delivered::Flushed(guard.flush_count()) };
                    self.failure = Some(Failure { error: Some(error), delivered });
                }
                None => {
                    if let Some((trailers, _)) = self.trailers.take() {
                        self.record.guard().end_with_trailers(&trailers);
                    }
                    return Poll::Ready(None);
                }
                frame => return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Gateway))),
            }
        }
        self.poll_failure(cx)
    }

    /// Takes the trailers that came at the end of the body.
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
            // hyper asks for nothing after them.
            if self.poll_gateway(cx).is_pending() {
                self.finish_incoming(false, Instant::now(), cx);
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if self.record.takes_trailers() && !self.has_stated_length {
            self.trailers = Some((trailers, guard.flush_count()));
        }
        self.poll(cx)
    }

    /// Notes the end of the gateway's body, and gives its connection back.
    fn finish_incoming(&mut self, failed: bool, now: Instant, cx: &mut Context<'_>) {
        if !failed {
            self.record.note_body_end();
        }
        if let Some(mut upstream) = self.upstream.take() {
            // Workaround: hyper hands the connection back only when it is polled. Delete when its client reports
            // readiness with the last frame.
            upstream.drive(cx);
            if let Some(permit) = upstream.take_permit() {
                self.record.hold_permit(permit);
            }
            if !failed {
                upstream.give_back(now);
            }
        }
    }

    fn poll_failure(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<CountedChunk>, BodyError>>> {
        let Some(failure) = &mut self.failure else { return Poll::Pending };
        match &mut failure.delivered {
            Delivered::Flushed(since) => ready!(self.record.guard().poll_flushed(*since, cx)),
            Delivered::Marker(Some(marker)) => {
                let _ = ready!(Pin::new(marker).poll(cx));
            }
            Delivered::Marker(marker) => {
                let (chunk, delivered) = CountedChunk::marker(&self.record);
                *marker = Some(delivered);
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
        }
        Poll::Ready(failure.error.take().map(|error| Err(BodyError::Gateway(error))))
    }

    fn poll_gateway(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<CountedChunk>, hyper::Error>>> {
        let guard = self.record.guard();
        if guard.is_above_high_water_mark() {
            return Poll::Pending;
        }
        guard.mark_drained();
        let mut frame = Pin::new(&mut self.incoming).poll_frame(cx);
        // The connection is driven on this task, the client's own, so that no other has to be woken for it.
        if frame.is_pending()
            && let Some(upstream) = &mut self.upstream
        {
            upstream.drive(cx);
            frame = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        let frame = ready!(frame);
        let now = Instant::now();
        guard.mark_pending(now);
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            guard.add_buffered(data.len());
        }
        if !matches!(frame, Some(Ok(_))) || self.incoming.is_end_stream() {
            self.finish_incoming(matches!(frame, Some(Err(_))), now, cx);
        }
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| CountedChunk::new(data, &self.record)))))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Before the permit is returned, which may let the client's next request continue.
        if let Some(upstream) = self.upstream.as_ref().filter(|_| self.record.is_stalled()) {
            upstream.note_stall();
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
            Self::Gateway(download) => download.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Loopgate { text, .. } => text.is_none(),
            Self::Gateway(download) => {
                !download.hides_end && download.failure.is_none() && download.incoming.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Loopgate { text, .. } => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Gateway(download) if download.hides_end => SizeHint::default(),
            Self::Gateway(download) => download.incoming.size_hint(),
        }
    }
}

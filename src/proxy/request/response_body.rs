//! The body of a response: the gateway's, streamed, or a short one of loopgate's.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::client_authorization::ClientAuthorization;
use crate::proxy::downstream::activity::RequestGuard;
use crate::proxy::upstream::pool::PooledConnection;

/// The body of a response to a client.
pub enum ResponseBody {
    /// One of loopgate's own.
    Own(Option<Bytes>),
    /// The gateway's.
    Gateway(Box<Download>),
}

/// The gateway's body on its way to the client.
pub struct Download {
    incoming: Incoming,
    upstream: Option<PooledConnection>,
    sent: Counter,
    guard: RequestGuard,
    authorization: Option<ClientAuthorization>,
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
    /// Passes on the gateway's body, which comes over `upstream`. That is given back to its pool at the end.
    pub fn gateway(
        incoming: Incoming,
        upstream: PooledConnection,
        sent: Counter,
        mut guard: RequestGuard,
        authorization: Option<ClientAuthorization>,
    ) -> Self {
        let now = Instant::now();
        let upstream = if incoming.is_end_stream() {
            upstream.give_back(now);
            None
        } else {
            Some(upstream)
        };
        guard.mark_pending(now);
        Self::Gateway(Box::new(Download { incoming, upstream, sent, guard, authorization }))
    }

    /// Creates a body of loopgate's own.
    pub fn own(text: impl Into<Bytes>) -> Self {
        Self::Own(Some(text.into()).filter(|text| !text.is_empty()))
    }
}

impl Download {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(authorization) = &mut self.authorization
            && authorization.poll_revoked(cx).is_ready()
        {
            // Closes the connection to the gateway, on which more is to come.
            self.upstream = None;
            return Poll::Ready(Some(Err(BodyError::Denied)));
        }
        self.poll_gateway(cx).map_err(BodyError::Gateway)
    }

    fn poll_gateway(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.guard.is_above_high_water_mark() {
            return Poll::Pending;
        }
        self.guard.mark_drained();
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
        self.guard.mark_pending(now);
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.sent.inc_by(data.len() as u64);
            self.guard.add_buffered(data.len());
        }
        let ended = !matches!(frame, Some(Ok(_))) || self.incoming.is_end_stream();
        if ended && let Some(mut upstream) = self.upstream.take() {
            // Once more, so that hyper notices the end of this exchange and the connection is ready for the next.
            upstream.drive(cx);
            if !matches!(frame, Some(Err(_))) {
                upstream.give_back(now);
            }
        }
        Poll::Ready(frame)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Gateway(download) => download.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_none(),
            Self::Gateway(download) => download.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Gateway(download) => download.incoming.size_hint(),
        }
    }
}

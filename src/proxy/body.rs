//! Bodies on their way: nothing is buffered whole, trailers are scrubbed, and what ends gives back what it held.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, Sleep};

use super::activity::RequestGuard;
use super::client_authorization::ClientAuthorization;
use super::upstream::UpstreamConnection;
use crate::lane::{Rules, scrub_trailers};

/// How long a client that asked for `100 Continue` waits at most before its body is taken anyway (RFC 9110 section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A client's body on its way to the gateway.
pub(super) struct RequestBody(Option<Box<Upload>>);

struct Upload {
    incoming: Incoming,
    rules: Arc<Rules>,
    progress: Arc<Progress>,
    gate: Option<ContinueGate>,
    received: Counter,
}

impl RequestBody {
    /// No body.
    pub(super) fn empty() -> Self {
        Self(None)
    }

    /// What `incoming` holds; with `gate` it is asked for only once the gateway wants it.
    pub(super) fn new(incoming: Incoming, rules: Arc<Rules>, gate: Option<ContinueGate>, received: Counter) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self(Some(Box::new(Upload { incoming, rules, progress: Arc::default(), gate, received })))
    }

    /// How far it has come; `None` where there is no body.
    pub(super) fn progress(&self) -> Option<Arc<Progress>> {
        self.0.as_ref().map(|upload| Arc::clone(&upload.progress))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(upload) = &mut self.get_mut().0 else { return Poll::Ready(None) };
        if let Some(gate) = &mut upload.gate {
            ready!(gate.poll_open(cx));
            upload.gate = None;
        }
        let Poll::Ready(frame) = Pin::new(&mut upload.incoming).poll_frame(cx) else {
            upload.progress.waiting_for_client.store(true, Ordering::Relaxed);
            return Poll::Pending;
        };
        match frame {
            Some(Err(_)) => upload.progress.broken.store(true, Ordering::Relaxed),
            _ => upload.progress.note(upload.incoming.is_end_stream() || frame.is_none()),
        }
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| {
                if let Some(data) = frame.data_ref() {
                    upload.received.inc_by(data.len() as u64);
                }
                match frame.into_trailers() {
                    Ok(mut trailers) => {
                        scrub_trailers(&mut trailers, &upload.rules);
                        Frame::trailers(trailers)
                    }
                    Err(frame) => frame,
                }
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |upload| upload.incoming.size_hint())
    }
}

/// How far an upload has come, for whoever waits for its response.
#[derive(Debug, Default)]
pub(super) struct Progress {
    frames: AtomicU64,
    finished: AtomicBool,
    /// It is the client that is waited for, not the gateway.
    waiting_for_client: AtomicBool,
    /// It was malformed, or the client broke off.
    broken: AtomicBool,
}

impl Progress {
    fn note(&self, finished: bool) {
        self.waiting_for_client.store(false, Ordering::Relaxed);
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.finished.store(finished, Ordering::Relaxed);
    }

    /// How many pieces have passed so far, and whether that was all.
    pub(super) fn so_far(&self) -> (u64, bool) {
        (self.frames.load(Ordering::Relaxed), self.finished.load(Ordering::Relaxed))
    }

    /// Whether it can't go on, by the client's fault.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether the next piece is wanted, and has not come.
    pub(super) fn is_waiting_for_client(&self) -> bool {
        self.waiting_for_client.load(Ordering::Relaxed)
    }
}

/// Keeps a body back until the gateway has said `100 Continue`.
pub(super) struct ContinueGate {
    continue_signal: Arc<ContinueSignal>,
    timeout_left: Pin<Box<Sleep>>,
}

/// Opens a [`ContinueGate`].
#[derive(Debug, Default)]
pub(super) struct ContinueSignal {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl ContinueSignal {
    /// Lets the body pass.
    pub(super) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl ContinueGate {
    /// A closed gate, and what opens it.
    pub(super) fn new() -> (Self, Arc<ContinueSignal>) {
        let continue_signal = Arc::<ContinueSignal>::default();
        let timeout_left = Box::pin(tokio::time::sleep_until(Instant::now() + CONTINUE_WAIT));
        (Self { continue_signal: Arc::clone(&continue_signal), timeout_left }, continue_signal)
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.continue_signal.waker.register(cx.waker());
        if self.continue_signal.open.load(Ordering::Acquire) { Poll::Ready(()) } else { self.timeout_left.as_mut().poll(cx) }
    }
}

/// What a client gets back.
pub(super) enum ResponseBody {
    /// One of our own.
    Own(Option<Bytes>),
    /// The gateway's.
    Gateway(Box<Download>),
}

/// The gateway's body on its way to the client.
pub(super) struct Download {
    incoming: Incoming,
    upstream: Option<Box<UpstreamConnection>>,
    sent: Counter,
    guard: RequestGuard,
    authorization: Option<ClientAuthorization>,
}

/// Why a response ends before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The gateway's side is broken.
    #[error(transparent)]
    Gateway(#[from] hyper::Error),
    /// The client has lost its right to it.
    #[error("the client is denied by now")]
    Denied,
}

impl ResponseBody {
    /// The gateway's body; `link` is the connection that it comes over and is given back to its pool at the end of it.
    pub(super) fn gateway(
        incoming: Incoming,
        upstream: Box<UpstreamConnection>,
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

    /// A body of our own.
    pub(super) fn own(text: impl Into<Bytes>) -> Self {
        Self::Own(Some(text.into()).filter(|text| !text.is_empty()))
    }
}

impl Download {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(authorization) = &mut self.authorization
            && authorization.poll_revoked(cx).is_ready()
        {
            // With its connection, on which more is to come.
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
        // The connection is driven from here, on the client's own task: no other task has to be woken for it.
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
            // Once more, so that hyper sees the end of this exchange and the connection is ready for the next.
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

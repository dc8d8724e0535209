//! A client's body on its way to the gateway: nothing is buffered whole, and trailers are scrubbed.

use std::future::poll_fn;
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

use crate::lane::{Rules, scrub_trailers};
use crate::shutdown::Shutdown;

/// How long a body of a client that expects `100 Continue` is held back while the gateway does not send that (RFC 9110 section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// How long the rest of a body that the gateway does not want is read and discarded.
const DISCARD_LIMIT: Duration = Duration::from_secs(5);

/// The body of a request to the gateway.
pub struct RequestBody(Option<Box<Upload>>);

struct Upload {
    /// `None` once it is being discarded.
    incoming: Option<Incoming>,
    rules: Arc<Rules>,
    shutdown: Shutdown,
    progress: Arc<Progress>,
    gate: Option<ContinueGate>,
    received: Counter,
}

impl RequestBody {
    /// Creates an empty body.
    pub fn empty() -> Self {
        Self(None)
    }

    /// Passes on `incoming`; with `gate` it is read only once the gateway wants it.
    pub fn new(incoming: Incoming, rules: Arc<Rules>, gate: Option<ContinueGate>, received: Counter, shutdown: &Shutdown) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self(Some(Box::new(Upload {
            incoming: Some(incoming),
            rules,
            shutdown: shutdown.clone(),
            progress: Arc::default(),
            gate,
            received,
        })))
    }

    fn incoming(&self) -> Option<&Incoming> {
        self.0.as_ref()?.incoming.as_ref()
    }

    /// Returns how far it has come; `None` where there is no body.
    pub fn progress(&self) -> Option<Arc<Progress>> {
        self.0.as_ref().map(|upload| Arc::clone(&upload.progress))
    }
}

/// Reads on where the gateway answered before the end of the body and closed: to stop would reset the client's connection or stream, and
/// many a client that is still sending then loses the response.
impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut incoming) = self.incoming.take() else { return };
        if incoming.is_end_stream() || self.progress.is_broken() || self.gate.is_some() {
            return;
        }
        self.shutdown.spawn(async move {
            let discard = poll_fn(|cx| {
                while let Some(frame) = ready!(Pin::new(&mut incoming).poll_frame(cx)) {
                    if frame.is_err() {
                        break;
                    }
                }
                Poll::Ready(())
            });
            let _ = tokio::time::timeout(DISCARD_LIMIT, discard).await;
        });
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(upload) = &mut self.get_mut().0 else { return Poll::Ready(None) };
        let Some(incoming) = &mut upload.incoming else { return Poll::Ready(None) };
        if let Some(gate) = &mut upload.gate {
            ready!(gate.poll_open(cx));
            upload.gate = None;
        }
        let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
            upload.progress.waiting_for_client.store(true, Ordering::Relaxed);
            return Poll::Pending;
        };
        match frame {
            Some(Err(_)) => upload.progress.broken.store(true, Ordering::Relaxed),
            _ => upload.progress.note_piece(),
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
        self.incoming().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// How far a body has come, for the deadline of the response.
#[derive(Debug)]
pub struct Progress {
    created: Instant,
    /// When the last piece passed, in milliseconds since `created`, rounded up; 0 if none has.
    last_piece: AtomicU64,
    waiting_for_client: AtomicBool,
    broken: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            created: Instant::now(),
            last_piece: AtomicU64::new(0),
            waiting_for_client: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }
}

impl Progress {
    fn note_piece(&self) {
        self.waiting_for_client.store(false, Ordering::Relaxed);
        let after = u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_piece.store(after.saturating_add(1), Ordering::Relaxed);
    }

    /// Returns when the last piece passed; `None` if none has.
    pub fn last_piece(&self) -> Option<Instant> {
        let after = self.last_piece.load(Ordering::Relaxed);
        (after > 0).then(|| self.created + Duration::from_millis(after))
    }

    /// Returns whether the body is malformed, or the client broke off.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Returns whether the next piece is wanted and has not come.
    pub fn is_waiting_for_client(&self) -> bool {
        self.waiting_for_client.load(Ordering::Relaxed)
    }
}

/// Holds a body back until the gateway has sent `100 Continue`.
pub struct ContinueGate {
    signal: Arc<ContinueSignal>,
    deadline: Pin<Box<Sleep>>,
}

/// Opens a [`ContinueGate`].
#[derive(Debug, Default)]
pub struct ContinueSignal {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl ContinueSignal {
    /// Lets the body pass.
    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl ContinueGate {
    /// Creates a closed gate and the signal that opens it.
    pub fn new() -> (Self, Arc<ContinueSignal>) {
        let signal = Arc::<ContinueSignal>::default();
        let deadline = Box::pin(tokio::time::sleep_until(Instant::now() + CONTINUE_WAIT));
        (Self { signal: Arc::clone(&signal), deadline }, signal)
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.waker.register(cx.waker());
        if self.signal.open.load(Ordering::Acquire) { Poll::Ready(()) } else { self.deadline.as_mut().poll(cx) }
    }
}

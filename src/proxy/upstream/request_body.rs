//! The body of a request on its way from the client to the gateway. It is streamed, and its
//! trailers are scrubbed.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, Sleep};

use crate::labels::Protocol;
use crate::lane::{RequestRules, scrub_request_trailers};
use crate::proxy::downstream::head_tracker::RequestHandle;
use crate::shutdown::Shutdown;

/// The longest time for which the body of a client that expects `100 Continue` is held back until
/// the gateway sends that (RFC 9110 section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The time for which the rest of a body that the gateway does not want is read and discarded.
const DISCARD_LIMIT: Duration = Duration::from_secs(5);

/// The body of a request to the gateway; `None` if it is empty.
pub struct RequestBody(Option<Box<NonEmptyBody>>);

/// A body that is not empty.
struct NonEmptyBody {
    /// The client's body; `None` while its rest is discarded.
    incoming: Option<Incoming>,
    protocol: Protocol,
    rules: Arc<RequestRules>,
    shutdown: Shutdown,
    progress: Arc<BodyProgress>,
    gate: Option<ContinueGate>,
    received_bytes: Counter,
}

impl RequestBody {
    /// Creates an empty body.
    pub fn empty() -> Self {
        Self(None)
    }

    /// Creates a body that passes on `incoming`, which comes over `protocol`. With `gate`, it is
    /// read only once that is open.
    pub fn new(
        incoming: Incoming,
        protocol: Protocol,
        rules: Arc<RequestRules>,
        gate: Option<ContinueGate>,
        received_bytes: Counter,
        shutdown: &Shutdown,
    ) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self(Some(Box::new(NonEmptyBody {
            incoming: Some(incoming),
            protocol,
            rules,
            shutdown: shutdown.clone(),
            progress: Arc::default(),
            gate,
            received_bytes,
        })))
    }

    /// Permits the body to be read: the gateway has sent `100 Continue`.
    pub fn permit_reading(&mut self) {
        if let Some(gate) = self.0.as_mut().and_then(|body| body.gate.as_mut()) {
            gate.is_open = true;
        }
    }

    fn incoming(&self) -> Option<&Incoming> {
        self.0.as_ref()?.incoming.as_ref()
    }

    /// Returns the progress of the body; `None` if it is empty.
    pub fn progress(&self) -> Option<Arc<BodyProgress>> {
        self.0.as_ref().map(|body| Arc::clone(&body.progress))
    }
}

/// Reads and discards the rest of a body if the gateway answered and closed before its end. If
/// loopgate stopped reading, hyper would reset the client's connection or stream, and many clients
/// that are still sending would lose the response.
impl Drop for NonEmptyBody {
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
    type Error = BrokenBody;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let Some(incoming) = &mut body.incoming else { return Poll::Ready(None) };
        if let Some(gate) = &mut body.gate {
            ready!(gate.poll_open(cx));
            body.gate = None;
        }
        let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
            body.progress.is_waiting_for_client.store(true, Ordering::Relaxed);
            return Poll::Pending;
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            None if body.protocol == Protocol::H1 || incoming.is_end_stream() => {
                body.progress.record_part();
                return Poll::Ready(None);
            }
            broken => {
                let broken = broken.and_then(Result::err).map_or(BrokenBody::Reset, BrokenBody::Hyper);
                body.progress.record_break(&broken);
                return Poll::Ready(Some(Err(broken)));
            }
        };
        body.progress.record_part();
        Poll::Ready(Some(Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                scrub_request_trailers(&mut trailers, &body.rules);
                Frame::trailers(trailers)
            }
            Err(frame) => {
                if let Some(data) = frame.data_ref() {
                    body.received_bytes.inc_by(data.len() as u64);
                }
                frame
            }
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The reason why a body ends early.
#[derive(Debug, thiserror::Error)]
pub enum BrokenBody {
    #[error(transparent)]
    Hyper(hyper::Error),
    /// The client reset the stream with NO_ERROR. hyper treats that as the end of the body
    /// (`hyper/src/body/incoming.rs`), but only a server may end a stream in this way (RFC 9113
    /// section 8.1). Workaround: delete when hyper's server reports an error.
    #[error("the client reset the stream")]
    Reset,
}

impl BrokenBody {
    /// Returns whether the client closed its connection or reset its stream, rather than sent a
    /// malformed body.
    pub fn has_client_left(&self) -> bool {
        match self {
            Self::Hyper(error) => is_caused_by_leaving(error),
            Self::Reset => true,
        }
    }
}

/// Returns whether an error of reading a body was caused by the end of the connection, or by a
/// reset of the stream by the client.
fn is_caused_by_leaving(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<h2::Error>() {
        return error.is_io() || error.is_remote();
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // hyper's decoder reports malformed bodies with these kinds. rustls uses them too, for a
        // failed connection.
        let is_malformed = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData);
        return !is_malformed || error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    }
    error.source().is_none_or(is_caused_by_leaving)
}

/// The progress of a request's body, for the deadline of the response.
#[derive(Debug)]
pub struct BodyProgress {
    created: Instant,
    /// The time at which the latest part passed, in milliseconds after `created`, rounded up; 0 if
    /// none has.
    last_part_time: AtomicU64,
    is_waiting_for_client: AtomicBool,
    is_broken: AtomicBool,
    has_client_left: AtomicBool,
}

impl Default for BodyProgress {
    fn default() -> Self {
        Self {
            created: Instant::now(),
            last_part_time: AtomicU64::new(0),
            is_waiting_for_client: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
            has_client_left: AtomicBool::new(false),
        }
    }
}

impl BodyProgress {
    fn record_part(&self) {
        self.is_waiting_for_client.store(false, Ordering::Relaxed);
        let after = u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_part_time.store(after.saturating_add(1), Ordering::Relaxed);
    }

    /// Returns the time at which the latest part passed; `None` if none has.
    pub fn last_part_time(&self) -> Option<Instant> {
        let after = self.last_part_time.load(Ordering::Relaxed);
        (after > 0).then(|| self.created + Duration::from_millis(after))
    }

    fn record_break(&self, why: &BrokenBody) {
        self.has_client_left.store(why.has_client_left(), Ordering::Relaxed);
        self.is_broken.store(true, Ordering::Release);
    }

    /// Returns whether the client closed its connection or reset its stream before the end of the
    /// body.
    pub fn has_client_left(&self) -> bool {
        self.has_client_left.load(Ordering::Relaxed)
    }

    /// Returns whether the body ended early: it is malformed, or the client left.
    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    /// Returns whether the next part of the body is waited for.
    pub fn is_waiting_for_client(&self) -> bool {
        self.is_waiting_for_client.load(Ordering::Relaxed)
    }
}

/// Holds a body back until the gateway has sent `100 Continue`, for at most [`CONTINUE_WAIT`].
pub struct ContinueGate {
    is_open: bool,
    deadline: Pin<Box<Sleep>>,
    /// Sends `100 Continue` to the client; `None` if hyper does.
    handle: Option<RequestHandle>,
}

impl ContinueGate {
    /// Creates a closed gate. When it opens, `handle` sends `100 Continue` to the client.
    pub fn new(handle: Option<RequestHandle>) -> Self {
        let deadline = Box::pin(tokio::time::sleep_until(Instant::now() + CONTINUE_WAIT));
        Self { is_open: false, deadline, handle }
    }

    /// Completes when the gateway has sent `100 Continue`, or after [`CONTINUE_WAIT`]. Then sends
    /// `100 Continue` to the client, if hyper does not.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_open {
            ready!(self.deadline.as_mut().poll(cx));
        }
        if let Some(handle) = self.handle.take() {
            handle.send_interim(StatusCode::CONTINUE, &HeaderMap::new());
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_body_is_distinguished_from_a_client_that_left() {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidData, InvalidInput, TimedOut, UnexpectedEof};
        for (kind, left) in [
            (UnexpectedEof, true),
            (ConnectionReset, true),
            (ConnectionAborted, true),
            (TimedOut, true),
            (InvalidInput, false),
            (InvalidData, false),
        ] {
            assert_eq!(is_caused_by_leaving(&io::Error::from(kind)), left, "{kind}");
            assert_eq!(is_caused_by_leaving(&io::Error::new(kind, "text")), left, "{kind}");
        }
        assert!(
            is_caused_by_leaving(&io::Error::new(InvalidData, rustls::Error::DecryptError)),
            "a TLS error ends the connection"
        );
        let nested = io::Error::other(crate::proxy::error::Error::GatewayUnavailable(InvalidData.into()));
        assert!(is_caused_by_leaving(&nested), "the kind of the outermost I/O error decides");
        assert!(!is_caused_by_leaving(&h2::Error::from(h2::Reason::PROTOCOL_ERROR)));
        assert!(BrokenBody::Reset.has_client_left());
    }
}

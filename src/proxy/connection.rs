//! One downstream connection, from its first byte to its last.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::{debug, info};

use super::activity::{Activity, Overdue, Timeouts};
use super::close_signal::{CloseReason, CloseSignal};
use super::h1_request_guard::H1RequestGuard;
use super::h2_flood_guard::{ENHANCE_YOUR_CALM, H2FloodGuard};
use super::h2_stream_stall::StreamExecutor;
use super::registry::{RegistryGuard, unix};
use super::request::answer;
use super::{Proxy, Settings};
use crate::addr::PeerAddr;
use crate::labels::Protocol;
use crate::lane::{Denied, Evidence, Lane, ProxyHeader, admit_peer, admit_stated_client, decide};
use crate::listener::{Permit, proxy_protocol};
use crate::metrics::count;
use crate::metrics::traffic::Held;
use crate::tls;
use crate::workers::WorkerSlot;

/// How long a connection that was asked to end may take to say grace_until.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// Flow-control window of an HTTP/2 stream and of a connection, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// StreamExecutor of an HTTP/2 connection that may end in a reset by its client before they were looked at, or by us for its mistakes.
const RESETS: usize = 20;
/// What HTTP/2 writes without a response being taken (our PINGs, and answers to the client's), in bytes.
const CONTROL: usize = 64;
/// The most that is held for an HTTP/1.1 client in each direction, or for an HTTP/2 stream, in bytes; a head may need more.
const BUFFER: usize = 64 * 1024;

/// What a client hears that begins a head and does not end it in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// What requests of one connection share.
pub(super) struct Session {
    pub(super) proxy: Arc<Proxy>,
    pub(super) settings: Arc<Settings>,
    pub(super) lane: Arc<Lane>,
    pub(super) peer: PeerAddr,
    pub(super) protocol: Protocol,
    pub(super) number: u64,
    pub(super) activity: Arc<Activity>,
    pub(super) close_signal: CloseSignal,
}

/// Why a connection was given up before it had a lane.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("denied: {}", .0.label())]
    Denied(Denied),
    #[error("PROXY protocol: {0}")]
    ProxyProtocol(#[from] proxy_protocol::Error),
    #[error("{0}")]
    Tls(#[from] tls::Error),
    #[error("loopgate is about to end")]
    Ending,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An accepted connection on its way to its worker.
pub(super) struct AcceptedConnection {
    pub(super) stream: std::net::TcpStream,
    pub(super) peer: PeerAddr,
    /// Given back when the connection ends.
    pub(super) held: (Permit, WorkerSlot),
}

/// Serves `accepted` until it is over; to be closing on its worker.
pub(super) async fn serve(proxy: Arc<Proxy>, accepted: AcceptedConnection) {
    let peer = accepted.peer;
    if let Err(error) = try_serve(&proxy, accepted).await {
        let traffic = &proxy.traffic;
        match &error {
            Error::Denied(denied) => count(&traffic.denied, denied.label()),
            Error::ProxyProtocol(_) => count(&traffic.denied, "proxy_protocol"),
            Error::Tls(error) => count(&traffic.handshake_failures, error.label()),
            Error::Ending | Error::Io(_) => {}
        }
        let cause = std::error::Error::source(&error).and_then(|error| error.source()).map(ToString::to_string).unwrap_or_default();
        debug!(%peer, cause, "connection closed: {error}");
    }
}

async fn try_serve(proxy: &Arc<Proxy>, accepted: AcceptedConnection) -> Result<(), Error> {
    let AcceptedConnection { stream, peer, held } = accepted;
    let mut stream = TcpStream::from_std(stream)?;
    let settings = proxy.settings.load_full();
    admit_peer(peer.ip(), &proxy.view.borrow(), proxy.rules.load().policy()).map_err(Error::Denied)?;
    let stated = unless_ending(proxy, stated_client(proxy, &settings, &mut stream, peer)).await?;
    admit_stated_client(peer.ip(), stated, proxy.rules.load().policy()).map_err(Error::Denied)?;
    let terms = proxy.terms.load_full();
    let handshake = unless_ending(proxy, tls::accept(stream, &terms, settings.limits.handshake_timeout)).await?;
    let tls::Handshake { stream, certificate } = handshake;
    proxy.traffic.handshakes.inc();
    let alpn = stream.get_ref().1.alpn_protocol();
    if alpn == Some(tls::ENROL) {
        tokio::select! {
            () = proxy.shutdown.begun() => {}
            () = (proxy.enrol)(stream, peer) => {}
        }
        return Ok(());
    }
    let protocol = Protocol::of_alpn(alpn);
    let vouched_for = certificate.is_some();
    let evidence = Evidence { peer: peer.ip(), proxy_header: stated, certificate };
    let (view, rules) = (Arc::clone(&proxy.view.borrow()), proxy.rules.load_full());
    let lane = decide(&evidence, &view, rules.policy(), unix(SystemTime::now())).map_err(Error::Denied)?;
    let lane = Arc::new(lane);
    let entry = proxy.registry.register(peer, Arc::clone(&lane), protocol, evidence, proxy.shutdown.token());
    // On the roll first, then a second look: a change between the decision and the entry would be nobody's to notice.
    if !Arc::ptr_eq(&view, &proxy.view.borrow()) {
        proxy.review();
    }
    if !Arc::ptr_eq(&rules, &proxy.rules.load()) {
        proxy.review();
        proxy.review_external();
    }
    if vouched_for && !terms.trusts_same_client_cas(&proxy.terms.load()) {
        return Ok(());
    }
    debug!(connection = entry.number(), %peer, lane = lane.kind().label(), protocol = protocol.label(), "connected");
    let activity = Activity::new();
    let counters = proxy.traffic.lane(lane.kind());
    counters.connections.inc();
    let session = Arc::new(Session {
        proxy: Arc::clone(proxy),
        settings,
        lane,
        peer,
        protocol,
        number: entry.number(),
        activity: Arc::clone(&activity),
        close_signal: entry.close_signal().clone(),
    });
    let open = Held::new(&counters.open);
    let bytes = match protocol {
        Protocol::Http2 => ProtocolGuard::H2(H2FloodGuard::new(), proxy.traffic.floods.clone()),
        Protocol::Http1 => ProtocolGuard::H1(H1RequestGuard::default()),
    };
    let io = Downstream { tls: stream, observer: Some(Observer { activity, bytes }), unwritten: false, _held: (held, entry, open) };
    match protocol {
        Protocol::Http2 => serve_h2(session, io).await,
        Protocol::Http1 => serve_h1(session, io).await,
    }
    Ok(())
}

/// Waits for what a client says before its first request, but not once loopgate is about to end.
async fn unless_ending<T, E: Into<Error>>(proxy: &Proxy, greeting: impl Future<Output = Result<T, E>>) -> Result<T, Error> {
    tokio::select! {
        () = proxy.shutdown.begun() => Err(Error::Ending),
        greeting = greeting => greeting.map_err(Into::into),
    }
}

/// What a PROXY header says, which only trusted proxies send, and only where it is turned on.
async fn stated_client(proxy: &Proxy, settings: &Settings, stream: &mut TcpStream, peer: PeerAddr) -> Result<ProxyHeader, Error> {
    if !settings.proxy_protocol || !proxy.rules.load().policy().is_trusted_proxy(peer.ip()) {
        return Ok(ProxyHeader::Local);
    }
    Ok(proxy_protocol::read(stream, settings.limits.handshake_timeout).await?)
}

async fn serve_h1(session: Arc<Session>, io: Downstream) {
    let limits = &session.settings.limits;
    let connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // Deadlines are ours: hyper's can't tell an idle connection from a slow head.
            .header_read_timeout(None)
            .max_headers(limits.head_fields)
            .max_header_size(limits.head_bytes)
            .max_buf_size(BUFFER.max(limits.head_bytes))
            // Never `pipeline_flush`: hyper then buffers a body without bound for as long as its source keeps up, and keeps back what it
            // has to say while there is input left, be it a 101 with frames behind the request or a refusal.
            .serve_connection(TokioIo::new(io), service_fn(|request: Request<Incoming>| answer(Arc::clone(&session), request)))
            .with_upgrades()
    );
    watch(&session, connection, |connection| connection.graceful_shutdown()).await;
}

async fn serve_h2(session: Arc<Session>, io: Downstream) {
    let limits = &session.settings.limits;
    let connection = pin!(
        http2::Builder::new(StreamExecutor::new(&session.proxy.shutdown, limits.stall_timeout))
            .timer(TokioTimer::new())
            .enable_connect_protocol()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(limits.h2_streams)
            .max_send_buf_size(BUFFER)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(RESETS)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(Duration::from_secs(20))
            .serve_connection(TokioIo::new(io), service_fn(|request: Request<Incoming>| Box::pin(answer(Arc::clone(&session), request))))
    );
    watch(&session, connection, |connection| connection.graceful_shutdown()).await;
}

/// Drives `connection` to its end: its own, or that of its deadline, its lane, or loopgate.
async fn watch<C>(session: &Session, mut connection: Pin<&mut C>, ask_to_end: impl Fn(Pin<&mut C>))
where
    C: Future<Output = hyper::Result<()>>,
{
    let limits = &session.settings.limits;
    let timeouts = Timeouts { head: limits.head_timeout, idle: limits.idle_timeout, stall: limits.stall_timeout };
    let look = timeouts.idle.min(timeouts.head).min(timeouts.stall);
    let (closing, revoked) = session.close_signal.futures();
    let (mut closing, mut revoked) = (pin!(closing), pin!(revoked));
    let mut timer = pin!(tokio::time::sleep(look));
    let mut draining = false;
    // Until when a connection that was asked to end for its idleness is left alone, whatever wakes us meanwhile.
    let mut grace_until: Option<Instant> = None;
    poll_fn(|cx| {
        while let Poll::Ready(call) = session.close_signal.poll(cx, closing.as_mut(), revoked.as_mut(), draining) {
            if call == CloseReason::Revoked {
                info!(connection = session.number, peer = %session.peer, "closed: it has lost the right to its lane");
                return Poll::Ready(());
            }
            draining = true;
            ask_to_end(connection.as_mut());
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            if let Err(error) = result {
                debug!(connection = session.number, peer = %session.peer, %error, "connection ended");
            }
            return Poll::Ready(());
        }
        // Re-armed only when it is due or must be earlier, since moving a timer costs more than a look at the clock.
        loop {
            let mut due = session.activity.deadline(timeouts);
            if let (Some((at, Overdue::Idle)), Some(grace_until)) = (&mut due, grace_until) {
                *at = grace_until.max(*at);
            }
            if let Some((at, _)) = due
                && at < timer.deadline()
            {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            match due {
                None => timer.as_mut().reset(now + look),
                Some((at, _)) if at > now => timer.as_mut().reset(at),
                Some((_, Overdue::Idle)) if !draining => {
                    draining = true;
                    grace_until = Some(now + CLOSE_GRACE);
                    ask_to_end(connection.as_mut());
                    if connection.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                }
                Some((_, overdue)) => {
                    count(&session.proxy.traffic.overdue, overdue.label());
                    debug!(connection = session.number, peer = %session.peer, ?overdue, "closed: too slow");
                    if overdue == Overdue::Head {
                        session.activity.give_up_head();
                        let _ = connection.as_mut().poll(cx);
                    }
                    return Poll::Ready(());
                }
            }
        }
    })
    .await;
}

/// A downstream connection's bytes, with everything that is given back when they end; it goes along into a tunnel.
pub(super) struct Downstream {
    tls: tls::Stream<TcpStream>,
    /// Who has a look at what comes and goes; `None` in a tunnel.
    observer: Option<Observer>,
    /// Whether more was to be written than could be, so that what is written next belongs to what was before.
    unwritten: bool,
    _held: ((Permit, WorkerSlot), RegistryGuard, Held),
}

/// What is made of the bytes that come and go.
struct Observer {
    activity: Arc<Activity>,
    bytes: ProtocolGuard,
}

/// Of which protocol they are, who follows them, and what counts those who send too many.
enum ProtocolGuard {
    H1(H1RequestGuard),
    H2(H2FloodGuard, Counter),
}

impl Observer {
    /// Takes what came in; returns what is to be said where that was the last straw.
    fn bytes_in(&mut self, bytes: &mut [u8]) -> Option<&'static [u8]> {
        match &mut self.bytes {
            ProtocolGuard::H1(framing) => {
                framing.follow(bytes);
                self.activity.bytes_in(framing.in_head());
                None
            }
            ProtocolGuard::H2(pace, floods) => pace.follow(bytes).then(|| {
                floods.inc();
                &ENHANCE_YOUR_CALM[..]
            }),
        }
    }

    fn bytes_out(&mut self, count: usize) {
        match &mut self.bytes {
            ProtocolGuard::H1(_) => self.activity.bytes_out(),
            ProtocolGuard::H2(pace, _) => {
                pace.written(count);
                if count > CONTROL {
                    self.activity.bytes_out();
                }
            }
        }
    }
}

impl Downstream {
    /// Takes whatever comes in from now on for what it is: HTTP/1.1 is over.
    pub(super) fn leave_http(&mut self) {
        self.observer = None;
    }

    fn note_written(&mut self, poll: &Poll<io::Result<usize>>, wanted: usize) {
        let written = if let Poll::Ready(Ok(written)) = poll { *written } else { 0 };
        self.unwritten = written < wanted;
        if let Some(observer) = &mut self.observer {
            observer.activity.written(written, !self.unwritten);
            if written > 0 {
                observer.bytes_out(written);
            }
        }
    }

    /// Ends the connection with `words`, unless they would be taken for a part of what was not written whole.
    fn write_final(&mut self, words: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut tls = Pin::new(&mut self.tls);
        if !self.unwritten
            && let Poll::Ready(Ok(_)) = tls.as_mut().poll_write(cx, words)
        {
            let _ = tls.poll_shutdown(cx);
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl AsyncRead for Downstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.tls).poll_read(cx, buf);
        let Some(observer) = &mut this.observer else { return poll };
        if buf.filled().len() > before {
            if let Some(words) = observer.bytes_in(&mut buf.filled_mut()[before..]) {
                return this.write_final(words, cx);
            }
        } else if observer.activity.head_given_up() {
            return this.write_final(TOO_SLOW, cx);
        }
        poll
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.tls).poll_write(cx, buf);
        self.note_written(&poll, buf.len());
        poll
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.tls).poll_write_vectored(cx, bufs);
        self.note_written(&poll, bufs.iter().map(|buf| buf.len()).sum());
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.tls).poll_flush(cx);
        if let Some(observer) = &self.observer {
            observer.activity.flushed(poll.is_ready());
        }
        poll
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

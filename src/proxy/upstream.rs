//! Connections to the gateway: for each worker one pool by loopback source address, driven on the task of the client that uses them.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{Builder, Connection, Parts, SendRequest};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, timeout, timeout_at};

use super::body::{ContinueSignal, Progress, RequestBody};
use super::error::Error;
use super::read_after_reset::{ReadableAfterWriteError, StreamState};
use crate::config::{Config, Limits};
use crate::lane::GatewayHead;
use crate::metrics::traffic::Traffic;
use crate::shutdown::Shutdown;
use crate::workers;

/// How long an idle connection is kept where the gateway does not say (Node closes after 5 s).
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// Idle connections that each worker keeps for each source address.
pub const MAX_IDLE: usize = 256;
/// The most that is held for the gateway in each direction, in bytes; the head of a response must fit.
const BUFFER: usize = 16 * 1024;
/// How long the rest of a request's body may take after the answer is there.
const LINGER: Duration = Duration::from_secs(1);
/// Between tries to reach a gateway that is not there.
const RETRY: Duration = Duration::from_millis(50);

type GatewayConnection = Connection<TokioIo<ReadableAfterWriteError<TcpStream>>, RequestBody>;

/// The way to the gateway.
#[derive(Debug)]
pub(super) struct Upstream {
    gateway: SocketAddr,
    /// One for each worker, so that a connection is only ever used on the thread whose event queue it is in.
    pools: Box<[Arc<Pool>]>,
    /// As many as external clients may have, who have a hundred streams on each connection to loopgate: the gateway is not to run out of
    /// files or memory for them, since agents need it too. Those that idle in the pools come on top.
    permits: Arc<Semaphore>,
    metrics: Arc<Traffic>,
}

impl Upstream {
    pub(super) fn new(config: &Config, metrics: Arc<Traffic>, workers: usize, shutdown: &Shutdown) -> Self {
        let pool = || Arc::new(Pool { idle: Mutex::default(), shutdown: shutdown.clone() });
        let pools = std::iter::repeat_with(pool).take(workers).collect();
        let permits = config.limits.max_connections.saturating_add(workers * MAX_IDLE).min(Semaphore::MAX_PERMITS);
        Self { gateway: config.gateway.address, pools, permits: Arc::new(Semaphore::new(permits)), metrics }
    }

    fn pool(&self) -> &Arc<Pool> {
        &self.pools[workers::index()]
    }

    /// Sends a request, which came in when it `started` (a moment ago, so that the clock needs no second look), and waits for the head of
    /// its response.
    ///
    /// Nothing is sent twice unless none of it was sent before, or doing so is harmless and not a byte of an answer came. Even then
    /// it is sent over a new connection twice at most: it may be the request that makes the gateway break off.
    pub(super) fn send<'a>(
        &'a self,
        head: GatewayHead,
        body: RequestBody,
        continue_signal: Option<Arc<ContinueSignal>>,
        limits: &'a Limits,
        started: Instant,
    ) -> impl Future<Output = Result<(Response<Incoming>, Box<UpstreamConnection>), Error>> + 'a {
        let (source, is_external) = (head.source(), head.client().is_some());
        let mut spare = (head.is_repeatable() && body.is_end_stream()).then(|| head.duplicate());
        let progress = body.progress();
        let give_up = started + limits.gateway_wait;
        let mut request = head.into_request(body);
        if let Some(continue_signal) = continue_signal {
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    continue_signal.open();
                }
            });
        }
        async move {
            let mut since = started;
            // Whether only a new connection will do.
            let mut fresh = false;
            loop {
                let kept = if fresh { None } else { self.pool().take(source, since) };
                let mut link = match kept {
                    Some(link) => link,
                    None => {
                        let link = Box::pin(self.connect(source, is_external, limits, give_up)).await?;
                        since = Instant::now();
                        link
                    }
                };
                let patience = ResponseTimeout { limit: limits.request_timeout, since, progress: progress.as_deref() };
                match link.exchange(request, patience).await {
                    Ok(response) => {
                        link.note_keep_alive(response.headers());
                        return Ok((response, link));
                    }
                    Err(Failure::Unsent(unsent)) => {
                        request = *unsent;
                        // One that the gateway closed as soon as it was opened is as good as none.
                        if !link.reused {
                            if Instant::now() + RETRY >= give_up {
                                return Err(Error::GatewayAway(io::ErrorKind::ConnectionReset.into()));
                            }
                            tokio::time::sleep(RETRY).await;
                        }
                    }
                    Err(Failure::Broken(error)) if progress.as_deref().is_some_and(Progress::is_broken) => {
                        return Err(Error::ClientBroke(error));
                    }
                    Err(Failure::Broken(error)) => {
                        let Some(head) = spare.take().filter(|_| !link.state.has_read()) else { return Err(Error::GatewayBroke(error)) };
                        if link.reused {
                            // Closed for its age, most likely, while the request was on its way.
                            spare = Some(head.duplicate());
                        } else {
                            tokio::time::sleep(RETRY).await;
                        }
                        fresh = true;
                        request = head.into_request(RequestBody::empty());
                    }
                    Err(Failure::Slow { client: false }) => return Err(Error::GatewaySlow(limits.request_timeout)),
                    Err(Failure::Slow { client: true }) => return Err(Error::ClientSlow(limits.request_timeout)),
                }
                since = Instant::now();
            }
        }
    }

    /// Opens a connection from `source`; while the gateway is not there, tries again until `give_up`.
    async fn connect(
        &self,
        source: Ipv4Addr,
        is_external: bool,
        limits: &Limits,
        give_up: Instant,
    ) -> Result<Box<UpstreamConnection>, Error> {
        let mut permit = None;
        if is_external {
            let free = timeout_at(give_up, Arc::clone(&self.permits).acquire_owned()).await;
            permit = Some(free.map_err(|_| Error::UpstreamLimitReached)?.expect("the semaphore is never closed"));
        }
        loop {
            let attempt = timeout(limits.connect_timeout, dial(source, self.gateway)).await;
            let error = match attempt {
                Ok(Ok(stream)) => {
                    let stream = ReadableAfterWriteError::new(stream);
                    let state = Arc::clone(stream.state());
                    let (sender, connection) =
                        Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream)).await.map_err(Error::GatewayBroke)?;
                    self.metrics.gateway_connections.inc();
                    return Ok(Box::new(UpstreamConnection {
                        sender,
                        connection: Some(connection),
                        ended: false,
                        state,
                        timer: Box::pin(tokio::time::sleep(limits.request_timeout)),
                        source,
                        keep: KEEP_IDLE,
                        reused: false,
                        pool: Arc::clone(self.pool()),
                        permit,
                    }));
                }
                Ok(Err(error)) => error,
                Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer to the connection"),
            };
            if Instant::now() + RETRY >= give_up {
                return Err(Error::not_connected(error));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Closes idle connections whose time has come; to be called every few seconds.
    pub(super) fn sweep(&self) {
        for pool in &self.pools {
            pool.sweep();
        }
    }
}

/// Connects to `gateway` with `source` as the address that the gateway sees, unless that is not on loopback: from there, no packet comes back to
/// a loopback address.
async fn dial(source: Ipv4Addr, gateway: SocketAddr) -> io::Result<TcpStream> {
    let socket = if gateway.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if matches!(gateway.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
        // The port is chosen at connect, when the destination is known: otherwise each source address has but 28,000 of them. That is still
        // enough where this option is unknown, as it is to QEMU's emulation of another processor.
        match nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true) {
            Err(Errno::ENOPROTOOPT) => {}
            set => set?,
        }
        socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    }
    socket.set_nodelay(true)?;
    socket.connect(gateway).await
}

/// How long a response head may take, counted from the last piece of the request's body.
struct ResponseTimeout<'a> {
    limit: Duration,
    since: Instant,
    progress: Option<&'a Progress>,
}

enum Failure {
    /// Not a byte of it was sent.
    Unsent(Box<Request<RequestBody>>),
    /// The connection broke before the response's head was there.
    Broken(hyper::Error),
    /// Nothing came in time, from the client or else from the gateway.
    Slow { client: bool },
}

/// One connection to the gateway, for one request at a time.
pub(super) struct UpstreamConnection {
    sender: SendRequest<RequestBody>,
    /// `None` when it was given up for what it had not taken.
    connection: Option<GatewayConnection>,
    /// The connection's future is over: it was closed, it failed, or it left HTTP.
    ended: bool,
    state: Arc<StreamState>,
    /// For the deadline of each exchange in turn: it is moved only when it is due or too late, which spares each request two
    /// changes to the timers of its thread.
    timer: Pin<Box<Sleep>>,
    source: Ipv4Addr,
    /// How long it may idle.
    keep: Duration,
    reused: bool,
    pool: Arc<Pool>,
    permit: Option<UpstreamPermit>,
}

/// Keeps a connection to the gateway counted.
pub(super) type UpstreamPermit = OwnedSemaphorePermit;

impl fmt::Debug for UpstreamConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamConnection")
            .field("source", &self.source)
            .field("reused", &self.reused)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl UpstreamConnection {
    /// Sends `request` and waits for the head of its response.
    fn exchange<'a>(
        &'a mut self,
        request: Request<RequestBody>,
        patience: ResponseTimeout<'a>,
    ) -> impl Future<Output = Result<Response<Incoming>, Failure>> + 'a {
        let Self { sender, connection, ended, state, timer, .. } = self;
        state.reset();
        let response = sender.try_send_request(request);
        let mut due = patience.since + patience.limit;
        let mut seen = patience.progress.map(Progress::so_far);
        async move {
            let mut response = pin!(response);
            poll_fn(|cx| {
                *ended = *ended || connection.as_mut().is_none_or(|connection| connection.poll_without_shutdown(cx).is_ready());
                let mut answer = response.as_mut().poll(cx);
                if answer.is_pending() && *ended {
                    // What a connection that was closed meanwhile has not taken comes back when it is gone.
                    *connection = None;
                    answer = response.as_mut().poll(cx);
                }
                if let Poll::Ready(result) = answer {
                    return Poll::Ready(result.map_err(|mut failed| match failed.take_message() {
                        Some(request) => Failure::Unsent(Box::new(request)),
                        None => Failure::Broken(failed.into_error()),
                    }));
                }
                if timer.deadline() > due {
                    timer.as_mut().reset(due);
                }
                while timer.as_mut().poll(cx).is_ready() {
                    let now = Instant::now();
                    if due <= now {
                        let so_far = patience.progress.map(Progress::so_far);
                        if so_far == seen {
                            return Poll::Ready(Err(Failure::Slow {
                                client: patience.progress.is_some_and(Progress::is_waiting_for_client),
                            }));
                        }
                        (seen, due) = (so_far, now + patience.limit);
                    }
                    timer.as_mut().reset(due);
                }
                Poll::Pending
            })
            .await
        }
    }

    /// Lets the connection read and write what it can.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        self.ended = self.ended || self.connection.as_mut().is_none_or(|connection| connection.poll_without_shutdown(cx).is_ready());
    }

    /// Heeds how long the gateway says that it keeps an idle connection, less a second for the way there.
    fn note_keep_alive(&mut self, headers: &HeaderMap) {
        let stated = headers
            .get("keep-alive")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(',').find_map(|field| field.trim().strip_prefix("timeout=")?.parse::<u64>().ok()));
        if let Some(seconds) = stated {
            self.keep = Duration::from_secs(seconds.saturating_sub(1).min(600));
        }
    }

    /// Puts the connection back for the next request. Where the answer came before the end of the request's body, the rest of that has a
    /// moment to arrive first: to cut it off would tell an HTTP/2 client of an error (RFC 9113 section 8.1) that some take for theirs.
    pub(super) fn give_back(mut self: Box<Self>, now: Instant) {
        if self.ended {
            return;
        }
        let pool = Arc::clone(&self.pool);
        if self.sender.is_ready() {
            if !self.state.has_write_failed() {
                pool.put(self, now);
            }
            return;
        }
        let ending = pool.shutdown.clone();
        ending.spawn(async move {
            let over = poll_fn(|cx| {
                self.drive(cx);
                if self.ended || self.sender.is_ready() { Poll::Ready(()) } else { Poll::Pending }
            });
            if timeout(LINGER, over).await.is_ok() && !self.ended && !self.state.has_write_failed() {
                pool.put(self, Instant::now());
            }
        });
    }

    /// What is left of the connection after a `101`: the socket, bytes of the new protocol that were read already, and the place that
    /// it has. `None` if it was given up before, which one that answered was not.
    pub(super) async fn into_tunnel(mut self: Box<Self>) -> Option<(TcpStream, Bytes, Option<UpstreamPermit>)> {
        poll_fn(|cx| {
            self.drive(cx);
            if self.ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let Parts { io, read_buf, .. } = self.connection?.into_parts();
        Some((io.into_inner().into_inner(), read_buf, self.permit))
    }
}

/// Idle connections by source address, the warmest last.
#[derive(Debug)]
struct Pool {
    idle: Mutex<HashMap<Ipv4Addr, Vec<Idle>>>,
    shutdown: Shutdown,
}

#[derive(Debug)]
struct Idle {
    until: Instant,
    link: Box<UpstreamConnection>,
}

impl Pool {
    /// The warmest connection from `source`. The gateway may have closed it meanwhile: then nothing is sent on it.
    fn take(&self, source: Ipv4Addr, now: Instant) -> Option<Box<UpstreamConnection>> {
        // Before the lock, so that what is too old is closed after it.
        let _cold;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = idle.get_mut(&source)?;
        if idle.last()?.until <= now {
            // The warmest is too old, so all are.
            _cold = std::mem::take(idle);
            return None;
        }
        let Idle { mut link, .. } = idle.pop()?;
        link.reused = true;
        Some(link)
    }

    fn put(&self, link: Box<UpstreamConnection>, now: Instant) {
        // Whoever waits for a place does not look here.
        if link.permit.as_ref().is_some_and(|permit| permit.semaphore().available_permits() == 0) {
            return;
        }
        let until = now + link.keep;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = idle.entry(link.source).or_default();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { until, link });
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        // Before the lock, as in `take`.
        let mut cold = Vec::new();
        let mut all = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, idle| {
            cold.extend(idle.extract_if(.., |idle| idle.until <= now));
            !idle.is_empty()
        });
    }
}

//! One connection to the gateway, for one request at a time.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1::{Builder, Connection, Parts, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::drive_waker::DriveWaker;
use super::gateway_request::GatewayRequest;
use super::readable_after_write_error::{ReadableAfterWriteError, StreamState};
use super::request_body::{BodyProgress, RequestBody};
use crate::config::Limits;
use crate::lane::GatewayRoute;
use crate::proxy::lazy_timer::LazyTimer;

/// The time for which an idle connection is kept if the gateway states none. Node closes it after 5 s.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// The most bytes buffered in each direction. The head of a response may need more.
const MAX_BUFFER: usize = 16 * 1024;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

type HttpConnection = Connection<TokioIo<ReadableAfterWriteError<TcpStream>>, RequestBody>;

/// The timeouts of an exchange. Both are counted from the latest part of the request's body, or from `since` if there
/// was none after it.
pub struct ResponseTimeout<'a> {
    /// For the head of the gateway's response.
    pub gateway: Duration,
    /// For the next part of the client's body.
    pub client: Duration,
    /// The time at which the exchange began.
    pub since: Instant,
    /// The progress of the request's body; `None` if it has none.
    pub progress: Option<&'a BodyProgress>,
}

impl ResponseTimeout<'_> {
    /// Returns the current deadline of the exchange, and its error.
    fn deadline_and_error(&self) -> (Instant, SendError) {
        let since =
            self.progress.and_then(BodyProgress::last_part_time).map_or(self.since, |last| last.max(self.since));
        if self.progress.is_some_and(BodyProgress::is_waiting_for_client) {
            (since + self.client, SendError::BodyTimeout)
        } else {
            (since + self.gateway, SendError::GatewayTimeout)
        }
    }
}

/// The reason why there is no response.
pub enum SendError {
    /// No byte of the request was sent.
    Unsent(Box<GatewayRequest>),
    /// The connection broke before the response's head was read.
    Broken(hyper::Error),
    /// The client did not send the next part of its body in time.
    BodyTimeout,
    /// The gateway did not send the head of its response in time.
    GatewayTimeout,
}

/// A connection to the gateway, for one request at a time.
pub struct UpstreamConnection {
    sender: SendRequest<RequestBody>,
    /// hyper's connection. `None` after it was dropped, to get back a request that it had not sent.
    connection: Option<HttpConnection>,
    /// Whether hyper's connection has completed: it was closed, it failed, or it was upgraded.
    has_ended: bool,
    drive_waker: DriveWaker,
    stream_state: Arc<StreamState>,
    timer: LazyTimer,
    route: GatewayRoute,
    keep_idle: Duration,
    is_reused: bool,
    /// Whether the connection must not take another request.
    is_single_use: bool,
}

impl fmt::Debug for UpstreamConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamConnection")
            .field("route", &self.route)
            .field("is_reused", &self.is_reused)
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}

/// Polls `connection` if it was woken; returns whether it was.
fn poll_connection_if_woken(
    connection: &mut Option<HttpConnection>,
    has_ended: &mut bool,
    drive_waker: &DriveWaker,
) -> bool {
    let Some(mut cx) = drive_waker.take_wake_context() else { return false };
    *has_ended =
        *has_ended || connection.as_mut().is_none_or(|connection| connection.poll_without_shutdown(&mut cx).is_ready());
    true
}

/// Calls `poll` with a waker that does nothing. Only the connection makes progress possible, and the same task drives
/// it.
fn poll_unwoken<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(Waker::noop()))
}

impl UpstreamConnection {
    /// Begins HTTP on `stream`, which was opened along `route`.
    ///
    /// # Errors
    /// None is expected: hyper's handshake does no I/O.
    pub async fn handshake(stream: TcpStream, route: GatewayRoute, limits: &Limits) -> Result<Self, hyper::Error> {
        let stream = ReadableAfterWriteError::new(stream);
        let stream_state = Arc::clone(stream.state());
        let (sender, connection) = Builder::new()
            .max_headers(limits.response_fields)
            .max_header_size(limits.response_head)
            .max_buf_size(MAX_BUFFER.max(limits.response_head))
            .handshake(TokioIo::new(stream))
            .await?;
        let timer = LazyTimer::new(limits.request_timeout);
        Ok(Self {
            sender,
            connection: Some(connection),
            has_ended: false,
            drive_waker: DriveWaker::new(),
            stream_state,
            timer,
            route,
            keep_idle: KEEP_IDLE,
            is_reused: false,
            is_single_use: false,
        })
    }

    /// Returns the source address and the target address of the connection.
    pub fn route(&self) -> GatewayRoute {
        self.route
    }

    /// Returns the time for which the connection may be idle before it is closed.
    pub fn idle_timeout(&self) -> Duration {
        self.keep_idle
    }

    /// Returns whether the connection had a request before the current one.
    pub fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Marks the connection as one that had an earlier request.
    pub fn mark_reused(&mut self) {
        self.is_reused = true;
    }

    /// Returns whether a byte of the response to the current request was read.
    pub fn has_response_begun(&self) -> bool {
        self.stream_state.has_read_since_request()
    }

    /// Returns whether the current request and its response have ended.
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Returns whether the connection was closed, failed, or was upgraded.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Keeps the connection from taking another request.
    pub fn set_single_use(&mut self) {
        self.is_single_use = true;
    }

    /// Returns whether the connection can take another request.
    pub fn is_usable(&self) -> bool {
        !self.has_ended
            && !self.is_single_use
            && !self.stream_state.has_write_failed()
            && !self.stream_state.trailer_slot().is_set()
    }

    /// Sends `request` and waits for the head of its response.
    ///
    /// # Errors
    /// The reason why there is no response.
    pub(super) fn send_request<'a>(
        &'a mut self,
        request: GatewayRequest,
        timeout: ResponseTimeout<'a>,
    ) -> impl Future<Output = Result<Response<Incoming>, SendError>> + 'a {
        let Self { sender, connection, has_ended, drive_waker, stream_state, timer, .. } = self;
        stream_state.begin_request();
        let response = request.send(sender, stream_state);
        drive_waker.mark_woken();
        async move {
            let mut response = pin!(response);
            poll_fn(|cx| {
                let result = drive_waker.poll(cx, || {
                    poll_connection_if_woken(connection, has_ended, drive_waker);
                    let result = poll_unwoken(|cx| response.as_mut().poll(cx));
                    if result.is_ready() || !*has_ended {
                        return result;
                    }
                    // hyper returns a request that it has not sent when its connection is dropped.
                    *connection = None;
                    poll_unwoken(|cx| response.as_mut().poll(cx))
                });
                if let Poll::Ready(result) = result {
                    return Poll::Ready(
                        result.map_err(|(error, unsent)| unsent.map_or(SendError::Broken(error), SendError::Unsent)),
                    );
                }
                // If the budget of the task (`tokio::task::coop`) is spent, a response that is there is pending. So
                // is the timer then, and it wakes the task.
                let (due, error) = timeout.deadline_and_error();
                timer.poll_due(cx, Some(due)).map(|_| Err(error))
            })
            .await
        }
    }

    /// Makes hyper read and write as much as it can without waiting.
    pub fn drive(&mut self, cx: &Context<'_>) {
        let Self { connection, has_ended, drive_waker, .. } = self;
        drive_waker.mark_woken();
        let _ = drive_waker.poll(cx, || {
            poll_connection_if_woken(connection, has_ended, drive_waker);
            Poll::<()>::Pending
        });
    }

    /// Polls `incoming`, the body of the response to the last request, and drives the connection for it.
    pub fn poll_frame(
        &mut self,
        incoming: &mut Incoming,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { connection, has_ended, drive_waker, .. } = self;
        drive_waker.poll(cx, || {
            poll_connection_if_woken(connection, has_ended, drive_waker);
            let frame = poll_unwoken(|cx| Pin::new(&mut *incoming).poll_frame(cx));
            // The poll may have woken the connection, which then has a place for the next frame.
            if frame.is_pending() && poll_connection_if_woken(connection, has_ended, drive_waker) {
                return poll_unwoken(|cx| Pin::new(&mut *incoming).poll_frame(cx));
            }
            frame
        })
    }

    /// Has the connection wake no task until one drives it again.
    pub fn clear_task(&self) {
        self.drive_waker.clear_task();
    }

    /// Waits until the connection is ready for the next request, or has ended.
    pub async fn until_ready(&mut self) {
        poll_fn(|cx| {
            self.drive(cx);
            if self.has_ended || self.sender.is_ready() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Sets the time for which the connection may be idle to the one in the gateway's `Keep-Alive` field, less one
    /// second, so that no request is sent just when the gateway closes.
    pub fn apply_keep_alive(&mut self, headers: &HeaderMap) {
        let stated = headers.get(KEEP_ALIVE).and_then(|value| value.to_str().ok()).and_then(|value| {
            value.split(',').find_map(|field| field.trim().strip_prefix("timeout=")?.parse::<u64>().ok())
        });
        if let Some(seconds) = stated {
            self.keep_idle = Duration::from_secs(seconds.saturating_sub(1).min(600));
        }
    }

    /// Returns the socket after a `101`, and the bytes of the new protocol that hyper has read already. `None` if
    /// hyper's connection was dropped, which does not happen after a response.
    pub async fn into_upgraded(mut self: Box<Self>) -> Option<(TcpStream, Bytes)> {
        poll_fn(|cx| {
            self.drive(cx);
            if self.has_ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let Parts { io, read_buf, .. } = self.connection?.into_parts();
        Some((io.into_inner().into_inner(), read_buf))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use http::StatusCode;
    use tokio::task::{coop, yield_now};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::config::Config;
    use crate::discovery::View;
    use crate::lane::{Evidence, GatewayHead, ProxyHeader, RequestRules, Target, decide_lane};
    use crate::proxy::upstream::gateway_request::OnInterim;

    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody";

    fn request(target: &Target) -> GatewayRequest {
        let rules = RequestRules::new(&Config::default());
        let peer = "192.0.2.1".parse().unwrap();
        let evidence = Evidence { peer, proxy_header: ProxyHeader::Local, certificate: None };
        let lane = decide_lane(&evidence, &View::default(), rules.policy(), 0).unwrap();
        let (parts, ()) = http::Request::builder().uri("/").header("host", "a").body(()).unwrap().into_parts();
        let head = GatewayHead::new(parts, &lane, &rules, target, None, &BTreeSet::new()).unwrap();
        GatewayRequest::new(head, RequestBody::empty(), OnInterim::default())
    }

    /// Returns the result of an exchange with a gateway that answers or hangs up. In its poll number `poll`, `spent`
    /// units of the task's budget are spent before.
    async fn exchange(answers: bool, poll: usize, spent: usize) -> Result<StatusCode, SendError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let gateway = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            if answers {
                let _ = stream.read(&mut [0; 1024]).unwrap();
                stream.write_all(RESPONSE).unwrap();
            }
            answers.then_some(stream)
        });
        let route = GatewayRoute { source: Ipv4Addr::LOCALHOST, target: address };
        let stream = TcpStream::connect(address).await.unwrap();
        let mut connection = UpstreamConnection::handshake(stream, route, &Config::default().limits).await.unwrap();
        if !answers {
            // Until the end of the connection is known.
            while !gateway.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            sleep(Duration::from_millis(2)).await;
        }
        let minute = Duration::from_secs(60);
        let wait = ResponseTimeout { gateway: minute, client: minute, since: Instant::now(), progress: None };
        let mut exchange = pin!(connection.send_request(request(&Target::for_gateway(address)), wait));
        let mut polls = 0;
        let result = poll_fn(|cx| {
            polls += 1;
            for _ in 0..if polls == poll { spent } else { 0 } {
                assert!(coop::poll_proceed(cx).map(|unit| unit.made_progress()).is_ready(), "no unit is left");
            }
            exchange.as_mut().poll(cx)
        });
        // The first poll has the whole budget, too.
        yield_now().await;
        let begun = Instant::now();
        let result = timeout(Duration::from_secs(5), result).await.expect("the gateway answers or hangs up");
        // A task that only the timeout wakes gets its result, too.
        assert!(begun.elapsed() < Duration::from_secs(4), "the task was not woken in poll {poll} after {spent} units");
        drop(gateway.join());
        result.map(|response| response.status())
    }

    #[tokio::test]
    async fn a_spent_budget_of_the_task_loses_no_response() {
        for poll in 1..=4 {
            for spent in 120..=128 {
                let answered = exchange(true, poll, spent).await;
                assert!(matches!(answered, Ok(StatusCode::OK)), "poll {poll} after {spent} units");
                let unanswered = exchange(false, poll, spent).await;
                assert!(matches!(unanswered, Err(SendError::Unsent(_))), "poll {poll} after {spent} units");
            }
        }
    }
}

//! One connection to the gateway, for one request at a time.

use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use hyper::body::Frame;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::gateway_request::{GatewayRequest, InterimSender};
use super::h1::connection::H1Connection;
use super::h1::error::ExchangeError;
use super::h1::response_head::{HeadLimits, ResponseHead};
use super::request_body::{BodyProgress, RequestBody};
use crate::config::Limits;
use crate::lane::GatewayRoute;
use crate::proxy::lazy_timer::LazyTimer;

/// The time for which an idle connection is kept if the gateway sends no `Keep-Alive` field. By
/// default Node.js closes it after 5 s.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The most interim responses that are read before other tasks get their turn.
const MAX_INTERIMS: usize = 32;

/// The longest time for which an idle connection is kept, whatever the gateway states.
const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(600);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The timeouts of an exchange. Both are counted from the latest part of the request's body, or
/// from `began` if no part passed after that.
pub struct ResponseTimeout<'a> {
    /// For the head of the gateway's response.
    pub gateway: Duration,
    /// For the next part of the client's body.
    pub client: Duration,
    /// The time at which the exchange began.
    pub began: Instant,
    /// The progress of the request's body; `None` if it has none.
    pub progress: Option<&'a BodyProgress>,
}

impl ResponseTimeout<'_> {
    /// Returns the current deadline of the exchange, and its error.
    fn deadline_and_error(&self) -> (Instant, SendError) {
        let since =
            self.progress.and_then(BodyProgress::last_part_time).map_or(self.began, |last| last.max(self.began));
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
    Broken(ExchangeError),
    /// The client did not send the next part of its body in time.
    BodyTimeout,
    /// The gateway did not send the head of its response in time.
    GatewayTimeout,
}

/// A connection to the gateway, for one request at a time.
pub struct UpstreamConnection {
    http: H1Connection<TcpStream, RequestBody>,
    timer: LazyTimer,
    route: GatewayRoute,
    idle_timeout: Duration,
    is_reused: bool,
    /// Whether the connection must not take another request.
    is_single_use: bool,
}

impl fmt::Debug for UpstreamConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamConnection")
            .field("route", &self.route)
            .field("is_reused", &self.is_reused)
            .finish_non_exhaustive()
    }
}

impl UpstreamConnection {
    /// Begins HTTP on `stream`, which was opened along `route`.
    pub fn new(stream: TcpStream, route: GatewayRoute, limits: &Limits) -> Self {
        let head_limits = HeadLimits { bytes: limits.response_head, fields: limits.response_fields };
        Self {
            http: H1Connection::new(stream, head_limits),
            timer: LazyTimer::new(limits.request_timeout),
            route,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            is_reused: false,
            is_single_use: false,
        }
    }

    /// Returns the source address and the target address of the connection.
    pub fn route(&self) -> GatewayRoute {
        self.route
    }

    /// Returns the time for which the connection may be idle before it is closed.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
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
        self.http.has_response_begun()
    }

    /// Returns whether all of the request's body was sent, or discarded after a failed write.
    pub fn is_request_done(&self) -> bool {
        self.http.is_request_done()
    }

    /// Keeps the connection from taking another request.
    pub fn set_single_use(&mut self) {
        self.is_single_use = true;
    }

    /// Returns whether the connection can take another request.
    pub fn is_reusable(&self) -> bool {
        !self.is_single_use && self.http.is_reusable()
    }

    /// Sends `request` and waits for the head of its response.
    ///
    /// # Errors
    /// The reason why there is no response.
    pub(super) fn send_request<'a>(
        &'a mut self,
        request: GatewayRequest,
        timeout: ResponseTimeout<'a>,
    ) -> impl Future<Output = Result<ResponseHead, SendError>> + 'a {
        let Self { http, timer, .. } = self;
        let mut unsent = Some(request);
        let mut interim_sender = InterimSender::default();
        poll_fn(move |cx| {
            if unsent.is_some() {
                let can_send = ready!(http.poll_can_send(cx));
                let Some(request) = unsent.take() else { return Poll::Pending };
                if !can_send {
                    return Poll::Ready(Err(SendError::Unsent(Box::new(request))));
                }
                let (head, body, spare, sender) = request.into_parts();
                interim_sender = sender;
                http.begin_request(head.bytes().clone(), head.is_head_request(), head.framing(), body, spare);
            }
            let mut interims = 0;
            while let Poll::Ready(head) = http.poll_head(cx) {
                let head = head.map_err(SendError::Broken)?;
                if !head.is_interim() {
                    return Poll::Ready(Ok(head));
                }
                if head.status == StatusCode::CONTINUE
                    && let Some(body) = http.request_body()
                {
                    body.permit_reading();
                }
                interim_sender.send(head);
                interims += 1;
                if interims == MAX_INTERIMS {
                    cx.waker().wake_by_ref();
                    break;
                }
            }
            // Once the task's coop budget is spent, reads and the timer both return pending; the
            // timer wakes the task.
            let (due, error) = timeout.deadline_and_error();
            timer.poll_due(cx, Some(due)).map(|_| Err(error))
        })
    }

    /// Returns the next part of the response's body; `None` at its end. A read takes at most 16
    /// KiB, or `block` bytes if these are more.
    ///
    /// # Errors
    /// The connection broke off.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        block: usize,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        self.http.poll_frame(cx, block)
    }

    /// Sends the request's body as far as possible. For use while the client takes no part of the
    /// response. The next call of [`Self::poll_frame`] reports an error of this.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        self.http.poll_upload(cx);
    }

    /// Returns whether all of the response's body was returned.
    pub fn is_response_done(&self) -> bool {
        self.http.is_response_done()
    }

    /// Returns the number of bytes that are left of the response's body, if it is known.
    pub fn length_left(&self) -> Option<u64> {
        self.http.length_left()
    }

    /// Sends the rest of the request's body, after the response has ended.
    pub async fn wait_until_sent(&mut self) {
        poll_fn(|cx| self.http.poll_sent(cx)).await;
    }

    /// Sets the time for which the connection may be idle to the one in the gateway's `Keep-Alive`
    /// field, less one second, so that no request is sent just when the gateway closes. It is at
    /// most [`MAX_IDLE_TIMEOUT`].
    pub fn apply_keep_alive(&mut self, headers: &HeaderMap) {
        let stated = headers.get(KEEP_ALIVE).and_then(|value| value.to_str().ok()).and_then(|value| {
            value.split(',').find_map(|field| field.trim().strip_prefix("timeout=")?.parse::<u64>().ok())
        });
        if let Some(seconds) = stated {
            self.idle_timeout = Duration::from_secs(seconds.saturating_sub(1)).min(MAX_IDLE_TIMEOUT);
        }
    }

    /// Returns the socket after a `101`, and the bytes of the new protocol that were read; `None`
    /// if there was none.
    pub fn into_upgraded(self) -> Option<(TcpStream, Bytes)> {
        self.http.into_upgraded()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};
    use std::pin::pin;
    use std::thread;

    use tokio::task::{coop, yield_now};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::config::Config;
    use crate::discovery::View;
    use crate::lane::{Evidence, GatewayHead, ProxyHeader, RequestRules, Target, decide_lane};

    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody";

    fn request(target: &Target) -> GatewayRequest {
        let rules = RequestRules::new(&Config::default());
        let peer = "192.0.2.1".parse().unwrap();
        let evidence = Evidence { peer, proxy_header: ProxyHeader::Local, certificate: None };
        let lane = decide_lane(&evidence, &View::default(), rules.policy(), 0).unwrap();
        let (parts, ()) = http::Request::builder().uri("/").header("host", "a").body(()).unwrap().into_parts();
        let head = GatewayHead::new(parts, &lane, &rules, target, None, &BTreeSet::new()).unwrap();
        GatewayRequest::new(head, RequestBody::empty(), InterimSender::default())
    }

    /// Sends a request to a gateway that answers, or else closes the connection at once; returns
    /// the status, or why there is none. Spends `spent` units of the task's coop budget before the
    /// poll number `poll`.
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
        let mut connection = UpstreamConnection::new(stream, route, &Config::default().limits);
        if !answers {
            // Wait until this end of the connection sees that the gateway has closed it.
            while !gateway.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            sleep(Duration::from_millis(2)).await;
        }
        let minute = Duration::from_secs(60);
        let wait = ResponseTimeout { gateway: minute, client: minute, began: Instant::now(), progress: None };
        let mut exchange = pin!(connection.send_request(request(&Target::for_gateway(address)), wait));
        let mut polls = 0;
        let result = poll_fn(|cx| {
            polls += 1;
            for _ in 0..if polls == poll { spent } else { 0 } {
                assert!(
                    coop::poll_proceed(cx).map(|unit| unit.made_progress()).is_ready(),
                    "the coop budget has fewer than {spent} units"
                );
            }
            exchange.as_mut().poll(cx)
        });
        // After a yield the first poll has the whole budget, as the later ones do.
        yield_now().await;
        let begun = Instant::now();
        let result = timeout(Duration::from_secs(5), result).await.expect("the gateway answers or hangs up");
        // If only the timeout wakes the task, the exchange still completes, but late.
        assert!(begun.elapsed() < Duration::from_secs(4), "the task was not woken in poll {poll} after {spent} units");
        drop(gateway.join());
        result.map(|response| response.status)
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

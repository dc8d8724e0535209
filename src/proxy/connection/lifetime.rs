//! Decides when a connection ends.
//!
//! These are the reasons:
//!
//! 1. The connection was revoked. Its WebSockets over HTTP/2 have [`REVOKED_GRACE`] to send their
//!    close frames. Open requests end with the connection.
//! 2. A second signal ended the shutdown at once. Open requests end with the connection.
//! 3. The client closed the connection, or hyper did. Open requests end with the connection.
//! 4. `limits.drain_timeout` has passed since the shutdown began. Open requests end with the
//!    connection.
//! 5. The client's certificate has expired. Open requests finish, and no further one is taken.
//! 6. The client is too slow: it does not finish a head or the HTTP/2 preface, sends no request, or
//!    does not read. The open requests end with the connection if a head over HTTP/2 is late or the
//!    client does not read.
//!
//! If several apply at once, the first one in this list counts.

use std::error::Error;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::{debug, info};

use crate::error_chain::error_chain;
use crate::labels::Protocol;
use crate::metrics::count_reason;
use crate::proxy::close_signal::{CloseReason, REVOKED_GRACE};
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::downstream::activity::{Overdue, Timeouts};
use crate::proxy::downstream::refused_heads::{CleanEnd, HeadRefusal};
use crate::proxy::lazy_timer::LazyTimer;
use crate::proxy::request::report_refused_heads::report_refused_heads;
use crate::proxy::request_end::RequestEnd;

/// The time that a connection has to close after loopgate asked hyper to finish it: the connection
/// was idle, or the client's certificate expired.
const FINISH_GRACE: Duration = Duration::from_secs(5);

/// The time for which a connection without a request stays open after a shutdown began, so that the
/// client can read the GOAWAY.
const DRAIN_GRACE: Duration = Duration::from_millis(300);

/// The time after `limits.drain_timeout` at which a connection is cut. The connection is still open
/// when the timeout passes, so that the process counts it as aborted.
const CUT_DELAY: Duration = Duration::from_millis(20);

/// Drives hyper's `connection` until it ends or must be cut, and then reports the heads that were
/// refused or dropped. `finish` makes hyper finish the open requests and take no more.
///
/// Each poll asks `closing` and `aborted` first, then the connection, and the deadlines last: the
/// order of the reasons in the module's documentation depends on it.
pub async fn run_until_end<C>(context: &ConnectionContext, connection: Pin<&mut C>, finish: impl Fn(Pin<&mut C>))
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut driver = Driver::new(context, connection, finish);
    let mut closing = pin!(context.close_signal.wait());
    let mut aborted = pin!(context.shared.shutdown.wait_until_aborted());
    poll_fn(|cx| {
        while driver.revoked_until.is_none()
            && let Poll::Ready(reason) = closing.as_mut().poll_reason(cx, driver.is_draining)
        {
            if driver.begin_close(reason).is_break() {
                return Poll::Ready(());
            }
        }
        if driver.is_draining && aborted.as_mut().poll(cx).is_ready() {
            driver.set_closed_by(RequestEnd::DrainAborted);
            return Poll::Ready(());
        }
        driver.poll(cx)
    })
    .await;
    context.head_tracker.end_round();
    report_refused_heads(context);
}

/// Returns whether `h2` closed the connection because of what the client sent.
fn is_client_error(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    cause.is_some_and(|error| error.is_go_away() && error.is_library())
}

/// A deadline that has passed.
enum PassedDeadline {
    /// `limits.drain_timeout`, counted from the beginning of the shutdown.
    DrainTimeout,
    /// The expiry of the client's certificate.
    Expiry,
    /// A deadline for the client to send or to read.
    Overdue(Overdue),
}

/// Drives a connection, and watches for the reasons that may end it.
struct Driver<'a, C, F> {
    context: &'a ConnectionContext,
    connection: Pin<&'a mut C>,
    finish: F,
    timeouts: Timeouts,
    timer: LazyTimer,
    /// The time at which the certificate expires that gave the connection its lane or its user.
    expires: Option<Instant>,
    /// Whether `finish` was called.
    is_finishing: bool,
    /// Whether loopgate shuts down.
    is_draining: bool,
    /// The time at which the connection is cut, set when a shutdown begins.
    cut_at: Option<Instant>,
    /// The time until which WebSockets may send their close frames, set when the connection is
    /// revoked.
    revoked_until: Option<Instant>,
    /// A connection is not cut for idleness or a late head before this time; set when it is asked
    /// to finish.
    grace_until: Option<Instant>,
}

impl<'a, C, F> Driver<'a, C, F>
where
    C: Future<Output = hyper::Result<()>>,
    F: Fn(Pin<&mut C>),
{
    /// Creates the state at the beginning of the connection. `finish` asks hyper for a graceful
    /// shutdown.
    fn new(context: &'a ConnectionContext, connection: Pin<&'a mut C>, finish: F) -> Self {
        let limits = &context.settings.limits;
        let timeouts = Timeouts {
            head: limits.head_timeout,
            header_block: limits.head_timeout,
            idle: limits.idle_timeout,
            stall: limits.stall_timeout,
            // Over HTTP/2 each stream has a stall timeout of its own (`h2_stream_stall`).
            external_stall: match context.protocol {
                Protocol::H1 => limits.stall_timeout.min(limits.gateway_stall),
                Protocol::H2 => limits.stall_timeout,
            },
        };
        let time_until = |at: SystemTime| at.duration_since(SystemTime::now()).unwrap_or_default();
        Self {
            context,
            connection,
            finish,
            timeouts,
            timer: LazyTimer::new(timeouts.idle.min(timeouts.head).min(timeouts.external_stall)),
            expires: context.expires.map(|at| Instant::now() + time_until(at)),
            is_finishing: false,
            is_draining: false,
            cut_at: None,
            revoked_until: None,
            grace_until: None,
        }
    }

    /// Begins to close for `reason`; returns `Break` if the connection must be cut at once.
    fn begin_close(&mut self, reason: CloseReason) -> ControlFlow<()> {
        let now = Instant::now();
        match reason {
            CloseReason::Drain => {
                self.is_draining = true;
                // A client that ignores the GOAWAY must not delay the shutdown (RFC 9113 section
                // 6.8).
                (self.timeouts.idle, self.timeouts.head) = (DRAIN_GRACE, DRAIN_GRACE);
                // The current setting, not the one that the connection began with: the process
                // waits for this time.
                let drain_timeout = self.context.shared.settings.load().limits.drain_timeout;
                self.cut_at = Some(now + drain_timeout + CUT_DELAY);
                self.begin_finish(now + DRAIN_GRACE);
            }
            CloseReason::Revoked => {
                self.set_closed_by(RequestEnd::Revoked);
                if !self.context.activity.has_tunnels() {
                    return ControlFlow::Break(());
                }
                self.revoked_until = Some(now + REVOKED_GRACE);
            }
        }
        ControlFlow::Continue(())
    }

    /// Polls the connection, and then its deadlines; ready when the connection has ended or must be
    /// dropped. Reports the heads that were refused or dropped, unless the connection is revoked.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(until) = self.revoked_until {
            let ended = self.connection.as_mut().poll(cx).is_ready();
            self.context.head_tracker.end_round_unless_blocked();
            return if ended { Poll::Ready(()) } else { self.timer.poll_due(cx, Some(until)).map(|_| ()) };
        }
        if let Poll::Ready(result) = self.connection.as_mut().poll(cx) {
            self.record_result(result);
            return Poll::Ready(());
        }
        self.context.head_tracker.end_round_unless_blocked();
        report_refused_heads(self.context);
        loop {
            match ready!(self.poll_passed_deadline(cx)) {
                PassedDeadline::DrainTimeout => {
                    self.set_closed_by(RequestEnd::DrainTimeout);
                    return Poll::Ready(());
                }
                PassedDeadline::Expiry => {
                    debug!(
                        connection = self.context.number,
                        peer = %self.context.peer,
                        "the client's certificate has expired; the connection takes no further request"
                    );
                    if !self.is_finishing && self.poll_finish(cx).is_ready() {
                        return Poll::Ready(());
                    }
                }
                PassedDeadline::Overdue(Overdue::Idle) if !self.is_finishing => {
                    if self.poll_finish(cx).is_ready() {
                        return Poll::Ready(());
                    }
                }
                PassedDeadline::Overdue(overdue) => {
                    self.close_overdue(cx, overdue);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Records that hyper ended the connection, with `result`.
    fn record_result(&self, result: hyper::Result<()>) {
        let (connection, peer) = (self.context.number, self.context.peer);
        match result {
            Err(error) => {
                if is_client_error(&error) {
                    self.context.head_tracker.mark_closed_for_client_fault();
                }
                debug!(connection, %peer, error = error_chain(&error), "connection broke off");
            }
            // hyper closes the connection and all its requests without a frame (see
            // `refused_heads`).
            Ok(()) if self.context.head_tracker.record_clean_end() == CleanEnd::RefusedHead => {
                info!(
                    connection, %peer,
                    "closed the connection and all its requests: the client sent a CONNECT with a body"
                );
            }
            Ok(()) => {}
        }
    }

    /// Completes when a deadline has passed. Returns [`PassedDeadline::Expiry`] only once.
    fn poll_passed_deadline(&mut self, cx: &mut Context<'_>) -> Poll<PassedDeadline> {
        loop {
            let overdue = self.client_deadline_and_cause();
            let first = overdue.map(|(at, _)| at).into_iter().chain(self.expires).chain(self.cut_at).min();
            let now = ready!(self.timer.poll_due(cx, first));
            if self.cut_at.is_some_and(|at| at <= now) {
                return Poll::Ready(PassedDeadline::DrainTimeout);
            }
            if self.expires.take_if(|at| *at <= now).is_some() {
                return Poll::Ready(PassedDeadline::Expiry);
            }
            if let Some((_, overdue)) = overdue.filter(|(at, _)| *at <= now) {
                return Poll::Ready(PassedDeadline::Overdue(overdue));
            }
        }
    }

    /// Returns the time at which the client will be overdue, and with what.
    fn client_deadline_and_cause(&self) -> Option<(Instant, Overdue)> {
        let (at, overdue) = self.context.activity.deadline_and_cause(self.timeouts)?;
        let not_before = self.grace_until.filter(|_| !matches!(overdue, Overdue::Stall | Overdue::HeaderBlock));
        Some((not_before.map_or(at, |not_before| at.max(not_before)), overdue))
    }

    /// Asks the connection to finish its requests. An idle one may stay until `grace_until`.
    fn begin_finish(&mut self, grace_until: Instant) {
        self.is_finishing = true;
        self.grace_until = Some(grace_until);
        (self.finish)(self.connection.as_mut());
    }

    /// Asks the connection to finish its requests; completes if it ends at once.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.begin_finish(Instant::now() + FINISH_GRACE);
        self.connection.as_mut().poll(cx).map(|_| ())
    }

    /// Ends a connection whose client is `overdue`: notes, counts and logs the reason, and answers
    /// an unfinished head. Does nothing for a late head or idleness while loopgate shuts down: that
    /// is how a connection without requests ends then.
    fn close_overdue(&mut self, cx: &mut Context<'_>, overdue: Overdue) {
        if self.is_draining && matches!(overdue, Overdue::Head | Overdue::Idle) {
            return;
        }
        if overdue == Overdue::Stall {
            self.set_closed_by(RequestEnd::ClientStalled);
        }
        let (connection, peer, deadline) = (self.context.number, self.context.peer, overdue.label());
        count_reason(&self.context.shared.traffic.connections_overdue, deadline);
        debug!(connection, %peer, deadline, "closed a connection whose client was too slow");
        let head_tracker = &self.context.head_tracker;
        match overdue {
            Overdue::Head if self.context.protocol == Protocol::H1 => {
                head_tracker.record_refused_head(HeadRefusal::Timeout)
            }
            Overdue::HeaderBlock => head_tracker.record_header_block_timeout(),
            // Over HTTP/2 `Head` is the preface, which is not a request head.
            Overdue::Head | Overdue::Idle | Overdue::Stall => {}
        }
        if matches!(overdue, Overdue::Head | Overdue::HeaderBlock) {
            self.context.activity.abandon_head();
            let _ = self.connection.as_mut().poll(cx);
        }
    }

    /// Sets the reason that ends the connection and its open requests, unless one is set already.
    fn set_closed_by(&self, end: RequestEnd) {
        let _ = self.context.closed_by.set(end);
    }
}

//! What ends a connection: its own end, a deadline, the loss of its lane, or a shutdown.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::debug;

use crate::labels::Protocol;
use crate::metrics::count;
use crate::proxy::close_signal::CloseReason;
use crate::proxy::downstream::activity::{Overdue, Timeouts};
use crate::proxy::lazy_timer::LazyTimer;
use crate::proxy::request_end::RequestEnd;
use crate::proxy::session::Session;

/// How long a connection may take to close after it was asked to, because it was idle.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// How long a connection without a request stays open once loopgate shuts down, so that the client can read the GOAWAY.
const DRAIN_GRACE: Duration = Duration::from_millis(300);
/// How long a connection that was revoked may take to deliver the close frames of its WebSockets, over HTTP/2.
const REVOKED_GRACE: Duration = Duration::from_millis(500);

/// How much later than `limits.drain_timeout` a connection ends by itself, so that the process counts it as aborted.
const ABORT_DELAY: Duration = Duration::from_millis(20);

/// Drives `connection` until it ends or must be cut. `ask_to_end` has it finish its requests and accept no more.
pub async fn run<C>(session: &Session, mut connection: Pin<&mut C>, ask_to_end: impl Fn(Pin<&mut C>))
where
    C: Future<Output = hyper::Result<()>>,
{
    let limits = &session.settings.limits;
    // Each HTTP/2 stream has its own limit.
    let stall = match session.protocol {
        Protocol::Http1 => limits.stall_timeout.min(session.external_stall_timeout()),
        Protocol::Http2 => limits.stall_timeout,
    };
    let mut timeouts = Timeouts { head: limits.head_timeout, idle: limits.idle_timeout, stall };
    let mut timer = LazyTimer::new(timeouts.idle.min(timeouts.head).min(timeouts.stall));
    let (closing, revoked) = session.close_signal.futures();
    let (mut closing, mut revoked) = (pin!(closing), pin!(revoked));
    // When the certificate expires on which the connection depends.
    let mut expires =
        session.expires.map(|at| Instant::now() + at.duration_since(SystemTime::now()).unwrap_or_default());
    // Whether `ask_to_end` was called.
    let mut ending = false;
    let mut draining = false;
    // When a connection that is still busy is cut, once loopgate shuts down.
    let mut cut_at: Option<Instant> = None;
    // Until when close frames of WebSockets may be sent, once the connection was revoked.
    let mut revoked_until: Option<Instant> = None;
    // Until when a connection that was asked to end while idle is waited for, whatever wakes this task meanwhile.
    let mut grace_until: Option<Instant> = None;
    poll_fn(|cx| {
        while revoked_until.is_none()
            && let Poll::Ready(reason) = session.close_signal.poll(cx, closing.as_mut(), revoked.as_mut(), draining)
        {
            if reason == CloseReason::Drain || !session.activity.has_tunnels() {
                if reason == CloseReason::Unauthorized {
                    let _ = session.closed_by.set(RequestEnd::Unauthorized);
                    return Poll::Ready(());
                }
                (ending, draining) = (true, true);
                // A client that ignores the request to close must not hold up the end (RFC 9113 section 6.8).
                (timeouts.idle, timeouts.head) = (DRAIN_GRACE, DRAIN_GRACE);
                let now = Instant::now();
                grace_until = Some(now + DRAIN_GRACE);
                cut_at = Some(now + limits.drain_timeout + ABORT_DELAY);
                ask_to_end(connection.as_mut());
            } else {
                let _ = session.closed_by.set(RequestEnd::Unauthorized);
                revoked_until = Some(Instant::now() + REVOKED_GRACE);
            }
        }
        if let Some(until) = revoked_until {
            let ended = connection.as_mut().poll(cx).is_ready();
            session.interims.settle();
            return if ended { Poll::Ready(()) } else { timer.poll_due(cx, Some(until)).map(|_| ()) };
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            if let Err(error) = result {
                debug!(connection = session.number, peer = %session.peer, %error, "connection ended");
            }
            return Poll::Ready(());
        }
        session.interims.settle();
        loop {
            let mut due = session.activity.deadline(timeouts);
            if let (Some((at, Overdue::Idle | Overdue::Head)), Some(grace_until)) = (&mut due, grace_until) {
                *at = grace_until.max(*at);
            }
            let first = due.map(|(at, _)| at).into_iter().chain(expires).chain(cut_at).min();
            let Poll::Ready(now) = timer.poll_due(cx, first) else { return Poll::Pending };
            if cut_at.is_some_and(|at| at <= now) {
                let _ = session.closed_by.set(RequestEnd::DrainTimeout);
                return Poll::Ready(());
            }
            if expires.is_some_and(|expires| expires <= now) {
                expires = None;
                debug!(connection = session.number, peer = %session.peer, "the client's certificate has expired: no further request");
                if !ending {
                    ending = true;
                    grace_until = Some(now + CLOSE_GRACE);
                    ask_to_end(connection.as_mut());
                    if connection.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                }
                continue;
            }
            let Some((at, overdue)) = due else { continue };
            if at > now {
                continue;
            }
            if overdue == Overdue::Idle && !ending {
                ending = true;
                grace_until = Some(now + CLOSE_GRACE);
                ask_to_end(connection.as_mut());
                if connection.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                continue;
            }
            if draining && overdue != Overdue::Stall {
                return Poll::Ready(());
            }
            if overdue == Overdue::Stall {
                let _ = session.closed_by.set(RequestEnd::ClientStalled);
            }
            count(&session.shared.traffic.overdue, overdue.label());
            debug!(connection = session.number, peer = %session.peer, timeout = overdue.label(), "closed: the client is too slow");
            if overdue == Overdue::Head {
                session.activity.abandon_head();
                let _ = connection.as_mut().poll(cx);
            }
            return Poll::Ready(());
        }
    })
    .await;
}

//! Tells an open connection to close: loopgate shuts down, or the connection lost its authorization.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// How long WebSockets that lost their authorization may take to end the frame under way and to send
/// their close frames, and so how long their HTTP/2 connection waits for them.
pub const REVOKED_GRACE: Duration = Duration::from_millis(500);

/// Why a connection must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// loopgate shuts down: requests under way may finish.
    Drain,
    /// The connection is no longer authorized: no further request is taken. It closes at once, or after
    /// [`REVOKED_GRACE`] if it has WebSockets over HTTP/2.
    Revoked,
}

/// Tells the tasks of one connection to close it.
#[derive(Clone, Debug, Default)]
pub struct CloseSignal {
    /// Cancelled for the first reason, whichever it is, so that a task that is polled for each
    /// request waits for one future only.
    closing: CancellationToken,
    revoked: CancellationToken,
}

impl CloseSignal {
    /// Creates the signal of a connection that drains when `draining` is cancelled.
    pub(super) fn new(draining: &CancellationToken) -> Self {
        Self { closing: draining.child_token(), revoked: CancellationToken::new() }
    }

    /// Creates the signal of a tunnel on the connection, which may be revoked without it.
    pub(super) fn for_tunnel(&self) -> Self {
        Self { closing: self.closing.child_token(), revoked: self.revoked.child_token() }
    }

    /// Revokes the connection.
    pub(super) fn revoke(&self) {
        // In this order, so that a task that is woken by `closing` finds the reason.
        self.revoked.cancel();
        self.closing.cancel();
    }

    /// Returns whether the connection was revoked.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// Returns the futures that [`CloseSignal::poll_reason`] takes.
    pub(super) fn futures(&self) -> (WaitForCancellationFuture<'_>, WaitForCancellationFuture<'_>) {
        (self.closing.cancelled(), self.revoked.cancelled())
    }

    /// Completes with the next reason. `is_draining` is whether [`CloseReason::Drain`] was returned
    /// before. Must be polled until it is pending.
    pub(super) fn poll_reason(
        &self,
        cx: &mut Context<'_>,
        closing: Pin<&mut WaitForCancellationFuture<'_>>,
        revoked: Pin<&mut WaitForCancellationFuture<'_>>,
        is_draining: bool,
    ) -> Poll<CloseReason> {
        if is_draining {
            return revoked.poll(cx).map(|()| CloseReason::Revoked);
        }
        closing.poll(cx).map(|()| if self.revoked.is_cancelled() { CloseReason::Revoked } else { CloseReason::Drain })
    }
}

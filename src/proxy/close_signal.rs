//! Tells an open connection to close: loopgate shuts down, or the connection lost its
//! authorization.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// The time that a WebSocket that lost its authorization has to end the current frame and to send
/// its close frame. Its HTTP/2 connection stays open for as long.
pub const REVOKED_GRACE: Duration = Duration::from_millis(500);

/// Why a connection must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// loopgate shuts down: open requests may finish.
    Drain,
    /// The connection is no longer authorized: it takes no further request. It closes at once, or
    /// after [`REVOKED_GRACE`] if it carries WebSockets over HTTP/2.
    Revoked,
}

/// Tells the tasks of one connection to close it.
#[derive(Clone, Debug, Default)]
pub struct CloseSignal {
    /// Cancelled for either reason. A task that is polled often waits for this one alone.
    closing: CancellationToken,
    revoked: CancellationToken,
}

impl CloseSignal {
    /// Creates the signal of a connection. It drains when `draining` is cancelled.
    pub(super) fn new(draining: &CancellationToken) -> Self {
        Self { closing: draining.child_token(), revoked: CancellationToken::new() }
    }

    /// Creates the signal of a tunnel on the connection. The tunnel can be revoked without the
    /// connection.
    pub(super) fn for_tunnel(&self) -> Self {
        Self { closing: self.closing.child_token(), revoked: self.revoked.child_token() }
    }

    /// Revokes the connection.
    pub(super) fn revoke(&self) {
        // In this order: a task that `closing` wakes reads the reason from `revoked`.
        self.revoked.cancel();
        self.closing.cancel();
    }

    /// Returns whether the connection was revoked.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// Returns a wait for the reasons to close.
    pub(super) fn wait(&self) -> CloseWait<'_> {
        CloseWait { signal: self, is_draining: false, cancelled: self.closing.cancelled() }
    }
}

pin_project! {
    /// Waits for the reasons of a [`CloseSignal`].
    pub(super) struct CloseWait<'a> {
        signal: &'a CloseSignal,
        // Whether `cancelled` waits for [`CloseReason::Revoked`] alone.
        is_draining: bool,
        #[pin]
        cancelled: WaitForCancellationFuture<'a>,
    }
}

impl CloseWait<'_> {
    /// Completes with the next reason. Set `is_draining` once [`CloseReason::Drain`] was returned
    /// or does not matter; then only a revocation completes the wait. Never set it back. Poll until
    /// pending, or the task is not woken.
    pub(super) fn poll_reason(self: Pin<&mut Self>, cx: &mut Context<'_>, is_draining: bool) -> Poll<CloseReason> {
        let mut this = self.project();
        if is_draining && !*this.is_draining {
            *this.is_draining = true;
            this.cancelled.set(this.signal.revoked.cancelled());
        }
        let signal = *this.signal;
        this.cancelled.poll(cx).map(|()| if signal.is_revoked() { CloseReason::Revoked } else { CloseReason::Drain })
    }
}

//! What may be called out to a connection while it lives: that loopgate is about to end, or that it has lost its lane.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// What a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// loopgate is about to end: say goodbye.
    Drain,
    /// Its lane is not its lane any more.
    Revoked,
}

/// One connection's ear, for each of its tasks to wait at.
#[derive(Clone, Debug, Default)]
pub struct CloseSignal {
    /// Cancelled at the first call, whichever it is: a task that is polled for every request has but one future to look after.
    closing: CancellationToken,
    revoked: CancellationToken,
}

impl CloseSignal {
    /// Hears of the end when `draining` is cancelled.
    pub(super) fn new(draining: &CancellationToken) -> Self {
        Self { closing: draining.child_token(), revoked: CancellationToken::new() }
    }

    /// An ear of one of the connection's tunnels: it hears what the connection hears, and may lose its lane alone.
    pub(super) fn for_tunnel(&self) -> Self {
        Self { closing: self.closing.child_token(), revoked: self.revoked.child_token() }
    }

    /// Says that the lane is lost.
    pub(super) fn revoke(&self) {
        // In this order, so that whoever is closing finds out why.
        self.revoked.cancel();
        self.closing.cancel();
    }

    /// Whether the lane is lost.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// The futures that [`CloseSignal::poll`] is to be given.
    pub(super) fn futures(&self) -> (WaitForCancellationFuture<'_>, WaitForCancellationFuture<'_>) {
        (self.closing.cancelled(), self.revoked.cancelled())
    }

    /// Ready with the next call; `draining` says that [`CloseReason::Drain`] was heard already. To be polled until it is pending.
    pub(super) fn poll(
        &self,
        cx: &mut Context<'_>,
        closing: Pin<&mut WaitForCancellationFuture<'_>>,
        revoked: Pin<&mut WaitForCancellationFuture<'_>>,
        draining: bool,
    ) -> Poll<CloseReason> {
        if draining {
            return revoked.poll(cx).map(|()| CloseReason::Revoked);
        }
        closing.poll(cx).map(|()| if self.revoked.is_cancelled() { CloseReason::Revoked } else { CloseReason::Drain })
    }
}

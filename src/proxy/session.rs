//! What the requests of one connection share.

use std::sync::Arc;
use std::time::SystemTime;

use super::close_signal::CloseSignal;
use super::downstream::activity::Activity;
use super::shared::{Settings, Shared};
use crate::addr::PeerAddr;
use crate::labels::Protocol;
use crate::lane::Lane;

/// A connection that has a lane: plain data for the requests on it.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Arc<Settings>,
    pub(super) lane: Arc<Lane>,
    pub(super) peer: PeerAddr,
    pub(super) protocol: Protocol,
    /// The connection's number, as in the log and in `status`.
    pub(super) number: u64,
    /// When the certificate expires that gave the connection its lane or its user.
    pub(super) expires: Option<SystemTime>,
    pub(super) activity: Arc<Activity>,
    pub(super) close_signal: CloseSignal,
}

impl Session {
    /// Returns whether the certificate on which the connection depends has expired, so that it must carry no new request.
    pub(super) fn has_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= SystemTime::now())
    }
}

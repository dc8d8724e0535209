//! The evidence about a connection, over TLS or plain HTTP, and the lane decision from it.

use std::net::IpAddr;

use super::assignment::{Denied, Lane};
use super::decide::{decide_lane, decide_plain_lane};
use super::evidence::{Certificate, Evidence};
use super::policy::LanePolicy;
use crate::discovery::View;

/// The evidence from which the lane of a connection is decided.
#[derive(Clone, Debug)]
pub enum ConnectionEvidence {
    /// The evidence of a connection over TLS.
    Tls(Evidence),
    /// The peer of a connection over plain HTTP, which must be a trusted proxy.
    Plain(IpAddr),
}

impl ConnectionEvidence {
    /// Decides the lane of the connection again. `now` is in seconds since the Unix epoch.
    ///
    /// # Errors
    /// Why the connection gets no lane.
    pub fn decide_lane(&self, view: &View, policy: &LanePolicy, now: i64) -> Result<Lane, Denied> {
        match self {
            Self::Tls(evidence) => decide_lane(evidence, view, policy, now),
            Self::Plain(peer) => decide_plain_lane(*peer, view, policy).map(Lane::External),
        }
    }

    /// The peer's address on the TCP connection.
    pub fn peer(&self) -> IpAddr {
        match self {
            Self::Tls(evidence) => evidence.peer,
            Self::Plain(peer) => *peer,
        }
    }

    /// The verified client certificate, if the client showed one.
    pub fn certificate(&self) -> Option<&Certificate> {
        match self {
            Self::Tls(evidence) => evidence.certificate.as_ref(),
            Self::Plain(_) => None,
        }
    }
}

//! Which lane a connection is on and what each lane may say to the gateway: pure functions, no I/O and no clock.
//!
//! [`decide()`] is asked once a connection, before its first request, and again whenever the [`View`](crate::discovery::View) changes.
//! [`GatewayHead`] is the only thing that can be sent to the gateway, and only a lane makes one.

mod decide;
mod evidence;
mod explain;
mod forwarded;
mod headers;
mod names;
mod page;
mod path;
mod policy;
mod request;
mod source;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::HeaderValue;

use crate::discovery;
use crate::labels::LaneKind;

pub use decide::{decide, may_be_agent, permit, permit_stated};
pub use evidence::{Certificate, Evidence, Issuer, Stated};
pub use explain::{WhyExternal, why_external};
pub use headers::{Forwarding, GatewayHead, Rules, StatedClient, scrub_response, scrub_trailers};
pub use policy::Policy;
pub use request::Refusal;

/// Where a connection's requests go, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The gateway sees a local client.
    Agent(AgentLane),
    /// The gateway sees a remote client, through a proxy that it trusts.
    External(ExternalLane),
}

impl Lane {
    /// Which of the two it is.
    pub fn kind(&self) -> LaneKind {
        match self {
            Self::Agent(_) => LaneKind::Agent,
            Self::External(_) => LaneKind::External,
        }
    }
}

/// What is known of a connection on the agent lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentLane {
    /// The loopback address that the gateway sees it come from.
    pub source: Ipv4Addr,
    /// How it was admitted.
    pub admitted: Admitted,
    /// The most it may do, in the form of an `X-OpenClaw-Scopes` header; `None` means no cap of ours.
    pub scopes: Option<HeaderValue>,
    /// What it is told the gateway as, should one of its requests have to go out on the external lane.
    pub as_external: ExternalLane,
}

impl AgentLane {
    /// Says whether `other` is the same agent, admitted in the same way and with the same cap.
    pub fn is_same(&self, other: &Self) -> bool {
        self.source == other.source && self.scopes == other.scopes && self.admitted.label() == other.admitted.label()
    }

    /// Says whether Docker or a certificate proved who it is; an address alone does not.
    pub fn is_attested(&self) -> bool {
        matches!(self.admitted, Admitted::Attested(_) | Admitted::Certificate(_))
    }
}

/// How an agent was admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It has an address of this network namespace, and `--own-addresses agent` was given.
    OwnAddress,
    /// Its address is in `agents.cidrs`.
    Network,
    /// A container labelled `loopgate.agent=address` has its address.
    Address(Arc<discovery::Agent>),
    /// A labelled container has its address, and it showed the certificate that was issued to that very container.
    Attested(Arc<discovery::Agent>),
    /// It showed a certificate that stands for an agent wherever it is: this is the certificate's URI.
    Certificate(String),
}

impl Admitted {
    /// The way of admission in one word, as `status` and metrics name it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::OwnAddress => "own-address",
            Self::Network => "cidr",
            Self::Address(_) => "address",
            Self::Attested(_) => "attested",
            Self::Certificate(_) => "certificate",
        }
    }
}

/// What is known of a connection on the external lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalLane {
    /// The client's address as far as the connection tells it.
    pub client: IpAddr,
    /// The same in the form that the gateway is told.
    pub stated: StatedClient,
    /// Whether a trusted proxy makes the requests, whose word on the client is taken for each one. Behind a PROXY header it's the client who
    /// makes them.
    pub trusted_proxy: bool,
    /// Whom a client certificate of `tls.client_ca` names.
    pub user: Option<HeaderValue>,
}

/// Why a connection or request gets no lane at all; also its metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denied {
    /// `external.deny` lists the client.
    Listed,
    /// `external.allow` is not empty and does not list the client.
    NotListed,
}

impl Denied {
    /// The reason in one word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Listed => "deny_list",
            Self::NotListed => "not_in_allow_list",
        }
    }
}

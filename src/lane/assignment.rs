//! The lane that a connection is assigned to, and what is known of the connection on it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::HeaderValue;

use super::forwarded_client::ForwardedClient;
use super::scheme::Scheme;
use crate::discovery;
use crate::labels::LaneKind;

/// The lane of a connection: which source address and which headers its requests get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The gateway sees a local client.
    Agent(AgentLane),
    /// The gateway sees a remote client, through a proxy that it trusts.
    External(ExternalLane),
}

impl Lane {
    /// The kind of lane, for metrics and logs.
    pub fn kind(&self) -> LaneKind {
        match self {
            Self::Agent(_) => LaneKind::Agent,
            Self::External(_) => LaneKind::External,
        }
    }

    /// Returns the label of the [`AgentBasis`], and the agent's name or certificate URI if it has
    /// one; `None` for both on the external lane.
    pub fn basis_and_agent_name(&self) -> (Option<&'static str>, Option<&str>) {
        let Self::Agent(lane) = self else { return (None, None) };
        let name = match &lane.basis {
            AgentBasis::Address(agent) | AgentBasis::Attested(agent) => Some(agent.name.as_str()),
            AgentBasis::Certificate(uri) => Some(uri.as_str()),
            AgentBasis::OwnAddress | AgentBasis::Cidr => None,
        };
        (Some(lane.basis.label()), name)
    }

    /// The scheme of the connection: `http` on a listener for plain HTTP, else `https`.
    pub fn scheme(&self) -> Scheme {
        match self {
            Self::Agent(lane) => lane.as_external.scheme,
            Self::External(lane) => lane.scheme,
        }
    }

    /// Returns whether a client certificate makes the connection an agent's, or names its user.
    pub fn depends_on_certificate(&self) -> bool {
        match self {
            Self::Agent(lane) => lane.is_proved_by_certificate() || lane.as_external.user.is_some(),
            Self::External(lane) => lane.user.is_some(),
        }
    }
}

/// A connection on the agent lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentLane {
    /// The loopback source address of its requests at the gateway.
    pub source: Ipv4Addr,
    /// What makes the connection an agent's.
    pub basis: AgentBasis,
    /// The scope cap, as the value of `X-OpenClaw-Scopes`; `None` means no cap.
    pub scopes: Option<HeaderValue>,
    /// The external lane of the same connection, for requests that a web page causes.
    pub as_external: ExternalLane,
}

impl AgentLane {
    /// Returns whether `other` has the same source address, kind of basis, scope caps and user.
    pub fn grants_the_same(&self, other: &Self) -> bool {
        self.source == other.source
            && self.scopes == other.scopes
            && self.as_external.scopes == other.as_external.scopes
            && self.as_external.user == other.as_external.user
            && self.basis.label() == other.basis.label()
    }

    /// Returns whether a client certificate proved which agent this is, and not an address alone.
    pub fn is_proved_by_certificate(&self) -> bool {
        matches!(self.basis, AgentBasis::Attested(_) | AgentBasis::Certificate(_))
    }
}

/// What makes a connection an agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentBasis {
    /// The peer has an address of this network namespace, and `--own-addresses agent` was given.
    OwnAddress,
    /// The peer's address is in `agents.cidrs`.
    Cidr,
    /// The peer's address is that of this container, labelled `loopgate.agent=address`.
    Address(Arc<discovery::Agent>),
    /// The peer's address is that of this container, and the client certificate was issued to this
    /// container.
    Attested(Arc<discovery::Agent>),
    /// The client certificate has this URI, which names an agent independently of discovery.
    Certificate(String),
}

impl AgentBasis {
    /// The basis in one word, for `status` and the audit log.
    pub fn label(&self) -> &'static str {
        match self {
            Self::OwnAddress => "own-address",
            Self::Cidr => "cidr",
            Self::Address(_) => "address",
            Self::Attested(_) => "attested",
            Self::Certificate(_) => "certificate",
        }
    }
}

/// A connection on the external lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalLane {
    /// The client's address: the peer's, or the one in a trusted proxy's PROXY header.
    pub client: IpAddr,
    /// The client's address as `X-Forwarded-For` states it.
    pub forwarded_client: ForwardedClient,
    /// Whether a trusted proxy writes the requests, so that each request may name its own client.
    /// After a PROXY header the client itself writes the requests.
    pub is_trusted_proxy: bool,
    /// The scheme of the connection. A trusted proxy may state another for a request.
    pub scheme: Scheme,
    /// The user that a client certificate names. A CA of `tls.client_ca` signed it, or `cert issue
    /// --user` issued it.
    pub user: Option<HeaderValue>,
    /// The scope cap, as the value of `X-OpenClaw-Scopes`: the cap of the client's container,
    /// `external.scopes`, or the intersection of both. `None` means no cap.
    pub scopes: Option<HeaderValue>,
}

/// Why a connection or request gets no lane; also its metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denied {
    /// `external.deny` lists the client.
    InDenyList,
    /// `external.allow` is not empty and does not list the client.
    NotInAllowList,
    /// The connection is to `listen.plain`, and `external.trusted_proxies` does not list its peer.
    NotTrustedProxy,
}

impl Denied {
    /// The reason in one word, as metrics and the audit log name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::InDenyList => "deny_list",
            Self::NotInAllowList => "not_in_allow_list",
            Self::NotTrustedProxy => "not_trusted_proxy",
        }
    }
}

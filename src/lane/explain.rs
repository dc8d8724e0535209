//! Explains why a connection that might be expected on the agent lane is external.

use std::fmt;
use std::net::IpAddr;

use super::decide::{basis_by_address, is_own_address, names_agent};
use super::evidence::{Certificate, Evidence, Issuer};
use super::policy::LanePolicy;
use crate::addr::canonical;
use crate::config::AgentSourceKind;
use crate::discovery::{AgentKind, View};

/// Why a connection that might be expected on the agent lane is external.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyExternal {
    /// The gateway is not on loopback, so every client is external.
    RemoteGateway,
    /// The agent's address is in `external.trusted_proxies`.
    TrustedProxy {
        /// The name of the agent whose address the peer has.
        agent: String,
    },
    /// The label of the peer's container demands a client certificate, and the client showed none.
    NoCertificate {
        /// The container's name.
        agent: String,
    },
    /// The client certificate has expired.
    CertificateExpired {
        /// The name of the peer's container.
        agent: String,
    },
    /// The client certificate was not issued to the peer's container.
    OtherCertificate {
        /// The container's name.
        agent: String,
    },
    /// Docker, or the API server, is unreachable, so the peer's container can't be confirmed as an
    /// agent.
    Unconfirmed {
        /// The container's name.
        agent: String,
        /// The source of agents that is unreachable.
        source: AgentSourceKind,
    },
    /// The connection was opened before the peer's container became an agent.
    ConnectedBeforeAgent {
        /// The container's name.
        agent: String,
    },
    /// The peer has an address of this network namespace.
    OwnAddress,
    /// The peer has an address in 127.0.0.0/8 other than 127.0.0.1.
    OtherLoopbackAddress(IpAddr),
    /// The client showed a certificate of loopgate's CA, but no agent has the peer's address.
    UnknownAddress(IpAddr),
    /// The client showed a certificate of the operator's CA, whose URI is not in `agents.uris`.
    UriNotListed,
}

impl fmt::Display for WhyExternal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoteGateway => f.write_str("the gateway is not on loopback, so every client is external"),
            Self::TrustedProxy { agent } => {
                write!(f, "{agent} is in external.trusted_proxies, and a trusted proxy is never an agent")
            }
            Self::NoCertificate { agent } => {
                write!(
                    f,
                    "{agent} must present a client certificate (its label is attested) and presented none: connect \
                     through loopgate agent or exec"
                )
            }
            Self::CertificateExpired { agent } => {
                write!(f, "the client certificate of {agent} has expired: check its clock")
            }
            Self::OtherCertificate { agent } => {
                write!(f, "the client certificate was not issued to {agent}, but to another client")
            }
            Self::Unconfirmed { agent, source } => {
                write!(f, "{} is unreachable, so {agent} can't be confirmed as an agent", source.name())
            }
            Self::ConnectedBeforeAgent { agent } => {
                write!(f, "{agent} became an agent after this connection began: connect again")
            }
            Self::OwnAddress => f.write_str(
                "clients with an address of this network namespace are external; --own-addresses agent changes that",
            ),
            Self::OtherLoopbackAddress(ip) => {
                write!(
                    f,
                    "in 127.0.0.0/8 only 127.0.0.1 counts as an address of this network namespace: {ip} may be the \
                     address of a proxy or a service mesh"
                )
            }
            Self::UnknownAddress(ip) => {
                write!(f, "it presented an agent's certificate from {ip}, which is not an agent's address")
            }
            Self::UriNotListed => f.write_str("the URI in its client certificate is not in agents.uris"),
        }
    }
}

/// Explains why a connection is external; `None` if there is no reason to expect it on the agent
/// lane.
///
/// `now` is in seconds since the Unix epoch.
pub fn why_external(evidence: &Evidence, view: &View, policy: &LanePolicy, now: i64) -> Option<WhyExternal> {
    let peer = canonical(evidence.peer);
    let why = why_external_with_loopback_gateway(peer, evidence.certificate.as_ref(), view, policy, now);
    if policy.gateway_is_loopback {
        return why;
    }
    // The other clients would be external behind a gateway on loopback too.
    (why.is_some() || basis_by_address(peer, view, policy).is_some()).then_some(WhyExternal::RemoteGateway)
}

/// Explains why a connection is external if the gateway is on loopback; `None` if nothing suggests
/// an agent: the address is foreign and was never an agent's, and no certificate that could name an
/// agent was shown.
fn why_external_with_loopback_gateway(
    peer: IpAddr,
    certificate: Option<&Certificate>,
    view: &View,
    policy: &LanePolicy,
    now: i64,
) -> Option<WhyExternal> {
    if is_own_address(peer, view) {
        return Some(WhyExternal::OwnAddress);
    }
    if peer.is_loopback() {
        return Some(WhyExternal::OtherLoopbackAddress(peer));
    }
    let Some(agent) = view.agents.get(&peer) else {
        if let Some(agent) = view.last_known.get(&peer) {
            return Some(WhyExternal::Unconfirmed { agent: agent.name.clone(), source: view.source });
        }
        return match certificate?.issuer {
            Issuer::Loopgate => Some(WhyExternal::UnknownAddress(peer)),
            // The operator's CA also signs certificates of users, who are meant to be external. So
            // this is a reason only if certificates of this CA can name agents at all.
            Issuer::Operator => (!policy.agent_uris.is_empty()).then_some(WhyExternal::UriNotListed),
        };
    };
    let name = agent.name.clone();
    if policy.is_trusted_proxy(peer) {
        return Some(WhyExternal::TrustedProxy { agent: name });
    }
    Some(match (agent.kind, certificate) {
        (AgentKind::Address, _) => WhyExternal::ConnectedBeforeAgent { agent: name },
        (AgentKind::Attested, None) => WhyExternal::NoCertificate { agent: name },
        (AgentKind::Attested, Some(certificate)) if certificate.not_after <= now => {
            WhyExternal::CertificateExpired { agent: name }
        }
        (AgentKind::Attested, Some(certificate)) => {
            let is_of_agent = certificate.issuer == Issuer::Loopgate
                && certificate.uris.iter().any(|uri| names_agent(uri, &agent.id, &policy.trust_domain, view.source));
            if is_of_agent {
                WhyExternal::ConnectedBeforeAgent { agent: name }
            } else {
                WhyExternal::OtherCertificate { agent: name }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::discovery::{Agent, Interface};
    use crate::lane::{Certificate, ProxyHeader};

    const NOW: i64 = 1_000;

    fn agent(id: &str, kind: AgentKind) -> Arc<Agent> {
        Arc::new(Agent { id: id.into(), name: format!("{id}-name"), project: None, service: None, kind, scopes: None })
    }

    fn view() -> View {
        let mut view = View {
            interfaces: vec![Interface { name: "eth0".into(), addresses: vec!["172.18.0.2/16".parse().unwrap()] }],
            ..View::default()
        };
        view.agents.insert("172.18.0.3".parse().unwrap(), agent("aaa", AgentKind::Address));
        view.agents.insert("172.18.0.4".parse().unwrap(), agent("bbb", AgentKind::Attested));
        view.agents.insert("172.18.0.5".parse().unwrap(), agent("ccc", AgentKind::Attested));
        view.last_known = view.agents.clone();
        view.last_known.insert("172.18.0.6".parse().unwrap(), agent("ddd", AgentKind::Attested));
        view
    }

    #[test]
    fn every_reason_of_an_external_agent_is_explained() {
        let mut config = Config::default();
        config.external.trusted_proxies = vec!["172.18.0.5/32".parse().unwrap()];
        let mut listing = config.clone();
        listing.agents.uris = vec!["spiffe://corp/robot".into()];
        let own = |uri: &str, not_after| {
            Some(Certificate {
                issuer: Issuer::Loopgate,
                serial: Vec::new(),
                uris: vec![uri.into()],
                user: None,
                not_after,
            })
        };
        let operator = || {
            Some(Certificate {
                issuer: Issuer::Operator,
                serial: Vec::new(),
                uris: vec!["spiffe://corp/x".into()],
                user: None,
                not_after: 2_000,
            })
        };
        let bbb = "spiffe://loopgate.local/docker/p/s/bbb";
        let mut remote = config.clone();
        remote.gateway.address = "10.0.0.1:18789".parse().unwrap();
        remote.agents.cidrs = vec!["172.18.0.77/32".parse().unwrap()];
        let table = [
            ("172.18.0.3", None, &remote, Some(WhyExternal::RemoteGateway)),
            ("172.18.0.6", None, &remote, Some(WhyExternal::RemoteGateway)),
            ("172.18.0.77", None, &remote, Some(WhyExternal::RemoteGateway)),
            ("172.18.0.9", None, &remote, None),
            ("172.18.0.9", None, &config, None),
            ("172.18.0.2", None, &config, Some(WhyExternal::OwnAddress)),
            ("127.0.0.1", None, &config, Some(WhyExternal::OwnAddress)),
            ("127.0.0.6", None, &config, Some(WhyExternal::OtherLoopbackAddress("127.0.0.6".parse().unwrap()))),
            ("172.18.0.3", None, &config, Some(WhyExternal::ConnectedBeforeAgent { agent: "aaa-name".into() })),
            ("172.18.0.4", None, &config, Some(WhyExternal::NoCertificate { agent: "bbb-name".into() })),
            ("172.18.0.4", own(bbb, NOW), &config, Some(WhyExternal::CertificateExpired { agent: "bbb-name".into() })),
            (
                "172.18.0.4",
                own(bbb, 2_000),
                &config,
                Some(WhyExternal::ConnectedBeforeAgent { agent: "bbb-name".into() }),
            ),
            (
                "172.18.0.4",
                own("spiffe://loopgate.local/docker/p/s/x", 2_000),
                &config,
                Some(WhyExternal::OtherCertificate { agent: "bbb-name".into() }),
            ),
            ("172.18.0.5", None, &config, Some(WhyExternal::TrustedProxy { agent: "ccc-name".into() })),
            (
                "172.18.0.6",
                None,
                &config,
                Some(WhyExternal::Unconfirmed { agent: "ddd-name".into(), source: AgentSourceKind::Docker }),
            ),
            ("172.18.0.9", own(bbb, 2_000), &config, Some(WhyExternal::UnknownAddress("172.18.0.9".parse().unwrap()))),
            ("172.18.0.9", operator(), &config, None),
            ("172.18.0.9", operator(), &listing, Some(WhyExternal::UriNotListed)),
        ];
        for (peer, certificate, config, expected) in table {
            let evidence = Evidence { peer: peer.parse().unwrap(), proxy_header: ProxyHeader::Local, certificate };
            assert_eq!(why_external(&evidence, &view(), &LanePolicy::new(config), NOW), expected, "{evidence:?}");
        }
    }
}

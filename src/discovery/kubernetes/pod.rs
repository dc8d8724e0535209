//! The part of a pod's description that discovery uses.

use std::net::IpAddr;

use crate::discovery::agent::{Agent, AgentKind};
use crate::discovery::agent_labels;

/// A running pod with the label `loopgate.dev/agent`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The uid, which no other pod ever gets.
    pub uid: String,
    /// The name, which a later pod may get again.
    pub name: String,
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The service account that the pod runs as.
    pub service_account: String,
    /// The value of the label `loopgate.dev/agent`.
    pub agent: String,
    /// The value of the annotation `loopgate.dev/scopes`.
    pub scopes: Option<String>,
    /// The pod's addresses, IPv4 and IPv6.
    pub addresses: Vec<IpAddr>,
    /// The addresses of the pod's node.
    pub hosts: Vec<IpAddr>,
    /// Whether the pod uses its node's network (`hostNetwork`), so that its addresses are the
    /// node's.
    pub host_network: bool,
}

impl Pod {
    /// Returns the pod as an agent of `kind`.
    pub fn to_agent(&self, kind: AgentKind) -> Agent {
        Agent {
            id: self.uid.clone(),
            name: self.name.clone(),
            project: Some(self.namespace.clone()),
            service: Some(self.service_account.clone()),
            kind,
            scopes: self.scopes.as_deref().map(agent_labels::parse_scopes),
        }
    }
}

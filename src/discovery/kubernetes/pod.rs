//! The part of a pod's description that discovery uses.

use std::net::IpAddr;

use crate::discovery::agent::{Agent, AgentKind};
use crate::discovery::agent_labels;

/// A running pod with the label `loopgate.dev/agent`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its uid, which no other pod ever gets.
    pub uid: String,
    /// Its name, which a later pod may get again.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The service account that it runs as.
    pub service_account: String,
    /// The value of the label.
    pub agent: String,
    /// The value of the annotation `loopgate.dev/scopes`.
    pub scopes: Option<String>,
    /// Every address of its own, of both families.
    pub addresses: Vec<IpAddr>,
    /// Every address of its node.
    pub hosts: Vec<IpAddr>,
    /// Whether it is on its node's network.
    pub host_network: bool,
}

impl Pod {
    /// Returns the agent that the pod is.
    pub fn agent(&self, kind: AgentKind) -> Agent {
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

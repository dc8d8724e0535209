//! What matters of a pod, out of all that the API server tells.

use std::net::IpAddr;

use super::{Agent, Proof, labels};

/// A living pod with the label `loopgate.dev/agent`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its uid, which no other pod ever has.
    pub uid: String,
    /// Its name, which a later one may have again.
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
    /// The agent that it is by this proof.
    pub fn agent(&self, proof: Proof) -> Agent {
        Agent {
            id: self.uid.clone(),
            name: self.name.clone(),
            project: Some(self.namespace.clone()),
            service: Some(self.service_account.clone()),
            proof,
            scopes: self.scopes.as_deref().map(labels::scopes),
        }
    }
}

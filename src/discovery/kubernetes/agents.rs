//! Decides which pods are agents, by a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::pod::Pod;
use crate::config::AgentSourceKind;
use crate::discovery::agent_labels;
use crate::discovery::interface::Interface;
use crate::discovery::view::View;
use crate::discovery::why_not_agent::WhyNotAgent;

impl View {
    /// Builds a view of the interfaces and of `pods`, which are all running pods with the label
    /// `loopgate.dev/agent`.
    pub fn of_pods(interfaces: &[Interface], pods: &[Pod]) -> Self {
        let mut view = Self { source: AgentSourceKind::Kubernetes, interfaces: interfaces.to_vec(), ..Self::default() };
        let mut claims: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        let nodes: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| &pod.hosts).copied().collect();
        for pod in pods {
            for ip in &pod.addresses {
                claims.entry(*ip).or_default().insert(&pod.uid);
            }
        }
        for pod in pods {
            if let Some(scopes) = &pod.scopes {
                let scopes = agent_labels::parse_scopes(scopes);
                pod.addresses.iter().for_each(|ip| view.add_scope_cap(*ip, &scopes, false));
            }
            let kind = match agent_labels::parse_kind(&pod.agent) {
                Ok(Some(kind)) => kind,
                Ok(None) => continue,
                Err(agent_labels::UnknownValue) => {
                    view.not_agents.insert(pod.name.clone(), WhyNotAgent::UnknownPodLabelValue(pod.agent.clone()));
                    continue;
                }
            };
            if pod.host_network {
                view.not_agents.insert(pod.name.clone(), WhyNotAgent::HostNetwork);
                continue;
            }
            let agent = Arc::new(pod.to_agent(kind));
            for ip in &pod.addresses {
                let doubtful = nodes.contains(ip) || claims.get(ip).is_some_and(|claimants| claimants.len() > 1);
                if view.has_non_loopback_address(*ip) {
                    view.not_agents.insert(pod.name.clone(), WhyNotAgent::OwnNamespace);
                } else if doubtful {
                    view.not_agents.insert(pod.name.clone(), WhyNotAgent::AmbiguousAddress(*ip));
                } else {
                    view.agents.insert(*ip, Arc::clone(&agent));
                }
            }
        }
        view.last_known = view.agents.clone();
        view
    }
}

#[cfg(test)]
mod tests;

//! Logs the differences between two views that an operator must know of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tracing::{error, info, warn};

use crate::config::AgentSourceKind;

use super::agent::Agent;
use super::orphan::{EXIT_ORPHANED, NamespaceState};
use super::view::View;

/// Logs how `after` differs from `before`: a new owner or the lack of one, agents, new reasons
/// against agents, and the namespace's state.
pub fn log(before: &View, after: &View) {
    if let Some(owner) = &after.owner
        && before.owner.as_ref().is_none_or(|before| before.id != owner.id)
    {
        info!(
            container = owner.name,
            id = owner.id,
            project = owner.project,
            "found the container that owns this network namespace"
        );
    }
    if after.source == AgentSourceKind::Docker
        && after.source_state.is_live()
        && !before.source_state.is_live()
        && after.owner.is_none()
    {
        warn!(
            "no container has the addresses of this network namespace, so labels are ignored: name its container with \
             --container"
        );
    }
    for (ip, change) in agent_changes(&before.agents, &after.agents) {
        match change {
            AgentChange::Lost(agent) => {
                info!(address = %ip, container = agent.name, id = agent.id, "no longer an agent")
            }
            AgentChange::Changed(agent) => {
                info!(
                    address = %ip, container = agent.name, id = agent.id, proof = ?agent.kind,
                    "the name or the labels of an agent have changed"
                )
            }
            AgentChange::Found(agent) => {
                info!(address = %ip, container = agent.name, id = agent.id, proof = ?agent.kind, "found an agent")
            }
        }
    }
    for (name, why) in &after.not_agents {
        if before.not_agents.get(name) != Some(why) {
            warn!(container = name, reason = %why, "container or pod is not an agent");
        }
    }
    if after.namespace != before.namespace {
        match after.namespace {
            NamespaceState::Attached => info!("this network namespace has interfaces again"),
            NamespaceState::Orphaned => error!(
                "lost the interfaces of this network namespace: its owner has probably stopped; waiting for it (if the \
                 owner was recreated, recreate this container too)"
            ),
            NamespaceState::Replaced => {
                error!(
                    status = EXIT_ORPHANED,
                    "the owner now runs in a different network namespace, or was not found for 60 s; exiting with 75 \
                     to be restarted there"
                )
            }
        }
    }
}

/// A difference between the agents of two views at one address.
#[derive(Debug, PartialEq, Eq)]
enum AgentChange<'a> {
    /// This agent is no longer at the address.
    Lost(&'a Agent),
    /// The agent is the same container or pod as before, described differently.
    Changed(&'a Agent),
    /// This agent was not at the address before.
    Found(&'a Agent),
}

/// Returns the changes from `before` to `after`, with their addresses: first the lost agents.
fn agent_changes<'a>(
    before: &'a BTreeMap<IpAddr, Arc<Agent>>,
    after: &'a BTreeMap<IpAddr, Arc<Agent>>,
) -> Vec<(IpAddr, AgentChange<'a>)> {
    let lost = before.iter().filter(|(ip, agent)| after.get(ip).is_none_or(|now| now.id != agent.id));
    let mut changes: Vec<_> = lost.map(|(ip, agent)| (*ip, AgentChange::Lost(agent))).collect();
    changes.extend(after.iter().filter_map(|(ip, agent)| match before.get(ip) {
        Some(known) if known == agent => None,
        Some(known) if known.id == agent.id => Some((*ip, AgentChange::Changed(agent))),
        _ => Some((*ip, AgentChange::Found(agent))),
    }));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::agent::AgentKind;

    #[test]
    fn an_agent_whose_labels_changed_is_not_lost() {
        let agent =
            |id: &str, kind| Agent { id: id.into(), name: id.into(), project: None, service: None, kind, scopes: None };
        let (a, a_by_address) = (agent("a", AgentKind::Attested), agent("a", AgentKind::Address));
        let b = agent("b", AgentKind::Attested);
        let ip = IpAddr::from([10, 0, 0, 1]);
        for (before, after, expected) in [
            (None, Some(&a), vec![AgentChange::Found(&a)]),
            (Some(&a), Some(&a), vec![]),
            (Some(&a), Some(&a_by_address), vec![AgentChange::Changed(&a_by_address)]),
            (Some(&a), Some(&b), vec![AgentChange::Lost(&a), AgentChange::Found(&b)]),
            (Some(&a), None, vec![AgentChange::Lost(&a)]),
        ] {
            let agents = |agent: Option<&Agent>| agent.map(|agent| (ip, Arc::new(agent.clone()))).into_iter().collect();
            let changes: Vec<_> = agent_changes(&agents(before), &agents(after))
                .into_iter()
                .map(|(_, change)| format!("{change:?}"))
                .collect();
            let expected: Vec<_> = expected.iter().map(|change| format!("{change:?}")).collect();
            assert_eq!(changes, expected);
        }
    }
}

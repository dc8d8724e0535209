//! Logs the differences between two views that an operator must know of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tracing::{error, info, warn};

use crate::config::AgentSourceKind;

use super::agent::Agent;
use super::orphan::{EXIT_ORPHANED, NamespaceState};
use super::view::View;

/// Logs how `after` differs from `before`: the owner, agents, reasons against agents, and the
/// namespace's state.
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
    for (ip, agent) in missing_from(&after.agents, &before.agents) {
        info!(address = %ip, container = agent.name, id = agent.id, proof = ?agent.kind, "found an agent");
    }
    for (ip, agent) in missing_from(&before.agents, &after.agents) {
        info!(address = %ip, container = agent.name, id = agent.id, "no longer an agent");
    }
    for (name, why) in &after.not_agents {
        if before.not_agents.get(name) != Some(why) {
            warn!(container = name, reason = %why, "labelled container or pod is not an agent");
        }
    }
    if after.namespace != before.namespace {
        match after.namespace {
            NamespaceState::Attached => info!("this network namespace has interfaces again"),
            NamespaceState::Orphaned => error!(
                "this network namespace has lost its interfaces, as when the container that owns it stops; waiting \
                 until that container runs again (if it was replaced by a new one, this container must be recreated \
                 too)"
            ),
            NamespaceState::Replaced => {
                error!(
                    status = EXIT_ORPHANED,
                    "the owner of this network namespace runs in another one, or could not be found for 60 s; exiting, \
                     so that the restart policy starts this container in the right one"
                )
            }
        }
    }
}

/// Returns the entries of `all` that are not in `others`.
fn missing_from<'a>(
    all: &'a BTreeMap<IpAddr, Arc<Agent>>,
    others: &'a BTreeMap<IpAddr, Arc<Agent>>,
) -> impl Iterator<Item = (&'a IpAddr, &'a Arc<Agent>)> {
    all.iter().filter(|(ip, agent)| others.get(ip) != Some(agent))
}

//! What an operator must know of the difference between two views, as log lines.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tracing::{error, info, warn};

use crate::config::Discovery;

use super::{Agent, DockerState, EXIT_ORPHANED, Namespace, View};

/// Logs what is new in `after`.
pub fn tell(before: &View, after: &View) {
    if let Some(owner) = &after.owner
        && before.owner.as_ref().is_none_or(|before| before.id != owner.id)
    {
        info!(container = owner.name, id = owner.id, project = owner.project, "found the owner of this network namespace");
    }
    let live = |view: &View| matches!(view.docker, DockerState::Live { .. });
    if after.source == Discovery::Docker && live(after) && !live(before) && after.owner.is_none() {
        warn!(
            "none of Docker's containers has the addresses of this network namespace: labels make nobody an agent; is --container needed?"
        );
    }
    for (ip, agent) in missing(&after.agents, &before.agents) {
        info!(address = %ip, container = agent.name, id = agent.id, proof = ?agent.proof, "an agent");
    }
    for (ip, agent) in missing(&before.agents, &after.agents) {
        info!(address = %ip, container = agent.name, id = agent.id, "no longer an agent");
    }
    for (name, why) in &after.not_agents {
        if before.not_agents.get(name) != Some(why) {
            warn!(container = name, reason = %why, "labelled, but not an agent");
        }
    }
    if after.namespace != before.namespace {
        match after.namespace {
            Namespace::Attached => info!("this network namespace has interfaces again"),
            Namespace::Orphaned => error!(
                "this network namespace has lost its interfaces, as when the container that owns it stops; waiting until that runs again \
                 (if it was replaced by a new one, this container must be created anew too)"
            ),
            Namespace::Left => {
                error!(status = EXIT_ORPHANED, "its owner has another network namespace now; exiting, to be started in that")
            }
        }
    }
}

/// The entries of `all` that are not in `others`.
fn missing<'a>(
    all: &'a BTreeMap<IpAddr, Arc<Agent>>,
    others: &'a BTreeMap<IpAddr, Arc<Agent>>,
) -> impl Iterator<Item = (&'a IpAddr, &'a Arc<Agent>)> {
    all.iter().filter(|(ip, agent)| others.get(ip) != Some(agent))
}

//! Asks the Kubernetes API server what it permits.

use crate::check::kubernetes::Seen;
use crate::discovery::kubernetes::{Api, Rule};
use crate::discovery::{DockerState, Proof, View};
use crate::error_chain::error_chain;

/// Asks `api`, which `view` was made by.
pub async fn look(api: &Api, view: &View) -> Seen {
    let mut seen = Seen { api: api.name(), error: view.docker.error().map(Into::into), forbidden: Vec::new() };
    if view.docker == (DockerState::Connecting { error: None }) {
        seen.error = Some("no answer".into());
    }
    let mut rules = vec![Rule::List, Rule::Watch];
    // Where nobody has to be attested, it need not be permitted.
    if view.agents.values().any(|agent| agent.proof == Proof::Attested) {
        rules.push(Rule::Review);
    }
    for rule in rules {
        if let Err(error) = api.probe(rule).await
            && error.is_forbidden()
        {
            let told = error_chain(&error);
            if !seen.forbidden.contains(&told) {
                seen.forbidden.push(told);
            }
        }
    }
    seen
}

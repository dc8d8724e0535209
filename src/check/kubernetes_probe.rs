//! Asks the Kubernetes API server what it permits.

use crate::check::kubernetes::Seen;
use crate::discovery::kubernetes::api::Api;
use crate::discovery::kubernetes::error::Rule;
use crate::discovery::{Proof, SourceState, View};
use crate::error_chain::error_chain;

/// Asks `api`, which `view` was made by.
pub async fn look(api: &Api, view: &View) -> Seen {
    let mut seen = Seen { api: api.name(), error: view.source_state.error().map(Into::into), forbidden: Vec::new() };
    if view.source_state == (SourceState::Connecting { error: None }) {
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

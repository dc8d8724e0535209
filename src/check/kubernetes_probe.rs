//! Asks the Kubernetes API server which requests it permits.

use crate::check::kubernetes::ApiServerState;
use crate::discovery::kubernetes::api::Api;
use crate::discovery::kubernetes::error::Permission;
use crate::discovery::{AgentKind, SourceState, View};
use crate::error_chain::error_chain;

/// Sends the probes to `api`, from which discovery made `view`.
pub async fn probe(api: &Api, view: &View) -> ApiServerState {
    let mut state =
        ApiServerState { api: api.name(), error: view.source_state.error().map(Into::into), forbidden: Vec::new() };
    if view.source_state == (SourceState::Connecting { error: None }) {
        state.error = Some("no answer".into());
    }
    let mut rules = vec![Permission::List, Permission::Watch];
    // Only attested agents need token reviews.
    if view.agents.values().any(|agent| agent.kind == AgentKind::Attested) {
        rules.push(Permission::Review);
    }
    for rule in rules {
        if let Err(error) = api.check_permission(rule).await
            && error.is_forbidden()
        {
            let denial = error_chain(&error);
            if !state.forbidden.contains(&denial) {
                state.forbidden.push(denial);
            }
        }
    }
    state
}

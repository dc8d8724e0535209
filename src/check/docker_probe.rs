//! Asks the Docker Engine what it permits, what time it is, and what agents by address may do.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::check::agents::Capabilities;
use crate::check::docker::{Answer, Seen};
use crate::discovery::docker::engine::Engine;
use crate::discovery::{Proof, SourceState, View};

/// What loopgate asks for with HEAD only: GET hands out the files of a container. Asked for without saying which file, and of no container,
/// it does nothing, and an engine that hears of it answers 400. Filters that permit GET on all of a container, `attach/ws` included, show
/// themselves by it, as does a socket without a filter.
const NEEDLESS: (&str, &str) = ("/containers/{id}/archive", "/containers/loopgate-check/archive");

/// Asks `engine`, which `view` was made by.
pub async fn look(engine: Option<&Engine>, view: &View) -> Seen {
    let mut seen = Seen {
        engine: engine.map(Engine::name),
        guessed: engine.is_some_and(Engine::is_guessed),
        absent: engine.is_some_and(Engine::is_absent),
        error: view.source_state.error().map(Into::into),
        needed: Vec::new(),
        needless: None,
        ahead: None,
    };
    if view.source_state == (SourceState::Connecting { error: None }) {
        seen.error = Some("no answer".into());
    }
    let Some(engine) = engine.filter(|_| seen.error.is_none()) else { return seen };
    if let Ok(answer) = engine.probe("/_ping").await {
        let date = answer.date.and_then(|date| OffsetDateTime::parse(&date.replace("GMT", "+0000"), &Rfc2822).ok());
        seen.ahead = date.map(|date| (date - OffsetDateTime::now_utc()).whole_seconds());
    }
    if let Some(owner) = &view.owner {
        let mut needed = vec![("/containers/{id}/json", format!("/containers/{}/json", owner.id))];
        if view.agents.values().any(|agent| agent.proof == Proof::Attested) {
            needed.push(("/containers/{id}/top", format!("/containers/{}/top", owner.id)));
        }
        for (path, asked) in needed {
            seen.needed.extend(engine.probe(&asked).await.ok().map(|answer| Answer { path, status: answer.status }));
        }
    }
    let (path, asked) = NEEDLESS;
    seen.needless = engine.probe(asked).await.ok().map(|answer| Answer { path, status: answer.status });
    seen
}

/// Agents by address whose containers have NET_RAW, by name; those that may not be inspected are left out.
pub async fn with_net_raw(engine: Option<&Engine>, view: &View) -> Vec<String> {
    let Some(engine) = engine else { return Vec::new() };
    let by_address = view.agents.values().filter(|agent| agent.proof == Proof::Address);
    let ids: BTreeMap<&str, &str> = by_address.map(|agent| (agent.name.as_str(), agent.id.as_str())).collect();
    let is_podman = engine.probe("/_ping").await.is_ok_and(|answer| answer.is_podman);
    let mut found = Vec::new();
    for (name, id) in ids {
        let Some(host) = engine.inspect(id).await.ok().and_then(|inspected| inspected.host_config) else { continue };
        let capabilities = Capabilities {
            privileged: host.privileged.unwrap_or_default(),
            default_net_raw: !is_podman,
            added: host.cap_add.unwrap_or_default(),
            dropped: host.cap_drop.unwrap_or_default(),
        };
        if capabilities.net_raw() {
            found.push(name.to_owned());
        }
    }
    found
}

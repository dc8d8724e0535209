//! Asks the Docker Engine which requests it permits, what time its clock shows, and which
//! capabilities the containers of agents have.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::check::agents::Capabilities;
use crate::check::docker::{EngineState, PathStatus};
use crate::check::gateway_command::NamespaceContainer;
use crate::discovery::docker::engine::Engine;
use crate::discovery::{AgentKind, SourceState, View};

/// A path that loopgate never needs to GET, in the form that findings print, and as it is
/// requested.
///
/// The path returns files of a container. This request has no file name and names a container that
/// does not exist, so it has no effect, and the engine responds with 400. If that response arrives,
/// there is no filter before the engine, or one that permits GET on every path of a container,
/// including `attach/ws`.
const NEEDLESS: (&str, &str) = ("/containers/{id}/archive", "/containers/loopgate-check/archive");

/// Sends the probes to `engine`, from which discovery made `view`.
pub async fn probe(engine: Option<&Engine>, view: &View) -> EngineState {
    let mut state = EngineState {
        engine: engine.map(Engine::name),
        guessed: engine.is_some_and(Engine::is_guessed),
        unused_docker_host: engine.and_then(Engine::unused_docker_host),
        absent: engine.is_some_and(Engine::lacks_socket),
        error: view.source_state.error().map(Into::into),
        needed: Vec::new(),
        needless: None,
        clock_ahead_seconds: None,
    };
    if view.source_state == (SourceState::Connecting { error: None }) {
        state.error = Some("no answer".into());
    }
    let Some(engine) = engine.filter(|_| state.error.is_none()) else { return state };
    if let Ok(answer) = engine.probe("/_ping", "/_ping").await {
        let date = answer.date.and_then(|date| OffsetDateTime::parse(&date.replace("GMT", "+0000"), &Rfc2822).ok());
        state.clock_ahead_seconds = date.map(|date| (date - OffsetDateTime::now_utc()).whole_seconds());
    }
    if let Some(owner) = &view.owner {
        let mut needed = vec![("/containers/{id}/json", format!("/containers/{}/json", owner.id))];
        if view.agents.values().any(|agent| agent.kind == AgentKind::Attested) {
            needed.push(("/containers/{id}/top", format!("/containers/{}/top", owner.id)));
        }
        for (path, requested) in needed {
            state.needed.extend(engine.probe(path, &requested).await.ok().map(|answer| PathStatus {
                path,
                status: answer.status,
                refusal: answer.refusal,
            }));
        }
    }
    let (path, requested) = NEEDLESS;
    state.needless = engine.probe(path, requested).await.ok().map(|answer| PathStatus {
        path,
        status: answer.status,
        refusal: answer.refusal,
    });
    state
}

/// Returns the containers that share this network namespace. Containers that can't be inspected are
/// left out.
pub async fn containers_in_this_namespace(engine: Option<&Engine>, view: &View) -> Vec<NamespaceContainer> {
    let (Some(engine), Some(owner)) = (engine, &view.owner) else { return Vec::new() };
    let Ok((listed, _)) = engine.list_containers().await else { return Vec::new() };
    let joined = format!("container:{}", owner.id);
    let mut containers = Vec::new();
    for summary in listed {
        let joins = summary.host_config.and_then(|host| host.network_mode).is_some_and(|mode| mode == joined);
        let Some(id) = summary.id.filter(|id| joins || *id == owner.id) else { continue };
        let Ok(inspected) = engine.inspect_container(&id).await else { continue };
        let name = summary.names.unwrap_or_default().first().map_or(id, |name| name.trim_start_matches('/').to_owned());
        let words = inspected.path.into_iter().chain(inspected.args.unwrap_or_default()).collect();
        containers.push(NamespaceContainer {
            name,
            words,
            variables: inspected.config.unwrap_or_default().bind_variables,
        });
    }
    containers
}

/// Returns the names of agents by address whose containers have NET_RAW. Containers that can't be
/// inspected are left out.
pub async fn agents_with_net_raw(engine: Option<&Engine>, view: &View) -> Vec<String> {
    let Some(engine) = engine else { return Vec::new() };
    let by_address = view.agents.values().filter(|agent| agent.kind == AgentKind::Address);
    let ids: BTreeMap<&str, &str> = by_address.map(|agent| (agent.name.as_str(), agent.id.as_str())).collect();
    let is_podman = engine.probe("/_ping", "/_ping").await.is_ok_and(|answer| answer.is_podman);
    let mut names = Vec::new();
    for (name, id) in ids {
        let Some(host) = engine.inspect_container(id).await.ok().and_then(|inspected| inspected.host_config) else {
            continue;
        };
        let capabilities = Capabilities {
            privileged: host.privileged.unwrap_or_default(),
            default_net_raw: !is_podman,
            added: host.cap_add.unwrap_or_default(),
            dropped: host.cap_drop.unwrap_or_default(),
        };
        if capabilities.has_net_raw() {
            names.push(name.to_owned());
        }
    }
    names
}

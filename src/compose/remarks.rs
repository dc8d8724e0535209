//! What a plan leaves to the user, and what is worth knowing, each by its key.

use super::changes::{BIND, Namespace, Plan, Remark};
use super::find::{self, is_front};
use super::model::{Project, Service};

/// Adds remarks about the services of `project`; `dialled` are the names by which they dial the gateway.
pub fn add(plan: &mut Plan, project: &Project, gateway: &Service, joined: &[&str], dialled: &[String]) {
    let mut left = Vec::new();
    let mut notes = Vec::new();
    let at = format!("https://{}:{}", plan.gateway, plan.listen);
    for (name, service) in &project.services {
        let remark = |key: &str, what: String| Remark { key: format!("services.{name}.{key}"), what };
        let is_gateway = *name == plan.gateway;
        let is_inside = is_gateway || joined.contains(&name.as_str());
        for key in find::dials(service, dialled, plan.port) {
            if plan.agents.contains(name) || key == "environment.OPENCLAW_GATEWAY_URL" && is_inside {
                continue;
            }
            let what = if is_inside {
                format!(
                    "dials the gateway by its network name, where only TLS is served now: let it dial 127.0.0.1:{}",
                    plan.port
                )
            } else {
                format!(
                    "dials the gateway in plain text: lead it to {at} (wss for WebSockets), with loopgate's CA (`loopgate cert export`)"
                )
            };
            left.push(remark(&key, what));
        }
        if is_inside && !is_gateway && !find::is_cli(service, gateway) {
            notes.push(remark(
                "network_mode",
                "shares the gateway's loopback: whatever it forwards there is a local client to the gateway".into(),
            ));
        } else if is_front(service) && !is_inside && plan.network_mode() != format!("service:{name}") {
            let what = format!(
                "is a proxy: if it leads to the gateway, lead it to {at} with loopgate's CA, give it a fixed address, and name that \
                 address in LOOPGATE_TRUSTED_PROXY"
            );
            notes.push(remark("image", what));
        }
        if !is_inside && find::runs_a_node_host(service) {
            left.push(remark("command", node_host(plan, name)));
        }
        if plan.agents.contains(name)
            && plan.namespace == Namespace::Pause
            && !service.networks.keys().any(|network| plan.networks.contains_key(network))
        {
            left.push(remark("networks", "shares no network with the gateway: add one of the gateway's".into()));
        }
        if is_front(service) && plan.network_mode() == format!("service:{name}") {
            let what = format!(
                "owns the gateway's network namespace: whatever it forwards to 127.0.0.1:{} is a local client to the gateway; let it forward \
                 to port {} of the container's own address, by TLS",
                plan.port, plan.listen
            );
            notes.push(remark("image", what));
        }
    }
    let gateways = |key: String, what: String| Remark { key: format!("services.{}.{key}", plan.gateway), what };
    for label in gateway.labels.keys() {
        if label.starts_with("traefik.http.services.") && label.ends_with(".loadbalancer.server.port") {
            let what = format!(
                "has Traefik speak plain HTTP to the gateway: set it to {}, loadbalancer.server.scheme to https, and \
                 loadbalancer.serverstransport to one whose rootCAs has loopgate's CA (docker/traefik.yaml)",
                plan.listen
            );
            left.push(gateways(format!("labels.{label}"), what));
        }
        if label.starts_with("caddy") && label.ends_with("reverse_proxy") {
            let what = format!(
                "has Caddy speak plain HTTP to the gateway: it should say \"{{{{upstreams https {}}}}}\", with loopgate's CA trusted",
                plan.listen
            );
            left.push(gateways(format!("labels.{label}"), what));
        }
    }
    for variable in ["VIRTUAL_PORT", "VIRTUAL_HOST"] {
        if gateway.environment.contains_key(variable) {
            let what = format!(
                "has nginx-proxy speak plain HTTP to the gateway: set VIRTUAL_PORT to {} and VIRTUAL_PROTO to https",
                plan.listen
            );
            left.push(gateways(format!("environment.{variable}"), what));
            break;
        }
    }
    for (name, value) in &gateway.environment {
        let other = name.ends_with("_BIND")
            && !BIND.contains(&name.as_str())
            && value.as_deref().is_some_and(|value| !value.is_empty());
        if other {
            notes.push(gateways(
                format!("environment.{name}"),
                "if it says where the gateway listens, it must be its loopback address".into(),
            ));
        }
    }
    if plan.namespace == Namespace::Pause {
        for port in gateway.ports.iter().filter(|port| port.target != plan.port || !port.is_tcp()) {
            notes.push(gateways(
                "ports".into(),
                format!("port {} stays published, but a gateway on loopback does not listen there", port.target),
            ));
        }
    }
    if plan.network_mode() == "host" {
        notes.push(gateways(
            "network_mode".into(),
            "is host: every process of this machine is a local client to the gateway".into(),
        ));
    }
    if plan.state.is_none() {
        let what =
            "has no mount with OpenClaw's state (~/.openclaw): on 2026.2 its sub-agents fail until `loopgate pair` has paired its device"
                .into();
        notes.push(gateways("volumes".into(), what));
    }
    if gateway.other.get("deploy").and_then(|deploy| deploy["replicas"].as_u64()).is_some_and(|replicas| replicas > 1) {
        left.push(gateways("deploy.replicas".into(), "must be 1: gateways do not share their state".into()));
    }
    plan.left.extend(left);
    plan.notes.extend(notes);
}

/// What a node host needs, which is a client in a container of its own.
fn node_host(plan: &Plan, name: &str) -> String {
    if plan.agents.iter().any(|agent| agent == name) {
        format!("runs a node host: let it dial --host {} --port {} --tls", plan.gateway, plan.listen)
    } else {
        format!("runs a node host in a container of its own: make it an agent by --agent {name}")
    }
}

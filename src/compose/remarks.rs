//! Remarks about a plan: what the user must change by hand, and what the user should know.

use super::changes::{BIND, Namespace, Plan, Remark};
use super::find::{self, is_reverse_proxy};
use super::model::{Project, Service};
use super::sign_in::SignIn;

/// Adds the remarks about the services of `project` to `plan`. `joined` are the services that share
/// the gateway's namespace, and `dialled` the names by which services dial the gateway.
pub fn add(plan: &mut Plan, project: &Project, gateway: &Service, joined: &[&str], dialled: &[String]) {
    let mut remarks = Remarks { plan, manual_changes: Vec::new(), notes: Vec::new() };
    for (name, service) in &project.services {
        let is_inside = *name == plan.gateway || joined.contains(&name.as_str());
        remarks.add_for_dialling(name, service, dialled, is_inside);
        remarks.add_for_service(name, service, gateway, is_inside);
    }
    remarks.add_for_proxy_labels(gateway);
    remarks.add_for_gateway(gateway);
    remarks.add_for_sign_in();
    let Remarks { manual_changes, notes, .. } = remarks;
    plan.manual_changes.extend(manual_changes);
    plan.notes.extend(notes);
}

/// The remarks about `plan` so far.
struct Remarks<'a> {
    plan: &'a Plan,
    /// What the user must change.
    manual_changes: Vec<Remark>,
    /// What the user should know.
    notes: Vec<Remark>,
}

impl Remarks<'_> {
    /// Adds a remark for each key with which a service dials the gateway in plain text.
    fn add_for_dialling(&mut self, name: &str, service: &Service, dialled: &[String], is_inside: bool) {
        let plan = self.plan;
        for key in find::keys_that_dial(service, dialled, plan.port) {
            if plan.agents.iter().any(|agent| agent == name) || key == "environment.OPENCLAW_GATEWAY_URL" && is_inside {
                continue;
            }
            let message = if is_inside {
                format!(
                    "dials the gateway by its network name, where only TLS is served now: let it dial 127.0.0.1:{}",
                    plan.port
                )
            } else {
                format!(
                    "dials the gateway in plain text: lead it to {} (wss for WebSockets), with loopgate's CA \
                     (`loopgate cert export`)",
                    self.loopgate_url()
                )
            };
            self.manual_changes.push(remark(name, &key, message));
        }
    }

    /// Adds remarks about a service that shares the gateway's loopback, or is a reverse proxy, a
    /// node host or an agent.
    fn add_for_service(&mut self, name: &str, service: &Service, gateway: &Service, is_inside: bool) {
        let plan = self.plan;
        let (is_gateway, is_owner) = (name == plan.gateway, plan.network_mode() == format!("service:{name}"));
        if is_inside && !is_gateway && !find::is_gateway_cli(service, gateway) {
            let message = "shares the gateway's loopback: whatever it forwards there is a local client to the gateway";
            self.notes.push(remark(name, "network_mode", message));
        } else if is_reverse_proxy(service) && !is_inside && !is_owner {
            let message = format!(
                "is a proxy: if it leads to the gateway, lead it to {} with loopgate's CA, give it a fixed address, \
                 and name that address in LOOPGATE_TRUSTED_PROXY",
                self.loopgate_url()
            );
            self.notes.push(remark(name, "image", message));
        }
        if !is_inside && find::runs_a_node_host(service) {
            self.manual_changes.push(remark(name, "command", node_host_remark(plan, name)));
        }
        if plan.agents.iter().any(|agent| agent == name)
            && plan.namespace == Namespace::Pause
            && !service.networks.keys().any(|network| plan.networks.contains_key(network))
        {
            let message = "shares no network with the gateway: add one of the gateway's";
            self.manual_changes.push(remark(name, "networks", message));
        }
        if is_reverse_proxy(service) && is_owner {
            let message = format!(
                "owns the gateway's network namespace: whatever it forwards to 127.0.0.1:{} is a local client to the \
                 gateway; let it forward to port {} of the container's own address, by TLS",
                plan.port, plan.listen
            );
            self.notes.push(remark(name, "image", message));
        }
    }

    /// Adds remarks about labels and variables of the gateway by which reverse proxies find it and
    /// speak plain HTTP to it.
    fn add_for_proxy_labels(&mut self, gateway: &Service) {
        let Plan { gateway: name, listen, .. } = self.plan;
        for label in gateway.labels.keys() {
            let key = format!("labels.{label}");
            if label.starts_with("traefik.http.services.") && label.ends_with(".loadbalancer.server.port") {
                let message = format!(
                    "has Traefik speak plain HTTP to the gateway: set it to {listen}, loadbalancer.server.scheme to \
                     https, and loadbalancer.serverstransport to one whose rootCAs has loopgate's CA \
                     (docker/traefik.yaml)"
                );
                self.manual_changes.push(remark(name, &key, message));
            }
            if label.starts_with("caddy") && label.ends_with("reverse_proxy") {
                let message = format!(
                    "has Caddy speak plain HTTP to the gateway: it should say \"{{{{upstreams https {listen}}}}}\", \
                     with loopgate's CA trusted"
                );
                self.manual_changes.push(remark(name, &key, message));
            }
        }
        let variables = ["VIRTUAL_PORT", "VIRTUAL_HOST"];
        if let Some(variable) = variables.into_iter().find(|variable| gateway.environment.contains_key(*variable)) {
            let message = format!(
                "has nginx-proxy speak plain HTTP to the gateway: set VIRTUAL_PORT to {listen} and VIRTUAL_PROTO to \
                 https"
            );
            self.manual_changes.push(remark(name, &format!("environment.{variable}"), message));
        }
    }

    /// Adds remarks about other keys of the gateway's service that don't fit a gateway on loopback.
    fn add_for_gateway(&mut self, gateway: &Service) {
        let plan = self.plan;
        let name = &plan.gateway;
        for (variable, value) in &gateway.environment {
            let is_set = value.as_deref().is_some_and(|value| !value.is_empty());
            if variable.ends_with("_BIND") && !BIND.contains(&variable.as_str()) && is_set {
                let message = "if it says where the gateway listens, it must be its loopback address";
                self.notes.push(remark(name, &format!("environment.{variable}"), message));
            }
        }
        if plan.namespace == Namespace::Pause {
            for port in gateway.ports.iter().filter(|port| port.target != plan.port || !port.is_tcp()) {
                let target = port.target;
                let mut message =
                    format!("port {target} stays published, but a gateway on loopback does not listen there");
                if port.is_tcp() {
                    message +=
                        &format!("; if something on its loopback does, add LOOPGATE_FORWARD: \"{target}\" to loopgate");
                }
                self.notes.push(remark(name, "ports", message));
            }
        }
        if plan.network_mode() == "host" {
            let message = "is host: every process of this machine is a local client to the gateway";
            self.notes.push(remark(name, "network_mode", message));
        }
        if plan.state.is_none() {
            let message = "has no mount with OpenClaw's state (~/.openclaw): on 2026.2 its sub-agents fail until \
                        `loopgate pair` has paired its device";
            self.notes.push(remark(name, "volumes", message));
        }
        let replicas = gateway.other.get("deploy").and_then(|deploy| deploy["replicas"].as_u64());
        if replicas.is_some_and(|replicas| replicas > 1) {
            self.manual_changes.push(remark(name, "deploy.replicas", "must be 1: gateways do not share their state"));
        }
    }

    /// Adds a remark about the options that loopgate needs if a proxy authenticates the gateway's
    /// users.
    fn add_for_sign_in(&mut self) {
        let Some(SignIn::TrustedProxy(header)) = &self.plan.sign_in else { return };
        let header = header.as_deref().unwrap_or("x-forwarded-user");
        let message = if header.eq_ignore_ascii_case("x-forwarded-user") {
            "is \"trusted-proxy\" with x-forwarded-user, which loopgate sets from a client certificate: give it \
             LOOPGATE_CLIENT_CA (docs/sign-in.md)"
                .to_owned()
        } else {
            format!(
                "is \"trusted-proxy\": give loopgate the proxy's own address in LOOPGATE_TRUSTED_PROXY, and \
                 LOOPGATE_IDENTITY_HEADER: {header} (docs/sign-in.md)"
            )
        };
        self.manual_changes.push(Remark { key: "openclaw.json: gateway.auth.mode".into(), message });
    }

    /// Returns the URL at which clients reach loopgate in place of the gateway.
    fn loopgate_url(&self) -> String {
        format!("https://{}:{}", self.plan.gateway, self.plan.listen)
    }
}

fn remark(service: &str, key: &str, message: impl Into<String>) -> Remark {
    Remark { key: format!("services.{service}.{key}"), message: message.into() }
}

/// Returns the remark for a node host, which is a client in another container than the gateway.
fn node_host_remark(plan: &Plan, name: &str) -> String {
    if plan.agents.iter().any(|agent| agent == name) {
        format!("runs a node host: let it dial --host {} --port {} --tls", plan.gateway, plan.listen)
    } else {
        format!("runs a node host in a container of its own: make it an agent by --agent {name}")
    }
}

//! Decides what has to change in a compose project so that loopgate is in front of its gateway. No
//! I/O.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::changes::{BIND, Namespace, Plan, Remark, State};
use super::command::{self, Rewritten};
use super::find;
use super::model::{Port, Project, Service};
use super::sign_in::SignIn;
use crate::config::{GATEWAY_PORT, SIDECAR_PORT};
use crate::secret::GATEWAY_TOKEN_VARIABLE;

/// The options of `loopgate compose`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The gateway's service. If `None`, it is found by its command or image.
    pub gateway_service: Option<String>,
    /// Services that share the gateway's network, in addition to those that are found to be its
    /// CLI.
    pub cli_services: Vec<String>,
    /// Services that become agents of their own.
    pub agents: Vec<String>,
    /// Adds discovery through a filtered socket of the engine, even without agents.
    pub full: bool,
    /// Lets loopgate join the gateway's own network namespace, which needs no `!reset`.
    pub in_gateway: bool,
    /// Names for the certificate.
    pub tls_names: Vec<String>,
    /// The gateway's user, as numbers.
    pub gateway_user: Option<String>,
    /// loopgate's image.
    pub image: Option<String>,
    /// How the gateway's users sign in, if its configuration file could be read.
    pub sign_in: Option<SignIn>,
}

/// Returns the path that the gateway's configuration file would have on this machine; `None` if it
/// is not in a bind mount of the gateway's service. The file may not exist.
pub fn openclaw_config(project: &Project, options: &Options) -> Option<PathBuf> {
    let (_, gateway) = find::gateway_service(project, options.gateway_service.as_deref()).ok()?;
    let state = find_state(gateway).filter(|state| state.kind == "bind")?;
    let below = state.directory.strip_prefix("/openclaw")?.trim_start_matches('/');
    Some(Path::new(&state.source).join(below).join("openclaw.json"))
}

/// The keys that only the owner of a network namespace may have. The engine refuses them in a
/// container that joins the namespace.
const OWNERS: [&str; 8] =
    ["hostname", "domainname", "mac_address", "extra_hosts", "dns", "dns_search", "dns_opt", "expose"];
/// The user of OpenClaw's own image, `node`.
const NODE: &str = "1000:1000";

/// Plans the changes to `project`.
///
/// # Errors
/// If the project can't be changed in this way. The remarks name the keys and the reasons.
pub fn plan(project: &Project, options: &Options) -> Result<Plan, Vec<Remark>> {
    let services = |message| vec![Remark { key: "services".into(), message }];
    let (name, gateway) = find::gateway_service(project, options.gateway_service.as_deref()).map_err(services)?;
    check_named_services(project, name, options)?;
    let mut problems = Vec::new();
    let port = gateway_port(gateway);
    let (namespace, legacy_bridge) = match choose_namespace(name, gateway, options) {
        Ok(namespace) => namespace,
        Err(message) => return Err(vec![Remark { key: format!("services.{name}.network_mode"), message }]),
    };
    let (entrypoint, command) = rewrite_commands(name, gateway, &mut problems);
    let user = gateway_user(name, gateway, options, &mut problems);
    refuse_unjoinable_keys(name, gateway, &namespace, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }

    let mut plan = Plan {
        project: project.name.clone(),
        gateway: name.into(),
        port,
        listen: if namespace == Namespace::Pause { SIDECAR_PORT } else { port },
        namespace,
        networks: Map::new(),
        legacy_bridge,
        ports: Vec::new(),
        moved: Map::new(),
        entrypoint,
        command,
        services: BTreeMap::new(),
        user,
        state: find_state(gateway),
        names: dialled_names(name, gateway),
        public_url: String::new(),
        agents: options.agents.clone(),
        full: options.full || !options.agents.is_empty(),
        image: options
            .image
            .clone()
            .unwrap_or_else(|| format!("${{LOOPGATE_IMAGE:-ghcr.io/loopgate/loopgate:{}}}", env!("CARGO_PKG_VERSION"))),
        profiles: gateway.profiles.clone(),
        cli: cli_command(gateway),
        sign_in: options.sign_in.clone(),
        manual_changes: Vec::new(),
        notes: Vec::new(),
    };
    let dialled = plan.names.clone();
    for name in &options.tls_names {
        if !plan.names.contains(name) {
            plan.names.push(name.clone());
        }
    }
    plan.public_url = public_url(&plan, gateway, options);
    let joined = services_in_namespace(project, &plan, gateway, options);
    plan.join_namespace(name, gateway);
    for service in &joined {
        plan.join_namespace(service, &project.services[*service]);
    }
    plan.set_gateways_environment(gateway);
    plan.move_keys_to_pause(name, gateway);
    for service in &joined {
        plan.move_keys_to_pause(service, &project.services[*service]);
    }
    super::remarks::add(&mut plan, project, gateway, &joined, &dialled);
    Ok(plan)
}

/// Checks that the services that `options` names exist, and are not the gateway's, `gateway`.
fn check_named_services(project: &Project, gateway: &str, options: &Options) -> Result<(), Vec<Remark>> {
    let is_other = |wanted: &str| wanted != gateway && project.services.contains_key(wanted);
    match options.cli_services.iter().chain(&options.agents).find(|wanted| !is_other(wanted)) {
        Some(wanted) => {
            let (key, message) =
                (format!("services.{wanted}"), "is not a service of this project, or is the gateway's own".into());
            Err(vec![Remark { key, message }])
        }
        None => Ok(()),
    }
}

/// Returns the gateway's port: that of its command line, else that of its environment, else the
/// default.
fn gateway_port(gateway: &Service) -> u16 {
    let variable = || gateway.variable("OPENCLAW_GATEWAY_PORT").and_then(|port| port.parse().ok());
    command::last_port(gateway.command_words()).or_else(variable).unwrap_or(GATEWAY_PORT)
}

/// Returns the network namespace of loopgate and the gateway, and whether the pause container is on
/// Docker's default bridge.
fn choose_namespace(name: &str, gateway: &Service, options: &Options) -> Result<(Namespace, bool), String> {
    match gateway.network_mode.as_deref().unwrap_or("default") {
        "none" => Err("is none: nothing could reach loopgate".into()),
        "host" => Ok((Namespace::Joined("host".into()), false)),
        mode if mode.starts_with("service:") || mode.starts_with("container:") => {
            Ok((Namespace::Joined(mode.into()), false))
        }
        _ if options.in_gateway => Ok((Namespace::Joined(format!("service:{name}")), false)),
        mode => Ok((Namespace::Pause, mode == "bridge")),
    }
}

/// Returns the entrypoint and the command that bind the gateway to loopback, each `None` if it
/// stays as it is. Adds a problem for each that has to change but can't be rewritten.
fn rewrite_commands(
    name: &str,
    gateway: &Service,
    problems: &mut Vec<Remark>,
) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let mut rewrite = |key: &str, words: Option<&Vec<String>>| match words.map(|words| command::rewrite(words)) {
        Some(Rewritten::Changed(words)) => Some(words),
        Some(Rewritten::Refused(message)) => {
            problems.push(Remark { key: format!("services.{name}.{key}"), message });
            None
        }
        Some(Rewritten::Same) | None => None,
    };
    (rewrite("entrypoint", gateway.entrypoint.as_ref()), rewrite("command", gateway.command.as_ref()))
}

/// Returns the gateway's user as UID:GID. If the user is a name other than `node` or `root`, adds a
/// problem and returns an empty text, because loopgate's image has no user of that name.
fn gateway_user(name: &str, gateway: &Service, options: &Options, problems: &mut Vec<Remark>) -> String {
    let user_and_group = |user: &str| if user.contains(':') { user.to_owned() } else { format!("{user}:{user}") };
    if let Some(user) = &options.gateway_user {
        return user_and_group(user);
    }
    let ids = gateway.variable("PUID").zip(gateway.variable("PGID"));
    match (gateway.user.as_deref().unwrap_or_default(), ids) {
        ("", Some((user, group))) => format!("{user}:{group}"),
        ("" | "node" | "node:node", _) => NODE.into(),
        ("root" | "root:root", _) => "0:0".into(),
        (user, _) if user.chars().all(|c| c.is_ascii_digit() || c == ':') => user_and_group(user),
        _ => {
            let message =
                "is a name, which loopgate's image does not know: give its numbers by --gateway-user UID:GID".into();
            problems.push(Remark { key: format!("services.{name}.user"), message });
            String::new()
        }
    }
}

/// Adds a problem for each key that the engine refuses in a container that joins another's
/// namespace, and that can't be moved to the owner.
fn refuse_unjoinable_keys(name: &str, gateway: &Service, namespace: &Namespace, problems: &mut Vec<Remark>) {
    if *namespace != Namespace::Pause {
        return;
    }
    for key in ["links", "external_links"] {
        if gateway.other.get(key).and_then(Value::as_array).is_some_and(|links| !links.is_empty()) {
            let message = "can't be kept in a shared network namespace: use a network and its aliases instead".into();
            problems.push(Remark { key: format!("services.{name}.{key}"), message });
        }
    }
}

/// Returns the gateway's state directory: the one that its environment variables name, or else a
/// mount on a path that ends with `/.openclaw`.
fn find_state(gateway: &Service) -> Option<State> {
    let home = gateway.variable("OPENCLAW_HOME").or_else(|| gateway.variable("HOME")).unwrap_or("/home/node");
    let stated = gateway
        .variable("OPENCLAW_STATE_DIR")
        .map_or_else(|| format!("{}/.openclaw", home.trim_end_matches('/')), Into::into);
    let directory = stated.trim_end_matches('/');
    let mounts = || {
        let kinds = ["bind", "volume"];
        let bound = gateway.volumes.iter().filter(move |mount| kinds.contains(&mount.kind.as_str()));
        bound.filter_map(|mount| Some((mount, mount.source.clone()?, mount.target.trim_end_matches('/'))))
    };
    let below = |target: &str| directory.strip_prefix(target).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let containing_mount =
        mounts().filter(|(_, _, target)| below(target).is_some()).max_by_key(|(_, _, target)| target.len());
    // The image may set HOME, so the path can't be known from the environment in the project.
    let (mount, source, target) =
        containing_mount.or_else(|| mounts().find(|(_, _, target)| target.ends_with("/.openclaw")))?;
    Some(State {
        kind: mount.kind.clone(),
        source,
        directory: format!("/openclaw{}", below(target).unwrap_or_default()),
    })
}

/// Returns the names by which other services dial the gateway.
fn dialled_names(name: &str, gateway: &Service) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    let aliases = gateway
        .networks
        .values()
        .filter_map(|network| network["aliases"].as_array())
        .flatten()
        .filter_map(Value::as_str);
    for other in gateway.container_name.as_deref().into_iter().chain(aliases) {
        if !names.iter().any(|name| name == other) {
            names.push(other.into());
        }
    }
    names
}

/// Returns the URL at which phones reach loopgate. If the gateway publishes no port, a reverse
/// proxy is assumed at the default port of HTTPS.
fn public_url(plan: &Plan, gateway: &Service, options: &Options) -> String {
    let host = options.tls_names.iter().find(|name| !name.contains('*')).map_or("HOST", String::as_str);
    let published = gateway.ports.iter().find(|port| port.target == plan.port && port.is_tcp());
    let port = match published {
        Some(port) => port.published.as_deref().filter(|port| port.parse::<u16>().is_ok()).unwrap_or("PORT").to_owned(),
        None if plan.network_mode() == "host" => plan.listen.to_string(),
        None => "443".to_owned(),
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    if port == "443" { format!("https://{host}") } else { format!("https://{host}:{port}") }
}

/// Returns the words that run OpenClaw's CLI: those before `gateway` in the gateway's command, else
/// those of OpenClaw's own image.
fn cli_command(gateway: &Service) -> Vec<String> {
    let words = gateway.command.as_deref().and_then(command::words_before_gateway);
    words.map_or_else(|| vec!["node".into(), "openclaw.mjs".into()], <[String]>::to_vec)
}

/// Returns the services that share the gateway's namespace after the change.
fn services_in_namespace<'a>(project: &'a Project, plan: &Plan, gateway: &Service, options: &Options) -> Vec<&'a str> {
    let inside = format!("service:{}", plan.gateway);
    let joins = |name: &str, service: &Service| {
        if name == plan.gateway || options.agents.iter().any(|agent| agent == name) {
            return false;
        }
        options.cli_services.iter().any(|cli| cli == name)
            || service.network_mode.as_deref() == Some(&inside)
            || find::is_gateway_cli(service, gateway)
    };
    project.services.iter().filter(|(name, service)| joins(name, service)).map(|(name, _)| name.as_str()).collect()
}

impl Plan {
    /// Makes the service join the network namespace. If a pause container owns the namespace, also
    /// removes the keys that only the owner may have, and changes the restart policy
    /// `unless-stopped` to `always`. Otherwise does nothing for the gateway, and for a service that
    /// has a `network_mode`.
    fn join_namespace(&mut self, name: &str, service: &Service) {
        let is_gateway = name == self.gateway;
        let stays = self.namespace != Namespace::Pause;
        if stays && (is_gateway || service.network_mode.is_some()) {
            return;
        }
        let changes = self.services.entry(name.into()).or_default();
        changes.joins = true;
        // Without !reset, an override can't remove the networks of a service. A service without
        // networks needs none removed.
        if !stays {
            if service.network_mode.is_none() {
                changes.reset.push("networks");
            }
            if !service.ports.is_empty() {
                changes.reset.push("ports");
            }
            changes.reset.extend(OWNERS.iter().filter(|key| service.other.contains_key(**key)));
            // After a crash of the engine, only a container with the policy `always` is started
            // again.
            changes.restart = (service.restart.as_deref() == Some("unless-stopped")).then_some("always");
        }
    }

    /// Sets the variables with which the gateway listens on loopback, and empties the variable of a
    /// token that it must not have.
    fn set_gateways_environment(&mut self, gateway: &Service) {
        let bind = BIND
            .iter()
            .filter(|name| gateway.environment.get(**name).is_some_and(|value| value.as_deref() != Some("loopback")));
        let set: BTreeMap<String, String> = bind.map(|name| ((*name).to_owned(), "loopback".to_owned())).collect();
        if !set.is_empty() {
            self.services.entry(self.gateway.clone()).or_default().environment.extend(set);
        }
        // In this mode the gateway refuses to start with a token.
        if matches!(self.sign_in, Some(SignIn::TrustedProxy(_)))
            && gateway.environment.contains_key(GATEWAY_TOKEN_VARIABLE)
        {
            let environment = &mut self.services.entry(self.gateway.clone()).or_default().environment;
            environment.insert(GATEWAY_TOKEN_VARIABLE.into(), String::new());
        }
    }

    /// Moves the keys that only the owner of a namespace may have to the pause container. Also
    /// makes a service that has `OPENCLAW_GATEWAY_URL` and is not the gateway connect to loopback.
    /// Does nothing if there is no pause container.
    fn move_keys_to_pause(&mut self, name: &str, service: &Service) {
        if self.namespace != Namespace::Pause {
            return;
        }
        let is_gateway = name == self.gateway;
        let ports: Vec<String> = service.ports.iter().map(|port| self.published_port(is_gateway, port)).collect();
        self.ports.extend(ports);
        for (network, settings) in &service.networks {
            let settings = settings.as_object().cloned().unwrap_or_default();
            let own_settings = self.networks.entry(network).or_insert_with(|| json!({}));
            if is_gateway {
                *own_settings = Value::Object(settings);
                own_settings["aliases"] = json!(dialled_names(name, service));
            }
        }
        for key in OWNERS.iter().filter(|key| **key != "expose") {
            if let Some(value) = service.other.get(*key).filter(|_| is_gateway || !self.moved.contains_key(*key)) {
                self.moved.insert((*key).into(), value.clone());
            }
        }
        let url = format!("ws://127.0.0.1:{}", self.port);
        if !is_gateway && service.variable("OPENCLAW_GATEWAY_URL").is_some_and(|now| now != url) {
            self.services.entry(name.into()).or_default().environment.insert("OPENCLAW_GATEWAY_URL".into(), url);
        }
    }

    /// Returns a published port in compose's short form. The gateway's own port leads to
    /// loopgate's.
    fn published_port(&self, is_gateway: bool, port: &Port) -> String {
        let is_gateways_port = is_gateway && port.target == self.port && port.is_tcp();
        port.short_form(if is_gateways_port { self.listen } else { port.target })
    }
}

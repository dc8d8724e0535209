//! Renders a plan as a compose override file, and as text.

use serde_json::{Value, json};

use super::changes::{Changes, Namespace, Plan, Remark, State};
use super::sign_in::SignIn;
use super::yaml::{self, Node};
use crate::config::{GATEWAY_PORT, SIDECAR_PORT};
use crate::secret::GATEWAY_TOKEN_VARIABLE;

/// The configuration of the filter in front of the engine's socket.
const FILTER: &str = include_str!("../../docker/socket-filter/haproxy-unix.cfg");
/// loopgate's group in its image, which the filter's socket belongs to.
const GROUP: &str = "65532";
/// loopgate's state directory. It is in a volume that any user can write to.
const STATE: &str = "/state/loopgate";
/// The command that stops the gateway. If the gateway (2026.9) is killed after the usual 10 s, it
/// leaves a lock in its state, and another container with that state can't start for 5 minutes.
const STOP: &str = "docker compose stop --timeout 60";

/// Returns the text of the override file.
pub fn override_file(plan: &Plan) -> String {
    let mut services = Vec::new();
    if plan.namespace == Namespace::Pause {
        services.push(("netns".to_owned(), netns_service(plan)));
    }
    for (name, changes) in &plan.services {
        services.push((name.clone(), changed_service(plan, name, changes)));
    }
    if !plan.services.contains_key(&plan.gateway) && (plan.entrypoint.is_some() || plan.command.is_some()) {
        services.push((plan.gateway.clone(), changed_service(plan, &plan.gateway, &Changes::default())));
    }
    for agent in &plan.agents {
        services.push((agent.clone(), agent_service(plan)));
    }
    if let Some(state) = &plan.state {
        services.push(("openclaw-identity".to_owned(), identity_service(plan, state)));
    }
    services.push(("loopgate".to_owned(), loopgate_service(plan)));
    let mut volumes = vec![("loopgate-state", Node::Map(vec![]))];
    if plan.full {
        services.push(("socket-filter".to_owned(), filter_service(plan)));
        services.push(("loopgate-ca".to_owned(), ca_service(plan)));
        volumes.extend([("docker-filter", Node::Map(vec![])), ("loopgate-ca", Node::Map(vec![]))]);
    }
    yaml::document(
        &header_lines(plan),
        &[("services".into(), Node::Map(services)), ("volumes".into(), Node::map(volumes))],
    )
}

/// Returns the lines of two commands. The first line is the command that stops the gateway; all
/// later lines are the command that sets the gateway's configuration.
pub fn command_lines(plan: &Plan) -> Vec<String> {
    let set = |message| format!("{} config set gateway.{message}", cli_in_new_container(plan));
    let mut settings = vec!["bind loopback", "tls.enabled false", "trustedProxies \"[\\\"127.0.0.2\\\"]\" --json"];
    if is_trusted_proxy(plan) {
        settings.push("auth.trustedProxy.allowLoopback true");
    }
    let script = settings.into_iter().map(set).collect::<Vec<_>>().join("; \\\n  ").replace('\'', "'\\''");
    let run = format!("{} sh -ec '{script}'", run_once_command(plan));
    std::iter::once(STOP.to_owned()).chain(run.lines().map(Into::into)).collect()
}

/// Returns the command that sets the gateway's URL for the setup codes of phones.
pub fn public_url_command(plan: &Plan) -> String {
    let url = shell_quoted(&plan.public_url);
    format!(
        "{} {} config set plugins.entries.device-pair.config.publicUrl {url}",
        run_once_command(plan),
        cli_in_new_container(plan)
    )
}

/// Returns whether a proxy authenticates the gateway's users, so that the gateway takes no token.
fn is_trusted_proxy(plan: &Plan) -> bool {
    matches!(plan.sign_in, Some(SignIn::TrustedProxy(_)))
}

/// Returns the words that run a command in a new container of the gateway's service.
fn run_once_command(plan: &Plan) -> String {
    let dependencies = if plan.network_mode().starts_with("service:") && plan.namespace != Namespace::Pause {
        ""
    } else {
        "--no-deps "
    };
    format!("docker compose run --rm {dependencies}{}", shell_quoted(&plan.gateway))
}

/// Returns the words that run OpenClaw's CLI in a new container of the gateway's service.
fn cli_in_new_container(plan: &Plan) -> String {
    plan.cli.iter().map(|word| shell_quoted(word)).collect::<Vec<_>>().join(" ")
}

/// Returns the lines of the comment at the top of the file.
fn header_lines(plan: &Plan) -> Vec<String> {
    let project = plan.project.as_deref().map(|project| format!(" of the project {project}")).unwrap_or_default();
    let mut lines = vec![format!(
        "loopgate in front of the gateway in the service {}{project}, made by `loopgate compose`.",
        plan.gateway
    )];
    lines.push(match &plan.namespace {
        Namespace::Pause => {
            "netns owns the network namespace and the ports, so that neither the gateway nor loopgate is cut off when \
             the other restarts."
                .into()
        }
        Namespace::Joined(mode) => format!(
            "loopgate joins the network namespace that the gateway is in ({mode}): ports stay there, and when its \
             owner restarts, loopgate must too."
        ),
    });
    let version_note = if plan.namespace == Namespace::Pause { " It needs Compose 2.24 or later." } else { "" };
    lines.push(format!("Generate it again when the compose file changes.{version_note}"));
    lines.push(String::new());
    lines.push(
        "The gateway's own configuration, once; while it is stopped, since it restarts itself at each change:".into(),
    );
    lines.push(String::new());
    lines.extend(command_lines(plan).into_iter().map(|command| format!("  {command}")));
    lines.push(String::new());
    lines.push("From then on (COMPOSE_FILE=docker-compose.yml:compose.loopgate.yaml in .env spares the -f):".into());
    lines.push(String::new());
    lines.push("  docker compose -f docker-compose.yml -f compose.loopgate.yaml up -d".into());
    lines.push(String::new());
    lines.push("For phones (`openclaw qr`), the URL that they use, while the gateway is stopped:".into());
    lines.push(String::new());
    lines.push(format!("  {}", public_url_command(plan)));
    if !plan.manual_changes.is_empty() {
        lines.push(String::new());
        lines.push("Change by hand:".into());
        lines.extend(plan.manual_changes.iter().map(|remark| format!("  {}", remark_line(remark))));
    }
    if !plan.notes.is_empty() {
        lines.push(String::new());
        lines.push("Notes:".into());
        lines.extend(plan.notes.iter().map(|remark| format!("  {}", remark_line(remark))));
    }
    lines
}

/// Returns a remark as one line.
pub fn remark_line(remark: &Remark) -> String {
    format!("{}: {}", remark.key, remark.message)
}

/// Returns the service `netns`, which owns the network namespace and publishes the ports.
fn netns_service(plan: &Plan) -> Node {
    let mut map = vec![
        ("image".to_owned(), Node::text(&plan.image)),
        ("command".into(), Node::texts(["pause"])),
        ("healthcheck".into(), Node::map([("disable", Node::bool(true))])),
    ];
    map.extend(hardening_entries());
    map.extend(profiles_entry(plan));
    if !plan.ports.is_empty() {
        map.push(("ports".into(), Node::texts(&plan.ports)));
    }
    if plan.legacy_bridge {
        map.push(("network_mode".into(), Node::text("bridge")));
    } else if !plan.networks.is_empty() {
        let networks = Node::from(&Value::Object(plan.networks.clone()));
        map.push((
            "networks".into(),
            networks.with_comment([
                "The names by which others find the gateway, which a container in another's namespace can't have.",
            ]),
        ));
    }
    if let Some(name) = host_name(plan) {
        let note = "Always the same: the gateway compares host names to see whether a lock in its state is that of a \
                    dead process.";
        map.push(("hostname".into(), Node::text(name).with_comment([note])));
    }
    map.extend(plan.moved.iter().map(|(key, value)| (key.clone(), Node::from(value))));
    Node::Map(map)
}

/// Returns a host name for the pause container, if the gateway's service has none that moves to it.
/// Without one, each new container would get another host name.
fn host_name(plan: &Plan) -> Option<&str> {
    let is_label = plan.gateway.len() < 64
        && plan.gateway.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !plan.gateway.starts_with('-');
    (is_label && !plan.moved.contains_key("hostname")).then_some(plan.gateway.as_str())
}

/// Returns the entries that override those of the user's service `name`.
fn changed_service(plan: &Plan, name: &str, changes: &Changes) -> Node {
    let mut map = Vec::new();
    if changes.joins {
        map.push(("network_mode".to_owned(), Node::text(plan.network_mode())));
    }
    map.extend(changes.reset.iter().map(|key| ((*key).to_owned(), Node::Reset)));
    if name == plan.gateway {
        for (key, words) in [("entrypoint", &plan.entrypoint), ("command", &plan.command)] {
            if let Some(words) = words {
                map.push((key.into(), Node::texts(words)));
            }
        }
    }
    if !changes.environment.is_empty() {
        map.push((
            "environment".into(),
            Node::map(changes.environment.iter().map(|(name, value)| (name, Node::text(value)))),
        ));
    }
    if let Some(policy) = changes.restart {
        map.push(("restart".into(), Node::text(policy)));
    }
    Node::Map(map)
}

/// Returns the service `loopgate`, which runs the sidecar.
fn loopgate_service(plan: &Plan) -> Node {
    let mut environment =
        vec![("LOOPGATE_DOCKER", Node::text(if plan.full { "unix:///run/docker-filter/docker.sock" } else { "off" }))];
    if plan.port != GATEWAY_PORT {
        environment.push(("LOOPGATE_GATEWAY", Node::text(format!("127.0.0.1:{}", plan.port))));
    }
    if plan.listen != SIDECAR_PORT {
        environment.push(("LOOPGATE_LISTEN", Node::text(format!("bridge:{}", plan.listen))));
    }
    let names = Node::text(plan.names.join(","));
    environment.push((
        "LOOPGATE_TLS_NAME",
        names.with_comment(["Each name and address that clients dial; localhost is in the certificate anyway."]),
    ));
    environment.push(("LOOPGATE_STATE_DIR", Node::text(STATE)));
    if let Some(state) = &plan.state {
        environment.push(("LOOPGATE_GATEWAY_STATE_DIR", Node::text(&state.directory)));
        if !is_trusted_proxy(plan) {
            environment.push((GATEWAY_TOKEN_VARIABLE, token_variable(plan)));
        }
    }
    let mut map = vec![
        ("image".to_owned(), Node::text(&plan.image)),
        ("command".into(), Node::texts(["run"])),
        (
            "user".into(),
            Node::text(&plan.user).with_comment(["The gateway's user, which can read the gateway's state."]),
        ),
    ];
    if plan.full {
        map.push(("group_add".into(), Node::texts([GROUP])));
    }
    map.push(("network_mode".into(), Node::text(plan.network_mode())));
    let before = [
        (plan.namespace == Namespace::Pause, "netns"),
        (plan.state.is_some(), "openclaw-identity"),
        (plan.full, "socket-filter"),
    ];
    let before: Vec<&str> = before.into_iter().filter(|(is, _)| *is).map(|(_, service)| service).collect();
    if !before.is_empty() {
        map.push(("depends_on".into(), Node::texts(before)));
    }
    map.extend(hardening_entries());
    map.extend(profiles_entry(plan));
    map.push(("environment".into(), Node::map(environment)));
    let mut volumes = vec![Node::text("loopgate-state:/state")];
    volumes.extend(plan.state.as_ref().map(|state| state_mount(state, true)));
    if plan.full {
        volumes.push(Node::text("docker-filter:/run/docker-filter:ro"));
    }
    map.push(("volumes".into(), Node::List(volumes)));
    Node::Map(map)
}

/// Returns the value of the variable with the gateway's token, which loopgate needs for pairing.
fn token_variable(plan: &Plan) -> Node {
    let mut note = vec![
        "Pairs the gateway's own device, which 2026.2 needs. Empty: the token is read from the gateway's \
         openclaw.json.",
    ];
    if plan.sign_in.is_none() {
        note.push(
            "In auth.mode \"trusted-proxy\" the gateway refuses to start with a token: if that is its mode, make this \
             file with --openclaw-config.",
        );
    }
    Node::text("${OPENCLAW_GATEWAY_TOKEN:-}").with_comment(note)
}

/// Returns the service that creates the gateway's device identity if there is none, because
/// loopgate itself can't write to the gateway's state. The service has no network, and runs once.
fn identity_service(plan: &Plan, state: &State) -> Node {
    let file = format!("{}/identity/device.json", state.directory);
    let image = Node::text(&plan.image);
    let note = "Creates the gateway's device identity where there is none yet, and ends: loopgate, which pairs it, \
                can't write there.";
    let mut map = vec![
        ("image".to_owned(), image.with_comment([note])),
        ("command".into(), Node::texts(["pair", "--create-only", "--identity", file.as_str()])),
        ("user".into(), Node::text(&plan.user)),
        ("network_mode".into(), Node::text("none")),
        ("healthcheck".into(), Node::map([("disable", Node::bool(true))])),
    ];
    map.extend(hardening_entries().into_iter().filter(|(key, _)| key != "restart"));
    map.extend(profiles_entry(plan));
    map.push(("volumes".into(), Node::List(vec![state_mount(state, false)])));
    Node::Map(map)
}

/// Returns the mount of the gateway's state: in the short form, or in the long one if the path has
/// a colon, which the short form can't have.
fn state_mount(state: &State, read_only: bool) -> Node {
    if !state.source.contains(':') {
        return Node::text(format!("{}:/openclaw{}", state.source, if read_only { ":ro" } else { "" }));
    }
    let (kind, source) = (Node::text(&state.kind), Node::text(&state.source));
    Node::map([
        ("type", kind),
        ("source", source),
        ("target", Node::text("/openclaw")),
        ("read_only", Node::bool(read_only)),
    ])
}

/// Returns the keys that an agent's service gets: its label, the CA, and the gateway's URL.
fn agent_service(plan: &Plan) -> Node {
    Node::map([
        ("labels", Node::map([("loopgate.agent", Node::text("address"))])),
        ("cap_drop", Node::texts(["NET_RAW"]).with_comment(["Without it this container can't pose as another one."])),
        (
            "environment",
            Node::map([
                ("NODE_EXTRA_CA_CERTS", Node::text("/ca/ca.pem")),
                ("OPENCLAW_GATEWAY_URL", Node::text(format!("wss://{}:{}", plan.gateway, plan.listen))),
            ]),
        ),
        (
            "depends_on",
            Node::map([("loopgate-ca", Node::map([("condition", Node::text("service_completed_successfully"))]))]),
        ),
        ("volumes", Node::texts(["loopgate-ca:/ca:ro"])),
    ])
}

/// Returns the service of the filter in front of the engine's socket. The filter's configuration is
/// in an environment variable, because compose can't copy an inline `configs` entry into a
/// read-only container.
fn filter_service(plan: &Plan) -> Node {
    let mut map = vec![
        ("image".to_owned(), Node::text("${HAPROXY_IMAGE:-haproxy:3.2}")),
        (
            "command".into(),
            Node::texts([
                "sh",
                "-ec",
                "printf '%s' \"$$FILTER\" >/tmp/haproxy.cfg; exec haproxy -W -db -f /tmp/haproxy.cfg",
            ]),
        ),
        ("user".into(), Node::text(format!("0:{GROUP}"))),
        ("network_mode".into(), Node::text("none")),
        ("stop_signal".into(), Node::text("SIGTERM")),
    ];
    map.extend(hardening_entries());
    map.extend(profiles_entry(plan));
    map.extend([
        ("tmpfs".to_owned(), Node::texts(["/tmp:mode=1777"])),
        ("environment".into(), Node::map([("FILTER", Node::text(FILTER.replace('$', "$$")))])),
        (
            "volumes".into(),
            Node::texts([
                "${DOCKER_SOCKET:-/var/run/docker.sock}:/var/run/docker.sock:ro",
                "docker-filter:/run/docker-filter",
            ]),
        ),
    ]);
    Node::Map(map)
}

/// Returns the service that copies the CA's certificate, without the key, to the volume that agents
/// mount.
fn ca_service(plan: &Plan) -> Node {
    let mut map = vec![
        ("image".to_owned(), Node::text(&plan.image)),
        ("command".into(), Node::texts(["cert", "export", "--out", "/state/ca.pem"])),
        ("user".into(), Node::text(&plan.user)),
        ("network_mode".into(), Node::text("none")),
        ("healthcheck".into(), Node::map([("disable", Node::bool(true))])),
        ("depends_on".into(), Node::map([("loopgate", Node::map([("condition", Node::text("service_healthy"))]))])),
    ];
    map.extend(hardening_entries().into_iter().filter(|(key, _)| key != "restart"));
    map.extend(profiles_entry(plan));
    map.extend([
        ("restart".to_owned(), Node::text("on-failure")),
        ("environment".into(), Node::map([("LOOPGATE_STATE_DIR", Node::text("/run/loopgate-state/loopgate"))])),
        ("volumes".into(), Node::texts(["loopgate-state:/run/loopgate-state:ro", "loopgate-ca:/state"])),
    ]);
    Node::Map(map)
}

/// Returns the keys that every service of loopgate has: a read-only file system, no capabilities,
/// and the restart policy `always`.
fn hardening_entries() -> Vec<(String, Node)> {
    vec![
        ("read_only".into(), Node::bool(true)),
        ("cap_drop".into(), Node::texts(["ALL"])),
        ("security_opt".into(), Node::texts(["no-new-privileges:true"])),
        ("restart".into(), Node::text("always")),
    ]
}

/// Returns the key `profiles`, if the gateway's service has profiles.
fn profiles_entry(plan: &Plan) -> Option<(String, Node)> {
    (!plan.profiles.is_empty()).then(|| ("profiles".to_owned(), Node::texts(&plan.profiles)))
}

/// Returns the changes that the override makes, one line each.
pub fn change_lines(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.namespace == Namespace::Pause {
        let networks: Vec<&str> = plan.networks.keys().map(String::as_str).collect();
        lines.push(format!(
            "services.netns: new, owns the network namespace; networks: {}; ports: {}",
            comma_separated(&networks),
            comma_separated(&plan.ports)
        ));
        lines.extend(plan.moved.keys().map(|key| format!("services.netns.{key}: taken over")));
        lines.extend(host_name(plan).map(|name| format!("services.netns.hostname: {name}")));
    }
    for (name, changes) in &plan.services {
        if changes.joins {
            lines.push(format!("services.{name}.network_mode: {}", plan.network_mode()));
        }
        lines.extend(changes.reset.iter().map(|key| format!("services.{name}.{key}: taken out")));
        lines.extend(
            changes
                .environment
                .iter()
                .map(|(variable, value)| format!("services.{name}.environment.{variable}: {value}")),
        );
        lines.extend(changes.restart.map(|policy| format!("services.{name}.restart: {policy}")));
    }
    for (key, words) in [("entrypoint", &plan.entrypoint), ("command", &plan.command)] {
        lines.extend(words.as_ref().map(|words| format!("services.{}.{key}: {}", plan.gateway, json!(words))));
    }
    lines.extend(plan.agents.iter().map(|agent| format!("services.{agent}.labels.loopgate.agent: address")));
    if plan.state.is_some() {
        lines.push("services.openclaw-identity: new, runs once, without a network".into());
    }
    let engine = if plan.full { "the engine's filtered socket" } else { "no access to Docker" };
    let at = format!("bridge:{} to 127.0.0.1:{}", plan.listen, plan.port);
    lines.push(format!(
        "services.loopgate: new, user {}, network_mode {}, {at}, {engine}",
        plan.user,
        plan.network_mode()
    ));
    lines
}

fn comma_separated<S: AsRef<str>>(items: &[S]) -> String {
    if items.is_empty() { "none".into() } else { items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ") }
}

/// Quotes a word for a shell, if it needs quotes.
fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '=');
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

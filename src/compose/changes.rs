//! The changes to a compose project, and remarks about them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::sign_in::SignIn;

/// The environment variables by which the gateway's images choose the address to listen on.
pub(super) const BIND: [&str; 3] = ["OPENCLAW_GATEWAY_BIND", "CLAWDBOT_GATEWAY_BIND", "MOLTBOT_GATEWAY_BIND"];

/// A key of the project, and a remark about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The key, such as `services.caddy.environment.UPSTREAM`.
    pub key: String,
    /// The reason for the remark, and what to do.
    pub message: String,
}

/// The network namespace of loopgate and the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// The namespace of a container that only waits, and owns the ports.
    Pause,
    /// The namespace that the gateway is in already, as its `network_mode` states it. Ports are not
    /// moved.
    Joined(String),
}

/// The changes to a project. [`super::render`] formats them as an override.
#[derive(Debug)]
pub struct Plan {
    /// The project's name.
    pub project: Option<String>,
    /// The gateway's service.
    pub gateway: String,
    /// The gateway's port on loopback.
    pub port: u16,
    /// The network namespace that loopgate runs in.
    pub namespace: Namespace,
    /// The port that loopgate listens on.
    pub listen: u16,
    /// The networks that the pause container takes over from the gateway, with their aliases.
    pub networks: Map<String, Value>,
    /// Whether the pause container is on Docker's default bridge instead of networks.
    pub legacy_bridge: bool,
    /// The published ports that the pause container takes over, in the short form.
    pub ports: Vec<String>,
    /// The other keys that the pause container takes over, such as the host name and the resolver.
    pub moved: Map<String, Value>,
    /// The gateway's new entrypoint; `None` if it does not change.
    pub entrypoint: Option<Vec<String>>,
    /// The gateway's new command; `None` if it does not change.
    pub command: Option<Vec<String>>,
    /// The services that change, by name.
    pub services: BTreeMap<String, Changes>,
    /// The user of loopgate's container, which is the gateway's.
    pub user: String,
    /// The gateway's state directory, if a mount for it was found.
    pub state: Option<State>,
    /// Names for the certificate.
    pub names: Vec<String>,
    /// The URL at which phones and browsers reach loopgate, with `HOST` and `PORT` where they are
    /// not known.
    pub public_url: String,
    /// Services that become agents.
    pub agents: Vec<String>,
    /// Whether loopgate discovers agents through Docker, by a filtered socket.
    pub full: bool,
    /// loopgate's image.
    pub image: String,
    /// Profiles of the gateway, which are loopgate's as well.
    pub profiles: Vec<String>,
    /// The words that run OpenClaw's CLI in the gateway's service.
    pub cli: Vec<String>,
    /// How the gateway's users sign in, if its configuration could be read.
    pub sign_in: Option<SignIn>,
    /// The remarks about changes that the user must make.
    pub manual_changes: Vec<Remark>,
    /// The remarks that the user should know, and that need no change.
    pub notes: Vec<Remark>,
}

/// The gateway's state directory.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    /// `bind` or `volume`.
    pub kind: String,
    /// The host's path or the volume's name, which loopgate mounts on /openclaw.
    pub source: String,
    /// The path of the state directory below /openclaw.
    pub directory: String,
}

/// The changes to one service of the project.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether the service joins the namespace of loopgate and the gateway.
    pub joins: bool,
    /// The keys to remove.
    pub reset: Vec<&'static str>,
    /// The environment variables to set.
    pub environment: BTreeMap<String, String>,
    /// The new restart policy; `None` if it does not change.
    pub restart: Option<&'static str>,
}

impl Plan {
    /// Returns the `network_mode` of the services that share the namespace.
    pub fn network_mode(&self) -> String {
        match &self.namespace {
            Namespace::Pause => "service:netns".into(),
            Namespace::Joined(mode) => mode.clone(),
        }
    }
}

//! The changes to a compose project, and remarks about them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::sign_in::SignIn;

/// The variables that tell images of the gateway where to listen.
pub(super) const BIND: [&str; 3] = ["OPENCLAW_GATEWAY_BIND", "CLAWDBOT_GATEWAY_BIND", "MOLTBOT_GATEWAY_BIND"];

/// A key of the project, and a remark about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The key, such as `services.caddy.environment.UPSTREAM`.
    pub key: String,
    /// The reason, and what to do.
    pub what: String,
}

/// The network namespace of loopgate and the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// The namespace of a container that only waits, and owns the ports.
    Pause,
    /// The namespace that the gateway is in already, as its `network_mode` states it. Ports are not moved.
    Joined(String),
}

/// What changes. [`super::render`] writes it as an override.
#[derive(Debug)]
pub struct Plan {
    /// The project's name.
    pub project: Option<String>,
    /// The gateway's service.
    pub gateway: String,
    /// The gateway's port on loopback.
    pub port: u16,
    /// Where loopgate runs.
    pub namespace: Namespace,
    /// The port that loopgate listens on.
    pub listen: u16,
    /// What the pause container takes over: networks, with aliases.
    pub networks: Map<String, Value>,
    /// `network_mode` of the pause container, where it is on no networks.
    pub legacy_bridge: bool,
    /// What the pause container takes over: ports, in the short form.
    pub ports: Vec<String>,
    /// What the pause container takes over: host name, resolver and the like.
    pub moved: Map<String, Value>,
    /// The gateway's new entrypoint and command.
    pub entrypoint: Option<Vec<String>>,
    /// See `entrypoint`.
    pub command: Option<Vec<String>>,
    /// Each service that changes, with environment variables to set and keys to take out.
    pub services: BTreeMap<String, Changes>,
    /// loopgate's user: the gateway's.
    pub user: String,
    /// The gateway's state directory, where it is mounted.
    pub state: Option<State>,
    /// Names for the certificate.
    pub names: Vec<String>,
    /// The URL at which phones and browsers reach loopgate, with `HOST` and `PORT` where they are not known.
    pub public_url: String,
    /// Services that become agents.
    pub agents: Vec<String>,
    /// Whether loopgate asks the engine.
    pub full: bool,
    /// loopgate's image.
    pub image: String,
    /// Profiles of the gateway, which are loopgate's as well.
    pub profiles: Vec<String>,
    /// The words that run OpenClaw's CLI in the gateway's service.
    pub cli: Vec<String>,
    /// How the gateway's users sign in, where that is known.
    pub sign_in: Option<SignIn>,
    /// What worked before and will not by itself.
    pub left: Vec<Remark>,
    /// What is worth knowing.
    pub notes: Vec<Remark>,
}

/// The gateway's state directory.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    /// `bind` or `volume`.
    pub kind: String,
    /// The host's path or the volume's name, which loopgate mounts on /openclaw.
    pub source: String,
    /// Where the state is in there.
    pub directory: String,
}

/// What changes in a service that is there already.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether it joins the namespace.
    pub joins: bool,
    /// Keys to take out.
    pub reset: Vec<&'static str>,
    /// Environment variables to set.
    pub environment: BTreeMap<String, String>,
    /// A new restart policy.
    pub restart: Option<&'static str>,
}

impl Plan {
    /// The `network_mode` of services that share the namespace.
    pub fn network_mode(&self) -> String {
        match &self.namespace {
            Namespace::Pause => "service:netns".into(),
            Namespace::Joined(mode) => mode.clone(),
        }
    }
}

//! Agents and scope caps that discovery finds.

/// A running container, or pod, that the operator labelled as an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The container's full id, or the pod's uid.
    pub id: String,
    /// The container's name without Docker's leading slash, or the pod's name.
    pub name: String,
    /// The container's compose project or Swarm stack, or the pod's namespace.
    pub project: Option<String>,
    /// The container's compose or Swarm service, or the pod's service account.
    pub service: Option<String>,
    /// How the agent must prove itself.
    pub kind: AgentKind,
    /// The scope cap in the label `loopgate.scopes`; `None` without that label.
    pub scopes: Option<Vec<String>>,
}

/// How an agent must prove itself to get the agent lane; the value of the label `loopgate.agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentKind {
    /// By a client certificate that loopgate issued to this very container, and by its source
    /// address.
    Attested,
    /// By its source address alone.
    Address,
}

/// The scope cap of one address, from the labels `loopgate.scopes` of the containers or pods that
/// have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeCap {
    /// The scopes that all of these labels allow.
    pub scopes: Vec<String>,
    /// Whether an image, and not the operator, may have set a label. Then the cap can't replace
    /// `agents.scopes`.
    pub maybe_from_image: bool,
}

//! An agent, as discovery knows it.

/// A running container, or pod, that the operator labelled as an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The full container id; a pod's uid.
    pub id: String,
    /// Its name, without Docker's leading slash.
    pub name: String,
    /// Its compose project, if any; a pod's namespace.
    pub project: Option<String>,
    /// Its compose service, if any; a pod's service account.
    pub service: Option<String>,
    /// What a connection of it needs to be on the agent lane.
    pub kind: AgentKind,
    /// Its own scope cap (`loopgate.scopes`).
    pub scopes: Option<Vec<String>>,
}

/// What a connection of an agent needs to be on the agent lane; the value of the label `loopgate.agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentKind {
    /// A client certificate that loopgate issued to that very container, and its address.
    Attested,
    /// Its source address alone.
    Address,
}

/// The scope cap of everything at one address (`loopgate.scopes`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeCap {
    /// The scopes that every label there allows.
    pub scopes: Vec<String>,
    /// Whether an image, and not the operator, may have set it, so that it can't replace the common cap.
    pub maybe_from_image: bool,
}

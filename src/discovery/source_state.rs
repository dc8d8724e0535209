//! The state of the source of agents: the Docker Engine, or the Kubernetes API server.

use tokio::time::Instant;

/// Whether the source of agents can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// Discovery of agents is off.
    #[default]
    Off,
    /// The source has not answered yet.
    Connecting {
        /// Why the last attempt failed; `None` before the end of the first one.
        error: Option<String>,
    },
    /// The source answers, and reports changes.
    Live {
        /// The time at which this state began.
        since: Instant,
    },
    /// The source was live before, and can't be reached now.
    Disconnected {
        /// The time at which the source was lost.
        since: Instant,
        /// Why the last attempt failed.
        error: String,
    },
}

impl SourceState {
    /// Returns the state in one word, as `status` names it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connecting { .. } => "connecting",
            Self::Live { .. } => "live",
            Self::Disconnected { .. } => "disconnected",
        }
    }

    /// Returns why the source can't be reached; `None` if it is off, live, or not tried yet.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Off | Self::Live { .. } => None,
            Self::Connecting { error } => error.as_deref(),
            Self::Disconnected { error, .. } => Some(error),
        }
    }

    /// Returns whether the source is live.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live { .. })
    }
}

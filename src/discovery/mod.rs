//! Discovery: which containers or pods are agents, which container owns this network namespace, and
//! what its addresses are.
//!
//! [`start`] publishes these as one [`View`], and a new one whenever something has changed.
//! [`crate::lane`] decides lanes from the view; this module does not know of lanes.

mod agent;
pub mod agent_labels;
mod body;
mod changes;
pub mod docker;
mod follower;
mod interface;
mod interface_watcher;
pub mod kubernetes;
mod orphan;
mod owner;
mod publisher;
mod routes;
mod source_state;
mod text;
mod view;
mod why_not_agent;

pub use agent::{Agent, AgentKind, ScopeCap};
pub use interface::Interface;
pub use orphan::{EXIT_ORPHANED, NamespaceState};
pub use owner::{Owner, is_in_user_namespace};
pub use publisher::{docker_engine, start, wait_until_ready};
pub use source_state::SourceState;
pub use view::{ADDRESS_GRACE, ATTESTED_GRACE, View};
pub use why_not_agent::WhyNotAgent;

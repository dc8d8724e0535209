//! Why a container or pod that the operator named as an agent is not one.

use std::fmt;
use std::net::IpAddr;

use super::agent_labels;

/// Why a container or pod that the operator named as an agent, by a label or in `agents.services`,
/// is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNotAgent {
    /// The value of the container's label is unknown.
    UnknownLabelValue(String),
    /// The image has the same label, with this value, so the operator may not have set it.
    ImageLabel(String),
    /// The container's labels can't be compared with those of its image, for this reason.
    ImageLabelsUnreadable(String),
    /// The value of the pod's label is unknown.
    UnknownPodLabelValue(String),
    /// The pod is on its node's network, so every program on that node has its address.
    HostNetwork,
    /// The owner of this namespace is unknown, and so are the networks that this namespace is on.
    OwnerUnknown,
    /// The container or pod shares the network namespace of this process.
    OwnNamespace,
    /// The container is not in the owner's compose project, and `docker.any_project` is off.
    OtherProject {
        /// The container's project.
        project: Option<String>,
        /// The owner's project.
        owner_project: Option<String>,
    },
    /// The container shares the network namespace of one that is not running.
    NamespaceOwnerNotRunning,
    /// The container has no address on a network of this namespace.
    NoSharedNetwork,
    /// Another container or pod, a bridge or a node has the same address.
    AmbiguousAddress(IpAddr),
    /// The container shares its network namespace with this agent, so their connections can't be
    /// distinguished.
    SharesNamespace(String),
}

impl fmt::Display for WhyNotAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name_of_project = |project: &Option<String>| {
            project.as_ref().map_or_else(|| "no project".to_owned(), |name| format!("project {name:?}"))
        };
        let unreadable = |f: &mut fmt::Formatter<'_>, label: &str, value: &str| {
            write!(f, "its label {label}={value:?} is not understood: use true, attested, address or false")
        };
        match self {
            Self::UnknownLabelValue(value) => unreadable(f, agent_labels::AGENT, value),
            Self::UnknownPodLabelValue(value) => unreadable(f, agent_labels::POD_AGENT, value),
            Self::ImageLabel(value) => write!(
                f,
                "its label {}={value} is that of its image, which does not count: name its service in agents.services",
                agent_labels::AGENT
            ),
            Self::ImageLabelsUnreadable(error) => {
                write!(f, "its labels can't be compared with those of its image: {error}")
            }
            Self::HostNetwork => f.write_str(
                "it is on its node's network (hostNetwork), so every program on that node has its address: give it a \
                 certificate (agents.uris)",
            ),
            Self::OwnerUnknown => {
                f.write_str("the container that owns this network namespace is not known: name it by --container")
            }
            Self::OwnNamespace => f.write_str("it shares this network namespace, so --own-addresses decides its lane"),
            Self::OtherProject { project: None, owner_project: None } => f.write_str(
                "neither it nor the gateway is in a compose project or a stack: set docker.any_project to accept it",
            ),
            Self::OtherProject { project, owner_project } => {
                write!(
                    f,
                    "it is in {}, the gateway in {}: set docker.any_project to accept it",
                    name_of_project(project),
                    name_of_project(owner_project)
                )
            }
            Self::NamespaceOwnerNotRunning => {
                f.write_str("the container whose network namespace it shares is not running")
            }
            Self::NoSharedNetwork => f.write_str("it has no address on a network that this namespace is on"),
            Self::AmbiguousAddress(ip) => write!(
                f,
                "its address {ip} identifies no single client: another container or pod, a bridge or a node has it too"
            ),
            Self::SharesNamespace(agent) => {
                write!(f, "it shares its network namespace with {agent}, which is the agent there")
            }
        }
    }
}

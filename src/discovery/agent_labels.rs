//! The labels by which an operator names agents.

use super::agent::AgentKind;

/// The label that makes a container an agent. Its value says how the container must prove itself.
pub const AGENT: &str = "loopgate.agent";
/// The label that makes a pod an agent. By convention a pod's label has a domain.
pub const POD_AGENT: &str = "loopgate.dev/agent";
/// The scope cap of a pod. It is an annotation, since the value of a pod's label can't contain a
/// comma.
pub const POD_SCOPES: &str = "loopgate.dev/scopes";
/// The scope cap of a container: the allowed scopes, separated by commas.
pub const SCOPES: &str = "loopgate.scopes";
/// The label that Compose sets to the project's name.
pub const PROJECT: &str = "com.docker.compose.project";
/// The label that Compose sets to the service's name.
pub const SERVICE: &str = "com.docker.compose.service";
/// Labels that Compose, and podman-compose, set on every container that they create, and on no
/// image.
pub const SET_BY_COMPOSE: [&str; 2] = ["com.docker.compose.config-hash", "com.docker.compose.container-number"];
/// The label that Swarm sets to the stack's name.
pub const STACK: &str = "com.docker.stack.namespace";
/// The label that Swarm sets to the service's name: `STACK_SERVICE` in a stack.
pub const SWARM_SERVICE: &str = "com.docker.swarm.service.name";

/// Parses the value of [`AGENT`] or [`POD_AGENT`]; `None` if the value is `false`.
///
/// # Errors
/// The value is unknown. It can't be guessed whether the operator meant the stricter kind, so the
/// label makes no agent.
pub fn parse_kind(value: &str) -> Result<Option<AgentKind>, UnknownValue> {
    match value {
        "true" | "attested" => Ok(Some(AgentKind::Attested)),
        "address" => Ok(Some(AgentKind::Address)),
        "false" => Ok(None),
        _ => Err(UnknownValue),
    }
}

/// A label's value that loopgate does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownValue;

/// Parses the value of [`SCOPES`] or [`POD_SCOPES`]. An empty value is a cap that allows no scope.
pub fn parse_scopes(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_makes_an_agent_of_a_kind_or_none_and_other_values_are_errors() {
        for (value, expected) in [
            ("true", Ok(Some(AgentKind::Attested))),
            ("attested", Ok(Some(AgentKind::Attested))),
            ("address", Ok(Some(AgentKind::Address))),
            ("false", Ok(None)),
            ("", Err(UnknownValue)),
            ("maybe", Err(UnknownValue)),
            ("Address", Err(UnknownValue)),
            ("address ", Err(UnknownValue)),
        ] {
            assert_eq!(parse_kind(value), expected, "{value:?}");
        }
    }

    #[test]
    fn scopes_are_separated_by_commas() {
        assert_eq!(parse_scopes(" operator.read , operator.write,"), ["operator.read", "operator.write"]);
        assert!(parse_scopes(" ").is_empty());
    }
}

//! The labels by which an operator names agents.

use super::agent::AgentKind;

/// Makes a container an agent; its value is how the container must prove that it is one.
pub const AGENT: &str = "loopgate.agent";
/// The same on a pod, where a label has a domain.
pub const POD_AGENT: &str = "loopgate.dev/agent";
/// The same as [`SCOPES`] on a pod: an annotation, since a label holds no comma.
pub const POD_SCOPES: &str = "loopgate.dev/scopes";
/// The most that an agent may do: scopes, separated by commas.
pub const SCOPES: &str = "loopgate.scopes";
/// Compose's own: the project.
pub const PROJECT: &str = "com.docker.compose.project";
/// Compose's own: the service.
pub const SERVICE: &str = "com.docker.compose.service";
/// Labels that Compose, and podman-compose, set on every container that they create, and on no image.
pub const SET_BY_COMPOSE: [&str; 2] = ["com.docker.compose.config-hash", "com.docker.compose.container-number"];
/// Swarm's own: the stack.
pub const STACK: &str = "com.docker.stack.namespace";
/// Swarm's own: the service, `STACK_SERVICE` in a stack.
pub const SWARM_SERVICE: &str = "com.docker.swarm.service.name";

/// Returns the kind of agent that the value of [`AGENT`] makes; `None` if it is `false`.
///
/// # Errors
/// The value is unknown. Its author may have meant the stricter or the looser kind, so it counts as none.
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

/// Returns the scopes in the value of [`SCOPES`]. An empty value is a cap that allows no scope.
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

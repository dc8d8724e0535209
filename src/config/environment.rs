//! Reads options from environment variables. The name of a variable is `LOOPGATE_` and the name of
//! the flag.

use std::collections::BTreeSet;
use std::ffi::OsString;

use super::key::KEYS;
use super::layer::{Layer, Origin, RawValue};
use super::option::{Form, VARIABLE_PREFIX};

/// Reads the options in `variables`. Skips the variables in `known`, which belong to other
/// commands. A variable with loopgate's prefix that is neither is a problem of the layer.
///
/// An empty variable counts as unset: compose files pass a variable that the host does not have as
/// an empty one, and as an empty list it would override `external.deny` of the file.
pub fn read(variables: impl IntoIterator<Item = (OsString, OsString)>, known: &BTreeSet<String>) -> Layer {
    let mut layer = Layer::default();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(VARIABLE_PREFIX)) else { continue };
        let key = KEYS.iter().find(|key| key.env_variable() == name);
        if key.is_none() && (known.contains(name) || is_service_link_variable(name)) {
            continue;
        }
        let Ok(value) = value.into_string() else {
            layer.add_problem(name, "is not UTF-8");
            continue;
        };
        match key {
            Some(_) if value.is_empty() => {}
            Some(key) => {
                let raw = |text: &str| RawValue { text: text.trim().into(), origin: Origin::Variable };
                match key.form {
                    Form::List(_) => layer.set(key, value.split(',').map(raw)),
                    _ => layer.set(key, [raw(&value)]),
                }
            }
            None => layer.add_problem(name, "there is no such option"),
        }
    }
    layer
}

/// Returns whether `name` is a variable that Kubernetes, or a link of Docker, sets in every
/// container for a service whose name begins with `loopgate`.
///
/// Such variables are called `{SVC}_SERVICE_HOST`, `{SVC}_SERVICE_PORT[_NAME]` or
/// `{SVC}_PORT[_80_TCP[_PROTO|_PORT|_ADDR]]`. No option has a name that ends like that.
fn is_service_link_variable(name: &str) -> bool {
    let Some((_, after)) =
        name.rsplit_once("_PORT_").filter(|(_, after)| after.starts_with(|c: char| c.is_ascii_digit()))
    else {
        return name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.ends_with("_PORT");
    };
    let mut parts = after.split('_').skip(1);
    matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
}

#[cfg(test)]
mod tests {
    use super::super::key::key_by_flag;
    use super::*;

    fn layer(variables: &[(&str, &str)]) -> Layer {
        read(
            variables.iter().map(|(name, value)| (name.into(), value.into())),
            &BTreeSet::from(["LOOPGATE_CONFIG".to_owned()]),
        )
    }

    fn texts(layer: &Layer, flag: &str) -> Vec<String> {
        layer.get(key_by_flag(flag)).iter().map(|value| value.text.clone()).collect()
    }

    #[test]
    fn a_variable_sets_the_option_of_its_flag_and_lists_are_split_at_commas() {
        let layer = layer(&[
            ("LOOPGATE_GATEWAY", "127.0.0.1:1"),
            ("LOOPGATE_ALLOW", "10.0.0.0/8, fd00::/8"),
            ("PATH", "/bin"),
            ("LOOPGATE_CONFIG", "x.toml"),
        ]);
        assert_eq!(texts(&layer, "gateway"), ["127.0.0.1:1"]);
        assert_eq!(texts(&layer, "allow"), ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(layer.problems, []);
    }

    #[test]
    fn an_empty_variable_is_unset() {
        let merged = layer(&[("LOOPGATE_GATEWAY", "")]).merged_over(Layer::defaults());
        assert_eq!(texts(&merged, "gateway"), ["127.0.0.1:18789"]);
    }

    #[test]
    fn an_unknown_variable_is_a_problem_unless_kubernetes_made_it() {
        for name in [
            "LOOPGATE_SERVICE_HOST",
            "LOOPGATE_SERVICE_PORT",
            "LOOPGATE_SERVICE_PORT_HTTPS",
            "LOOPGATE_PORT",
            "LOOPGATE_PORT_443_TCP",
            "LOOPGATE_PORT_443_TCP_ADDR",
            "LOOPGATE_ADMIN_PORT_9180_TCP_PROTO",
        ] {
            assert_eq!(layer(&[(name, "tcp://10.96.0.1:443")]).problems, [], "{name}");
        }
        for name in ["LOOPGATE_GATEWAYS", "LOOPGATE_", "LOOPGATE_PORT_X"] {
            assert_eq!(layer(&[(name, "1")]).problems[0].to_string(), format!("{name}: there is no such option"));
        }
    }
}

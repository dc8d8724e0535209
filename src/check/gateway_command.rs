//! Findings about the command line and the environment of the gateway's container, which override
//! its configuration file.

use super::catalogue as kind;
use super::finding::{Remedy, Report};

/// A container that shares this network namespace.
#[derive(Clone, Debug, Default)]
pub struct NamespaceContainer {
    /// The container's name.
    pub name: String,
    /// The container's program and its arguments.
    pub words: Vec<String>,
    /// The environment variables that make the gateway listen elsewhere, as `NAME=VALUE`.
    pub variables: Vec<String>,
}

/// Adds a finding if the command line or environment of a container makes a gateway listen on an
/// address that is not loopback, or end the program that listens on its port, such as loopgate. The
/// finding names each such setting.
pub fn judge(containers: &[NamespaceContainer], report: &mut Report) {
    for container in containers {
        for setting in overriding_settings(container) {
            let description = format!("the container {} has {setting}", container.name);
            report.add_finding(&kind::GATEWAY_COMMAND, description, command_remedy());
        }
    }
}

/// Adds the finding about a gateway that is exposed although `bind` in its configuration file is
/// `loopback`.
pub fn judge_file(bind: Option<&str>, is_exposed: bool, report: &mut Report) {
    if is_exposed && bind == Some("loopback") {
        let description =
            "gateway.bind in openclaw.json is \"loopback\", but the gateway answers on an address of the bridge";
        report.add_finding(&kind::GATEWAY_COMMAND, description, command_remedy());
    }
}

fn command_remedy() -> Remedy {
    Remedy::in_words(
        "take --bind and --force out of the gateway's command line, and OPENCLAW_GATEWAY_BIND out of its environment \
         (or set both to loopback): they override openclaw.json. If there are none, restart the gateway, which reads \
         gateway.bind at its start",
    )
}

/// Returns the arguments and variables of `container` that override the gateway's configuration, in
/// words.
fn overriding_settings(container: &NamespaceContainer) -> Vec<String> {
    // The script of `sh -c` is one argument, so each argument is split into words.
    let words: Vec<&str> = container.words.iter().flat_map(|word| word.split_whitespace()).collect();
    if !words.contains(&"gateway") {
        return Vec::new();
    }
    let separate_values =
        words.iter().zip(words.iter().skip(1)).filter(|(word, _)| **word == "--bind").map(|(_, bind)| *bind);
    let bind_values = separate_values.chain(words.iter().filter_map(|word| word.strip_prefix("--bind=")));
    let mut settings: Vec<String> = bind_values
        .filter(|bind| *bind != "loopback")
        .map(|bind| format!("--bind {bind} in its command line"))
        .collect();
    if words.contains(&"--force") {
        settings.push("--force in its command line".into());
    }
    let variables =
        container.variables.iter().filter(|variable| !matches!(variable.split_once('='), Some((_, "" | "loopback"))));
    settings.extend(variables.map(|variable| format!("{variable} in its environment")));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overrides_the_configuration_is_found() {
        let official = ["docker-entrypoint.sh", "node", "dist/index.js", "gateway", "--bind", "lan", "--port", "18789"];
        let table: [(&[&str], &[&str], &[&str]); 9] = [
            (&official, &[], &["--bind lan in its command line"]),
            (
                &["node", "openclaw.mjs", "gateway", "run", "--bind=custom", "--force"],
                &[],
                &["--bind custom in", "--force in"],
            ),
            (&["sh", "-c", "exec openclaw gateway --bind lan"], &[], &["--bind lan in"]),
            (&["openclaw", "gateway", "--bind", "loopback"], &[], &[]),
            (
                &["openclaw", "gateway"],
                &["OPENCLAW_GATEWAY_BIND=lan"],
                &["OPENCLAW_GATEWAY_BIND=lan in its environment"],
            ),
            (&["openclaw", "gateway"], &["OPENCLAW_GATEWAY_BIND=loopback", "CLAWDBOT_GATEWAY_BIND="], &[]),
            // Neither of these commands runs a gateway.
            (&["/loopgate", "run", "--gateway", "127.0.0.1:1"], &["OPENCLAW_GATEWAY_BIND=lan"], &[]),
            (&["nginx", "--bind", "lan"], &[], &[]),
            (&[], &[], &[]),
        ];
        for (words, variables, expected) in table {
            let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
            let container =
                NamespaceContainer { name: "claw".into(), words: texts(words), variables: texts(variables) };
            let found = overriding_settings(&container);
            assert_eq!(found.len(), expected.len(), "{words:?} {variables:?}: {found:?}");
            assert!(found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected)), "{found:?}");
            let mut report = Report::default();
            judge(&[container], &mut report);
            assert_eq!(report.ids().is_empty(), expected.is_empty(), "{words:?}");
        }
    }

    #[test]
    fn a_gateway_that_does_not_listen_as_its_file_says_is_found() {
        for (bind, is_exposed, expected) in [
            (Some("loopback"), true, &["gateway-command"][..]),
            (Some("loopback"), false, &[]),
            (Some("lan"), true, &[]),
            (None, true, &[]),
        ] {
            let mut report = Report::default();
            judge_file(bind, is_exposed, &mut report);
            assert_eq!(report.ids(), expected, "{bind:?} {is_exposed}");
        }
    }
}

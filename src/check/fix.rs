//! Remedies that set a key of the gateway's `openclaw.json`, as commands of OpenClaw's CLI.

use std::fmt;

use serde_json::Value;

use super::finding::{Remedy, Report};

/// The keys that `--fix` sets. Each of their values makes the gateway trust less, or lets loopgate
/// reach the gateway. Other keys need a decision of the operator, such as which pages may connect.
const KEYS_SAFE_TO_SET: [&str; 6] = [
    "gateway.bind",
    "gateway.tls.enabled",
    "gateway.trustedProxies",
    "gateway.controlUi.dangerouslyDisableDeviceAuth",
    "gateway.controlUi.dangerouslyAllowHostHeaderOriginFallback",
    "gateway.controlUi.allowInsecureAuth",
];

/// A command that sets a key of the gateway's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The dotted path of the key.
    pub key: &'static str,
    /// The value to set.
    pub value: Value,
}

impl Setting {
    /// Returns the arguments with which `openclaw` sets the key.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["config", "set", self.key].map(Into::into).into();
        match &self.value {
            Value::String(text) => arguments.push(text.clone()),
            value if value.is_array() || value.is_object() => arguments.extend([value.to_string(), "--json".into()]),
            value => arguments.push(value.to_string()),
        }
        arguments
    }

    /// Returns whether `--fix` may set the key without a decision of the operator.
    pub fn is_safe_to_fix(&self) -> bool {
        KEYS_SAFE_TO_SET.contains(&self.key)
    }
}

/// Formats the command for a shell, with quotes where they are needed.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("openclaw")?;
        for word in self.arguments() {
            let plain = !word.is_empty()
                && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':'));
            if plain { write!(f, " {word}")? } else { write!(f, " '{}'", word.replace('\'', "'\\''"))? }
        }
        Ok(())
    }
}

/// Returns the settings of all remedies in `report` that set a key of `openclaw.json`, each once.
/// Some of them may not be safe to fix.
pub fn settings_to_fix(report: &Report) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for finding in &report.findings {
        if let Remedy::OpenClaw { key, value } = &finding.remedy {
            let setting = Setting { key, value: value.clone() };
            if !settings.contains(&setting) {
                settings.push(setting);
            }
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::catalogue as kind;

    #[test]
    fn each_key_is_one_command_that_a_shell_can_run() {
        let mut report = Report::default();
        let mut find = |kind, key, value| report.add_finding(kind, "seen", Remedy::OpenClaw { key, value });
        find(&kind::GATEWAY_EXPOSED, "gateway.bind", json!("loopback"));
        find(&kind::PROXIES_MISSING, "gateway.trustedProxies", json!(["127.0.0.2"]));
        find(&kind::PROXIES_WIDE, "gateway.trustedProxies", json!(["127.0.0.2"]));
        find(&kind::GATEWAY_TLS, "gateway.tls.enabled", json!(false));
        find(&kind::GATEWAY_AUTH, "gateway.auth.mode", json!("token"));
        find(&kind::ORIGIN, "gateway.controlUi.allowedOrigins", json!(["https://it's.example"]));
        report.add_finding(&kind::DOCKER_WIDE, "seen", Remedy::in_words("put a filter"));
        let table = [
            ("openclaw config set gateway.bind loopback", true),
            ("openclaw config set gateway.trustedProxies '[\"127.0.0.2\"]' --json", true),
            ("openclaw config set gateway.tls.enabled false", true),
            ("openclaw config set gateway.auth.mode token", false),
            ("openclaw config set gateway.controlUi.allowedOrigins '[\"https://it'\\''s.example\"]' --json", false),
        ];
        let settings = settings_to_fix(&report);
        assert_eq!(settings.len(), table.len());
        for (setting, (text, safe)) in settings.iter().zip(table) {
            assert_eq!((setting.to_string().as_str(), setting.is_safe_to_fix()), (text, safe));
        }
    }
}

//! Formats the effective configuration as a TOML file, with the source of each value in a comment.

use super::key::KEYS;
use super::layer::{Layer, Origin, RawRule, RawValue};
use super::option::{Form, Key};

/// Returns the text of a file that sets the same values as `layer`. Options without a value are
/// left out.
pub fn render_settings(layer: &Layer) -> String {
    let mut out = String::new();
    let mut table = "";
    for key in KEYS.iter() {
        let values = layer.get(key);
        if values.is_empty() && !key.is_list() {
            continue;
        }
        if key.table() != table {
            table = key.table();
            out.push_str(&format!("\n[{table}]\n"));
        }
        let origin = values.first().map_or_else(|| "default".to_owned(), |value| format_origin(&value.origin, key));
        out.push_str(&format!("{} = {} # {origin}\n", key.name(), toml_value(key, values)));
    }
    for rule in layer.paths.iter().flatten() {
        out.push_str(&format_path_rule(rule));
    }
    out
}

fn format_origin(origin: &Origin, key: &Key) -> String {
    match origin {
        Origin::Default => "default".into(),
        Origin::File(file, line) => format!("{}:{line}", file.display()),
        origin => origin.place_of(key),
    }
}

/// Returns the values of an option as a TOML value.
pub(super) fn toml_value(key: &Key, values: &[RawValue]) -> String {
    let first = || values.first().map(|value| value.text.clone()).unwrap_or_default();
    match key.form {
        Form::Switch => super::parse::switch(&first()).unwrap_or_default().to_string(),
        Form::Number => first(),
        Form::List(_) => toml_array(values.iter().map(|value| &value.text)),
        Form::Duration | Form::Choice(_) | Form::Text(_) => toml_string(&first()),
    }
}

/// Returns `rule` as TOML.
fn format_path_rule(rule: &RawRule) -> String {
    let mut out = String::from("\n[[external.paths]]\n");
    for (name, prefix) in [("allow", &rule.allow), ("deny", &rule.deny)] {
        if let Some(prefix) = prefix {
            out.push_str(&format!("{name} = {}\n", toml_string(prefix)));
        }
    }
    if rule.upgrade {
        out.push_str("upgrade = true\n");
    }
    if let Some(port) = rule.port {
        out.push_str(&format!("port = {port}\n"));
    }
    if !rule.methods.is_empty() {
        out.push_str(&format!("methods = {}\n", toml_array(&rule.methods)));
    }
    out
}

fn toml_array<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    format!("[{}]", texts.into_iter().map(|text| toml_string(text)).collect::<Vec<_>>().join(", "))
}

fn toml_string(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file::parse;
    use super::super::key::key_by_flag;
    use super::super::validate::to_config;
    use super::*;

    #[test]
    fn the_shown_configuration_is_a_file_with_the_same_values() {
        let file = "[gateway]\ntoken_file = \"a \\\"b\\\"\"\n[listen]\non = [\"eth0:1\", \"eth1:1\"]\n\
                    [[external.paths]]\ndeny = \"/x\"\n";
        let mut flags = Layer::default();
        flags.set(key_by_flag("idle-timeout"), [RawValue { text: "7".into(), origin: Origin::Flag }]);
        let layer = flags.merged_over(parse(file, Path::new("a.toml"))).merged_over(Layer::defaults());
        let shown = render_settings(&layer);
        let again = parse(&shown, Path::new("shown.toml")).merged_over(Layer::defaults());
        assert_eq!(to_config(&again).unwrap(), to_config(&layer).unwrap());
        for line in [
            "idle_timeout = \"7\" # --idle-timeout",
            "on = [\"eth0:1\", \"eth1:1\"] # a.toml:4",
            "trust_domain = \"loopgate.local\" # default",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} is not in {shown}");
        }
    }
}

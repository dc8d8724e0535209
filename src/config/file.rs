//! Reads the TOML configuration file, and remembers the line of each value.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::key::{KEYS, PATHS};
use super::layer::{Layer, Origin, RawRule, RawValue};
use super::option::{Form, Key};

/// Reads the configuration from `file`. If the file can't be read, the layer has a problem at
/// `place`: the flag or the variable that named the file.
pub fn read(file: &Path, place: &str) -> Layer {
    match std::fs::read_to_string(file) {
        Ok(text) => parse(&text, file),
        Err(error) => {
            let mut layer = Layer::default();
            layer.add_problem(place, format!("{}: {error}", file.display()));
            layer
        }
    }
}

/// Parses `text` as the content of a file called `name`. Problems are reported in the layer.
pub fn parse(text: &str, name: &Path) -> Layer {
    // Windows editors begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = FileReader { text, name: name.into(), layer: Layer::default() };
    let (root, mut errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        reader.read_table("", root.get_ref());
    }
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    errors.sort_by_key(start);
    // One syntax error often causes others after it, so only the first is reported.
    if let Some(error) = errors.first() {
        let offset = start(error);
        reader
            .layer
            .add_problem(format!("{}:{}", name.display(), reader.line_at(offset)), to_one_line(error.message()));
    }
    reader.layer
}

/// Replaces the line breaks of a message from the `toml` crate by spaces.
fn to_one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A rule of `[[external.paths]]`, as written in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    allow: Option<String>,
    deny: Option<String>,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    upgrade: bool,
    port: Option<u16>,
}

struct FileReader<'a> {
    text: &'a str,
    name: Arc<Path>,
    layer: Layer,
}

impl FileReader<'_> {
    fn line_at(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count()
    }

    fn origin_at(&self, offset: usize) -> Origin {
        Origin::File(self.name.clone(), self.line_at(offset))
    }

    fn add_problem(&mut self, offset: usize, path: &str, message: impl Into<String>) {
        let place = format!("{}:{}: {path}", self.name.display(), self.line_at(offset));
        self.layer.add_problem(place, message);
    }

    /// Reads the options in `table`, whose path is `prefix`, and those in its tables.
    fn read_table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let (offset, name) = (name.span().start, name.get_ref());
            let path = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
            if path == PATHS {
                self.read_path_rules(value);
            } else if let Some(key) = KEYS.iter().find(|key| key.path == path) {
                self.read_option(key, value);
            } else if prefix.is_empty() && KEYS.iter().any(|key| key.table() == path) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.read_table(&path, inner),
                    other => self.add_problem(offset, &path, format!("must be a table, not {}", type_name(other))),
                }
            } else {
                self.add_problem(offset, &path, "there is no such key");
            }
        }
    }

    /// Reads the value of `key`, or the values if it is a list.
    fn read_option(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>) {
        let values = match (key.form, value.get_ref()) {
            (Form::List(_), DeValue::Array(items)) => items.iter().map(|item| self.read_text(key, item)).collect(),
            _ => self.read_text(key, value).map(|value| vec![value]),
        };
        // If the value has the wrong type, `read_text` has reported it.
        if let Some(values) = values {
            self.layer.set(key, values);
        }
    }

    /// Returns `value` in the form that the option's flag takes. If its type is not the option's,
    /// reports that and returns `None`.
    fn read_text(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>) -> Option<RawValue> {
        let offset = value.span().start;
        let (text, wanted) = match (key.form, value.get_ref()) {
            (Form::Switch, DeValue::Boolean(on)) => (Some(on.to_string()), ""),
            (Form::Switch, _) => (None, "true or false"),
            (Form::Number | Form::Duration, DeValue::Integer(number)) => (Some(format_decimal(number)), ""),
            (Form::Number, _) => (None, "a whole number"),
            (_, DeValue::String(text)) => (Some(text.to_string()), ""),
            (Form::Duration, _) => (None, "a string such as \"10s\", or a number of seconds"),
            (Form::List(_), _) => (None, "an array of strings"),
            (Form::Choice(_) | Form::Text(_), _) => (None, "a string"),
        };
        if text.is_none() {
            self.add_problem(offset, key.path, format!("must be {wanted}, not {}", type_name(value.get_ref())));
        }
        text.map(|text| RawValue { text, origin: self.origin_at(offset) })
    }

    /// Reads `external.paths`, an array of tables. Each invalid rule is a problem of the layer.
    fn read_path_rules(&mut self, value: &Spanned<DeValue<'_>>) {
        let DeValue::Array(items) = value.get_ref() else {
            self.add_problem(
                value.span().start,
                PATHS,
                format!("must be an array of tables, not {}", type_name(value.get_ref())),
            );
            return;
        };
        let mut rules = Vec::new();
        for item in items {
            let offset = item.span().start;
            match FileRule::deserialize(ValueDeserializer::from(item.clone())) {
                Ok(FileRule { allow, deny, methods, upgrade, port }) => {
                    rules.push(RawRule { allow, deny, methods, upgrade, port, origin: self.origin_at(offset) });
                }
                Err(error) => {
                    let offset = error.span().map_or(offset, |span| span.start);
                    self.add_problem(offset, PATHS, to_one_line(error.message()));
                }
            }
        }
        self.layer.paths = Some(rules);
    }
}

/// Returns `number` in decimal, or as it was written if it does not fit in 64 bits: the parser of
/// the option's value then reports it, with the range.
fn format_decimal(number: &toml::de::DeInteger<'_>) -> String {
    match i64::from_str_radix(number.as_str(), number.radix()) {
        Ok(number) => number.to_string(),
        Err(_) => number.as_str().to_owned(),
    }
}

/// Returns what a message calls a value of this type.
fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::key_by_flag;
    use super::*;

    fn layer(text: &str) -> Layer {
        parse(text, Path::new("loopgate.toml"))
    }

    fn problems(text: &str) -> Vec<String> {
        layer(text).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_shape_is_read_with_its_line() {
        let layer = layer(
            "state_dir = \"/s\"\n[listen]\non = [\n  \"bridge:1\",\n  \"eth0:2\",\n]\nproxy_protocol = true\n[limits]\n\
             max_connections = 1_000\nhead_timeout = 3\nidle_timeout = \"2m\"\n[external]\nallow = \"10.0.0.0/8\"\n",
        );
        assert_eq!(layer.problems, []);
        let values = |flag: &str| -> Vec<_> {
            let line = |value: &RawValue| match value.origin {
                Origin::File(_, line) => line,
                _ => 0,
            };
            layer.get(key_by_flag(flag)).iter().map(|value| (value.text.clone(), line(value))).collect()
        };
        assert_eq!(values("state-dir"), [("/s".into(), 1)]);
        assert_eq!(values("listen"), [("bridge:1".into(), 4), ("eth0:2".into(), 5)]);
        assert_eq!(values("proxy-protocol"), [("true".into(), 7)]);
        assert_eq!(values("max-connections"), [("1000".into(), 9)]);
        assert_eq!(values("head-timeout"), [("3".into(), 10)]);
        assert_eq!(values("idle-timeout"), [("2m".into(), 11)]);
        assert_eq!(values("allow"), [("10.0.0.0/8".into(), 13)]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_key() {
        for (text, problem) in [
            ("\nport = 1\n", "loopgate.toml:2: port: there is no such key"),
            ("[gateway]\nadress = \"127.0.0.1:1\"\n", "loopgate.toml:2: gateway.adress: there is no such key"),
            ("[upstream]\n", "loopgate.toml:1: upstream: there is no such key"),
            ("gateway = \"127.0.0.1:1\"\n", "loopgate.toml:1: gateway: must be a table, not a string"),
            (
                "[listen]\nproxy_protocol = \"yes\"\n",
                "loopgate.toml:2: listen.proxy_protocol: must be true or false, not a string",
            ),
            (
                "[limits]\nhead_bytes = 1.5\n",
                "loopgate.toml:2: limits.head_bytes: must be a whole number, not a fraction",
            ),
            (
                "[external]\ndeny = [\"10.0.0.1\", 7]\n",
                "loopgate.toml:2: external.deny: must be an array of strings, not a number",
            ),
            (
                "[external]\npaths = \"/\"\n",
                "loopgate.toml:2: external.paths: must be an array of tables, not a string",
            ),
        ] {
            assert_eq!(problems(text), [problem], "{text}");
        }
    }

    #[test]
    fn a_number_that_is_too_large_is_reported_with_the_range() {
        for (text, message) in [
            ("[limits]\nhead_bytes = 99999999999999999999\n", "is not a number from 8192 to 16777216"),
            ("[limits]\nhead_timeout = 99999999999999999999\n", "is not a duration such as 10s, 500ms or 2m"),
        ] {
            let error = crate::config::load(Layer::default(), Layer::default(), layer(text)).unwrap_err().to_string();
            assert!(error.starts_with("loopgate.toml:2: limits.") && error.ends_with(message), "{error}");
        }
    }

    #[test]
    fn one_syntax_error_is_one_line() {
        for (text, line) in [
            ("[gateway]\naddress = \n", 2),
            ("[gateway\naddress = \"127.0.0.1:1\"\n", 1),
            ("state_dir = = \"/s\"\n", 1),
            ("state_dir = \"/s\n[listen]\non = [\"bridge:1\"]\n", 1),
            ("[listen]\non = [\"bridge:1\"\nproxy_protocol = true\n[limits]\n", 3),
            ("state dir = \"/s\"\n", 1),
            ("state_dir: /s\nadmin: off\n", 1),
        ] {
            let problems = problems(text);
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
            assert!(
                problems[0].starts_with(&format!("loopgate.toml:{line}: ")) && !problems[0].contains('\n'),
                "{text}: {problems:?}"
            );
        }
    }

    #[test]
    fn a_byte_order_mark_and_crlf_are_accepted() {
        let layer = layer("\u{feff}state_dir = \"/s\"\r\n[listen]\r\non = [\"bridge:1\"]\r\n");
        assert_eq!(layer.problems, []);
        assert_eq!(
            (layer.get(key_by_flag("state-dir"))[0].text.as_str(), layer.get(key_by_flag("listen"))[0].text.as_str()),
            ("/s", "bridge:1")
        );
    }

    #[test]
    fn all_problems_are_collected() {
        assert_eq!(problems("x = 1\ny = 2\n[log]\nz = 3\n").len(), 3);
    }

    #[test]
    fn path_rules_keep_their_order() {
        let layer =
            layer("[[external.paths]]\nallow = \"/hooks/\"\nmethods = [\"POST\"]\n[[external.paths]]\ndeny = \"/\"\n");
        let rules = layer.paths.unwrap();
        assert_eq!(rules[0].allow.as_deref(), Some("/hooks/"));
        assert_eq!(rules[0].methods, ["POST"]);
        assert_eq!(rules[1].deny.as_deref(), Some("/"));
        let problems = problems("[[external.paths]]\nalow = \"/hooks/\"\n");
        assert!(problems[0].starts_with("loopgate.toml:2: external.paths: unknown field"), "{problems:?}");
    }
}

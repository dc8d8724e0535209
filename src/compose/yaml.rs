//! Writes YAML: the block style of compose files, with comments and compose's own tags, in the
//! order in which it is built.
//!
//! Strings that could be read as another type are quoted as in JSON, which is a subset of YAML 1.2
//! (section 1.3).

use std::fmt::Write;

use serde_json::Value;

/// A node of a YAML document.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// A string.
    Text(String),
    /// A number, `true`, `false` or `null`, as text.
    Literal(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in this order.
    Map(Vec<(String, Node)>),
    /// `!reset`, with which compose removes a key that earlier files set.
    Reset,
    /// A node with comment lines above its key.
    Noted(Vec<String>, Box<Node>),
}

impl Node {
    /// Creates a string.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// Creates a sequence of strings.
    pub fn texts<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Self {
        Self::List(texts.into_iter().map(Self::text).collect())
    }

    /// Creates a mapping in this order.
    pub fn map<K: Into<String>>(entries: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    /// Creates `true` or `false`.
    pub fn bool(value: bool) -> Self {
        Self::Literal(value.to_string())
    }

    /// Adds comment lines above the node's key.
    pub fn with_comment<S: Into<String>>(self, lines: impl IntoIterator<Item = S>) -> Self {
        Self::Noted(lines.into_iter().map(Into::into).collect(), Box::new(self))
    }
}

impl From<&Value> for Node {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => Self::Literal(value.to_string()),
            Value::String(text) => Self::text(text),
            Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Value::Object(entries) => Self::map(entries.iter().map(|(key, value)| (key.as_str(), Self::from(value)))),
        }
    }
}

/// Returns a document of comment lines and a mapping.
pub fn document(comments: &[String], root: &[(String, Node)]) -> String {
    let mut out = String::new();
    for line in comments {
        write_comment(&mut out, 0, line);
    }
    write_entries(&mut out, 0, root);
    out
}

/// Writes the entries of `map`, each on a line of its own, with the comments above them.
fn write_entries(out: &mut String, indent: usize, map: &[(String, Node)]) {
    for (key, node) in map {
        let node = match node {
            Node::Noted(lines, node) => {
                for line in lines {
                    write_comment(out, indent, line);
                }
                node
            }
            node => node,
        };
        let _ = write!(out, "{:indent$}{}:", "", format_scalar(key));
        write_value(out, indent, node);
    }
}

/// Writes the value of a key at `indent`: everything after the colon, with the end of the line.
fn write_value(out: &mut String, indent: usize, node: &Node) {
    match node {
        Node::Map(map) if !map.is_empty() => {
            out.push('\n');
            write_entries(out, indent + 2, map);
        }
        Node::List(items) if items.iter().any(is_block) => {
            out.push('\n');
            for item in items {
                let _ = write!(out, "{:width$}-", "", width = indent + 2);
                match item {
                    Node::Map(map) if !map.is_empty() => {
                        // The first key is on the line of the dash.
                        let mut block = String::new();
                        write_entries(&mut block, indent + 4, map);
                        let _ = write!(out, " {}", block.trim_start());
                    }
                    item => write_value(out, indent + 2, item),
                }
            }
        }
        node => {
            let _ = writeln!(out, " {}", format_inline(node));
        }
    }
}

fn is_block(node: &Node) -> bool {
    matches!(node, Node::Map(map) if !map.is_empty())
}

/// Returns `node` in flow style, on one line and without comments.
fn format_inline(node: &Node) -> String {
    match node {
        Node::Text(text) => format_scalar(text),
        Node::Literal(text) => text.clone(),
        Node::List(items) => format!("[{}]", items.iter().map(format_inline).collect::<Vec<_>>().join(", ")),
        Node::Map(map) => {
            let pairs: Vec<String> =
                map.iter().map(|(key, node)| format!("{}: {}", format_scalar(key), format_inline(node))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Node::Reset => "!reset null".into(),
        Node::Noted(_, node) => format_inline(node),
    }
}

fn write_comment(out: &mut String, indent: usize, line: &str) {
    // A line break would end the comment, and the text after it would be read as YAML. In YAML 1.1,
    // U+0085, U+2028 and U+2029 are line breaks too.
    let ends_line = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    let line: String = line.chars().map(|c| if ends_line(c) { ' ' } else { c }).collect();
    let _ = writeln!(out, "{}", format!("{:indent$}# {line}", "").trim_end());
}

/// Formats a string: without quotes if no parser could read it as another type, else quoted.
fn format_scalar(text: &str) -> String {
    if is_plain(text) { text.into() } else { Value::from(text).to_string().replace('\u{7f}', "\\u007f") }
}

/// Returns whether YAML 1.1 and 1.2 both read `text` without quotes as the same string, in block
/// and in flow style.
fn is_plain(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_');
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '.');
    // `y` and `no` are booleans of YAML 1.1.
    let word =
        ["y", "n", "yes", "no", "on", "off", "true", "false", "null"].contains(&text.to_ascii_lowercase().as_str());
    text.starts_with(first) && text.chars().all(rest) && !word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_texts_are_plain() {
        for plain in ["node", "/app/openclaw.mjs", "openclaw-gateway", "a.b_c"] {
            assert_eq!(format_scalar(plain), plain);
        }
        let quoted = [
            ("", r#""""#),
            ("yes", r#""yes""#),
            ("Off", r#""Off""#),
            ("18789", r#""18789""#),
            ("0x1", r#""0x1""#),
            (".5", r#"".5""#),
            ("-", r#""-""#),
            ("--bind", r#""--bind""#),
            ("a: b", r#""a: b""#),
            ("a #b", r#""a #b""#),
            ("{{x}}", r#""{{x}}""#),
            ("$${A}", r#""$${A}""#),
            ("a\nb\t\"\\", r#""a\nb\t\"\\""#),
            ("\u{7f}", r#""\u007f""#),
            ("!reset", r#""!reset""#),
            ("*a", r#""*a""#),
            ("é", "\"é\""),
        ];
        for (text, expected) in quoted {
            assert_eq!(format_scalar(text), expected);
        }
    }

    #[test]
    fn a_document_has_compose_files_style() {
        let root = Node::map([
            (
                "services",
                Node::map([(
                    "a",
                    Node::map([
                        ("command", Node::texts(["pause"])),
                        (
                            "healthcheck",
                            Node::map([("disable", Node::bool(true))]).with_comment(["one", "two\nthree\u{2028}four"]),
                        ),
                        ("ports", Node::Reset),
                        (
                            "volumes",
                            Node::List(vec![Node::map([
                                ("type", Node::text("bind")),
                                ("x", Node::map([("z", Node::bool(false))])),
                            ])]),
                        ),
                        ("none", Node::Map(vec![])),
                    ]),
                )]),
            ),
            ("volumes", Node::map([("state", Node::Map(vec![]))])),
        ]);
        let Node::Map(root) = root else { unreachable!() };
        let expected = concat!(
            "# top\n#\nservices:\n  a:\n    command: [pause]\n    # one\n    # two three four\n",
            "    healthcheck:\n      disable: true\n    ports: !reset null\n    volumes:\n      - type: bind\n",
            "        x:\n          z: false\n    none: {}\nvolumes:\n  state: {}\n",
        );
        assert_eq!(document(&["top".into(), String::new()], &root), expected);
    }
}

//! The description of one option: its names, the form of its value, its default and its help.

/// What every variable of loopgate begins with.
pub const VARIABLE_PREFIX: &str = "LOOPGATE_";

/// One option.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its flag, without the dashes; the variable's name follows from it.
    pub flag: &'static str,
    /// Its place in the TOML file, dotted.
    pub path: &'static str,
    /// What its value looks like.
    pub form: Form,
    /// Its default, as a flag would state it.
    pub default: Option<&'static str>,
    /// What it does, in one phrase without a full stop.
    pub help: &'static str,
}

/// The shape of an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `true` or `false`; the flag alone means `true`.
    Switch,
    /// A whole number.
    Number,
    /// A time span such as `10s`, `500ms`, `2m`, or a bare number of seconds.
    Duration,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text; the field is its placeholder in the help.
    Text(&'static str),
    /// Any number of texts: the flag repeats, the variable separates by comma, the file has an array.
    List(&'static str),
}

impl Key {
    pub(super) const fn new(
        flag: &'static str,
        path: &'static str,
        form: Form,
        default: Option<&'static str>,
        help: &'static str,
    ) -> Self {
        Self { flag, path, form, default, help }
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.flag.to_ascii_uppercase().replace('-', "_"))
    }

    /// Returns whether it takes any number of values, none included.
    pub fn is_list(&self) -> bool {
        matches!(self.form, Form::List(_))
    }

    /// The table of the file it is in; empty for the top level.
    pub fn table(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(table, _)| table)
    }

    /// Its name within that table.
    pub fn name(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::{KEYS, key};

    #[test]
    fn flags_and_paths_are_unique_and_variables_follow_from_flags() {
        for (i, key) in KEYS.iter().enumerate() {
            for other in &KEYS[i + 1..] {
                assert_ne!(key.flag, other.flag);
                assert_ne!(key.path, other.path);
            }
        }
        assert_eq!(key("tls-name").variable(), "LOOPGATE_TLS_NAME");
        assert_eq!((key("tls-name").table(), key("tls-name").name()), ("tls", "names"));
        assert_eq!((key("admin").table(), key("admin").name()), ("", "admin"));
    }
}

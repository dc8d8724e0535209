//! The description of one option: its names, the form of its value, its default and its help.

/// The prefix of loopgate's environment variables.
pub const VARIABLE_PREFIX: &str = "LOOPGATE_";

/// The description of one option.
#[derive(Clone, Debug)]
pub struct Key {
    /// The option's flag, without the leading dashes. The name of its variable is made from it.
    pub flag: &'static str,
    /// The option's dotted path in the TOML file, such as `limits.head_bytes`.
    pub path: &'static str,
    /// The form of the option's value.
    pub form: Form,
    /// The option's default, in the form that its flag takes.
    pub default: Option<&'static str>,
    /// The option's help text: one phrase without a full stop.
    pub help: &'static str,
}

/// The form of an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `true` or `false`; the flag alone means `true`.
    Switch,
    /// A whole number.
    Number,
    /// A time span such as `10s`, `500ms` or `2m`, or a number of seconds.
    Duration,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text. The field is the placeholder of the value in the help, such as `FILE`.
    Text(&'static str),
    /// Any number of texts: a repeated flag, a variable with commas between the texts, or an array
    /// in the file. The field is the placeholder of one text.
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

    /// Returns the name of the environment variable that sets the option.
    pub fn env_variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.flag.to_ascii_uppercase().replace('-', "_"))
    }

    /// Returns whether the option takes any number of values, including none.
    pub fn is_list(&self) -> bool {
        matches!(self.form, Form::List(_))
    }

    /// Returns the name of the file's table that contains the option; empty for the top level.
    pub fn table(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(table, _)| table)
    }

    /// Returns the option's name within its table.
    pub fn name(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::{KEYS, key_by_flag};

    #[test]
    fn flags_and_paths_are_unique_and_variables_follow_from_flags() {
        for (i, key) in KEYS.iter().enumerate() {
            for other in &KEYS[i + 1..] {
                assert_ne!(key.flag, other.flag);
                assert_ne!(key.path, other.path);
            }
        }
        assert_eq!(key_by_flag("tls-name").env_variable(), "LOOPGATE_TLS_NAME");
        assert_eq!((key_by_flag("tls-name").table(), key_by_flag("tls-name").name()), ("tls", "names"));
        assert_eq!((key_by_flag("admin").table(), key_by_flag("admin").name()), ("", "admin"));
    }
}

//! The option values of one source (flags, environment, file or defaults), and how sources are
//! merged.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::key::KEYS;
use super::option::Key;

/// The options that one source sets, not yet validated; or the options of several merged sources.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    values: BTreeMap<&'static str, Vec<RawValue>>,
    /// The rules of `[[external.paths]]`, if the source has any.
    pub paths: Option<Vec<RawRule>>,
    /// Problems of the source itself, such as an unknown key.
    pub problems: Vec<Problem>,
}

/// One value of an option, not yet parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawValue {
    /// The value in the form that the option's flag takes.
    pub text: String,
    /// Where the value was set.
    pub origin: Origin,
}

/// A path rule, not yet validated.
#[derive(Clone, Debug)]
pub struct RawRule {
    /// The prefix of an `allow` rule.
    pub allow: Option<String>,
    /// The prefix of a `deny` rule.
    pub deny: Option<String>,
    /// The methods that the rule applies to; empty for all.
    pub methods: Vec<String>,
    /// Whether the rule lets WebSocket upgrades pass.
    pub upgrade: bool,
    /// The port of the gateway that the rule applies to; `None` for all.
    pub port: Option<u16>,
    /// Where the rule was set.
    pub origin: Origin,
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The value is the option's default.
    Default,
    /// A command line flag.
    Flag,
    /// An environment variable.
    Variable,
    /// A file and the line in it, counted from 1.
    File(Arc<Path>, usize),
}

impl Origin {
    /// Returns the place where a user finds the value of `key`: its flag, its variable, or file,
    /// line and path.
    pub fn place_of(&self, key: &Key) -> String {
        match self {
            Self::Default => format!("the default of --{}", key.flag),
            Self::Flag => format!("--{}", key.flag),
            Self::Variable => key.env_variable(),
            Self::File(file, line) => format!("{}:{line}: {}", file.display(), key.path),
        }
    }
}

/// One problem of the configuration. loopgate does not start with a configuration that has
/// problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The place of the problem: a flag, a variable, or a file with a line and a path.
    pub place: String,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl Layer {
    /// Returns the layer with the default of every option.
    pub fn defaults() -> Self {
        let mut layer = Self::default();
        for key in KEYS.iter() {
            layer.set(key, key.default.map(|text| RawValue { text: text.into(), origin: Origin::Default }));
        }
        layer
    }

    /// Sets the values of an option. With no values, the option is set to an empty list.
    pub fn set(&mut self, key: &'static Key, values: impl IntoIterator<Item = RawValue>) {
        self.values.insert(key.flag, values.into_iter().collect());
    }

    /// Returns the values of an option, or an empty slice if the layer does not set it.
    pub fn get(&self, key: &Key) -> &[RawValue] {
        self.values.get(key.flag).map_or(&[], Vec::as_slice)
    }

    /// Adds a problem of the source itself.
    pub fn add_problem(&mut self, place: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { place: place.into(), message: message.into() });
    }

    /// Merges this layer with `below`, which it takes precedence over. A list replaces the list in
    /// `below` as a whole. Keeps the problems of both layers.
    pub fn merged_over(mut self, mut below: Self) -> Self {
        below.values.append(&mut self.values);
        below.paths = self.paths.or(below.paths);
        self.problems.append(&mut below.problems);
        below.problems = self.problems;
        below
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::key_by_flag;
    use super::*;

    fn layer(flag: &str, texts: &[&str], origin: Origin) -> Layer {
        let mut layer = Layer::default();
        layer
            .set(key_by_flag(flag), texts.iter().map(|text| RawValue { text: (*text).into(), origin: origin.clone() }));
        layer
    }

    #[test]
    fn the_upper_layer_hides_the_lower_one() {
        let merged = layer("allow", &["10.0.0.0/8"], Origin::Flag)
            .merged_over(layer("allow", &["172.16.0.0/12", "192.168.0.0/16"], Origin::Variable))
            .merged_over(layer("deny", &["10.1.0.0/16"], Origin::Variable))
            .merged_over(Layer::defaults());
        assert_eq!(merged.get(key_by_flag("allow")), [RawValue { text: "10.0.0.0/8".into(), origin: Origin::Flag }]);
        assert_eq!(merged.get(key_by_flag("deny")).len(), 1);
        assert_eq!(merged.get(key_by_flag("admin"))[0].origin, Origin::Default);
    }

    #[test]
    fn an_empty_list_hides_the_lower_one_too() {
        let merged = layer("listen", &[], Origin::Flag).merged_over(Layer::defaults());
        assert!(merged.get(key_by_flag("listen")).is_empty());
    }

    #[test]
    fn problems_of_all_layers_are_kept_upper_first() {
        let (mut upper, mut lower) = (Layer::default(), Layer::default());
        upper.add_problem("up", "a");
        lower.add_problem("low", "b");
        let places: Vec<_> = upper.merged_over(lower).problems.into_iter().map(|c| c.place).collect();
        assert_eq!(places, ["up", "low"]);
    }
}

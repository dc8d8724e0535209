//! The report of `check`: findings with remedies, and subjects that are in order. Field names are
//! those of its JSON.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work, or is not safe.
    Error,
    /// Something works, but permits more than it needs to, or will fail soon.
    Warning,
    /// Something that the operator may want to know, and need not change.
    Note,
}

impl Severity {
    /// Returns the severity in one word, as `check` prints it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A kind of finding. All kinds are in [`super::catalogue::ALL`].
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The id of the kind, which never changes.
    pub id: &'static str,
    /// The severity of all findings of this kind.
    pub severity: Severity,
    /// The meaning of a finding of this kind, in one sentence.
    pub means: &'static str,
}

/// The remedy for a finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "in", rename_all = "kebab-case")]
pub enum Remedy {
    /// Set a key of the gateway's own `openclaw.json`.
    #[serde(rename = "openclaw.json")]
    OpenClaw {
        /// The dotted path of the key.
        key: &'static str,
        /// The value to set.
        value: Value,
    },
    /// Set an option of loopgate.
    #[serde(rename = "loopgate")]
    Loopgate {
        /// The dotted path of the key in the file, or the flag.
        key: &'static str,
        /// The value to set.
        value: Value,
    },
    /// Do something else, described in words.
    #[serde(rename = "surroundings")]
    Do {
        /// The instruction for the operator.
        what: String,
    },
}

impl Remedy {
    /// Creates a remedy in words.
    pub fn in_words(what: impl Into<String>) -> Self {
        Self::Do { what: what.into() }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenClaw { key, value } => write!(f, "in openclaw.json set {key}: {value}"),
            Self::Loopgate { key, value } => write!(f, "in loopgate's configuration set {key} = {value}"),
            Self::Do { what } => f.write_str(what),
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The id of the finding's kind.
    pub id: &'static str,
    /// The severity of the finding.
    pub severity: Severity,
    /// The observations that led to the finding.
    pub seen: Vec<String>,
    /// The remedy.
    pub remedy: Remedy,
}

/// A subject that is in order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Passed {
    /// The subject, in one or two words.
    pub about: &'static str,
    /// The observation that shows that it is in order.
    pub seen: String,
}

/// The report of all checks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The findings, the worst first.
    pub findings: Vec<Finding>,
    /// The subjects that are in order.
    #[serde(rename = "fine")]
    pub passed: Vec<Passed>,
}

impl Report {
    /// Adds an observation with its remedy. Observations of the same kind and with the same remedy
    /// become one finding.
    pub fn add_finding(&mut self, kind: &'static Kind, seen: impl Into<String>, remedy: Remedy) {
        let seen = seen.into();
        match self.findings.iter_mut().find(|known| known.id == kind.id && known.remedy == remedy) {
            Some(known) if known.seen.contains(&seen) => {}
            Some(known) => known.seen.push(seen),
            None => self.findings.push(Finding { id: kind.id, severity: kind.severity, seen: vec![seen], remedy }),
        }
    }

    /// Adds a subject that is in order.
    pub fn add_passed(&mut self, about: &'static str, seen: impl Into<String>) {
        self.passed.push(Passed { about, seen: seen.into() });
    }

    /// Sorts the findings, the worst first.
    pub fn sort_by_severity(&mut self) {
        self.findings.sort_by_key(|finding| finding.severity);
    }

    /// Returns whether there is a finding of severity error.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

#[cfg(test)]
impl Report {
    /// Returns the ids of the findings, for tests.
    pub fn ids(&self) -> Vec<&'static str> {
        self.findings.iter().map(|finding| finding.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::catalogue;

    #[test]
    fn two_observations_of_one_thing_are_one_finding() {
        let mut report = Report::default();
        let remedy = || Remedy::OpenClaw { key: "gateway.bind", value: "loopback".into() };
        report.add_finding(&catalogue::GATEWAY_EXPOSED, "by probe", remedy());
        report.add_finding(&catalogue::GATEWAY_EXPOSED, "by file", remedy());
        report.add_finding(&catalogue::GATEWAY_EXPOSED, "by file", remedy());
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].seen, ["by probe", "by file"]);
        assert_eq!(report.findings[0].remedy.to_string(), "in openclaw.json set gateway.bind: \"loopback\"");
    }
}

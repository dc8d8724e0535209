//! What a check comes to: findings with what to do about them, and what was found right.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It doesn't work, or it isn't safe.
    Error,
    /// It works, but is wider, or will fail sooner, than it need.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// In one word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A sort of finding. All of them are in [`super::catalogue::ALL`].
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its id, which never changes.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What it means, in one sentence.
    pub means: &'static str,
}

/// What to do about a finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "in", rename_all = "kebab-case")]
pub enum Remedy {
    /// Set a key of the gateway's own `openclaw.json`.
    #[serde(rename = "openclaw.json")]
    OpenClaw {
        /// The key, dotted.
        key: &'static str,
        /// Its value.
        value: Value,
    },
    /// Set an option of loopgate.
    #[serde(rename = "loopgate")]
    Loopgate {
        /// The key of the file, dotted, or the flag.
        key: &'static str,
        /// Its value.
        value: Value,
    },
    /// Anything else.
    #[serde(rename = "surroundings")]
    Do {
        /// What.
        what: String,
    },
}

impl Remedy {
    /// A remedy in words.
    pub fn words(what: impl Into<String>) -> Self {
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
    /// Which sort.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was seen.
    pub seen: Vec<String>,
    /// What to do about it.
    pub remedy: Remedy,
}

/// Something that is as it should be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fine {
    /// What it is about, in a word or two.
    pub about: &'static str,
    /// What was seen.
    pub seen: String,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// What is not right, the worst first.
    pub findings: Vec<Finding>,
    /// What is.
    pub fine: Vec<Fine>,
}

impl Report {
    /// Adds a finding; what two observations agree on is one finding.
    pub fn find(&mut self, kind: &'static Kind, seen: impl Into<String>, remedy: Remedy) {
        let seen = seen.into();
        match self.findings.iter_mut().find(|known| known.id == kind.id && known.remedy == remedy) {
            Some(known) if known.seen.contains(&seen) => {}
            Some(known) => known.seen.push(seen),
            None => self.findings.push(Finding { id: kind.id, severity: kind.severity, seen: vec![seen], remedy }),
        }
    }

    /// Adds something that is right.
    pub fn fine(&mut self, about: &'static str, seen: impl Into<String>) {
        self.fine.push(Fine { about, seen: seen.into() });
    }

    /// The worst first.
    pub fn sort(&mut self) {
        self.findings.sort_by_key(|finding| finding.severity);
    }

    /// Whether anything doesn't work, or isn't safe.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

#[cfg(test)]
impl Report {
    /// The ids, for tables.
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
        report.find(&catalogue::GATEWAY_EXPOSED, "by probe", remedy());
        report.find(&catalogue::GATEWAY_EXPOSED, "by file", remedy());
        report.find(&catalogue::GATEWAY_EXPOSED, "by file", remedy());
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].seen, ["by probe", "by file"]);
        assert_eq!(report.findings[0].remedy.to_string(), "in openclaw.json set gateway.bind: \"loopback\"");
    }
}

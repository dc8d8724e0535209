//! Judges the way to the Kubernetes API server.

use super::catalogue as kind;
use super::finding::{Remedy, Report};

/// What was seen of the API server.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where it is, as a URL.
    pub api: String,
    /// Why it can't be followed.
    pub error: Option<String>,
    /// Requests of loopgate's that it forbids, each in its own words.
    pub forbidden: Vec<String>,
}

/// Judges all of it.
pub fn judge(seen: &Seen, report: &mut Report) {
    for what in &seen.forbidden {
        let remedy =
            "bind that role to the pod's service account; charts/loopgate does with agents.discovery=kubernetes, and with agents.attested";
        report.find(&kind::KUBERNETES_FORBIDDEN, what.clone(), Remedy::words(remedy));
    }
    match &seen.error {
        None => report.fine("kubernetes", format!("{} is followed", seen.api)),
        Some(_) if !seen.forbidden.is_empty() => {}
        Some(error) => {
            let remedy = "project the service account's token, ca.crt and namespace into the pod, and let it reach the API server \
                          (NetworkPolicy)";
            report.find(&kind::KUBERNETES_UNREACHABLE, format!("{}: {error}", seen.api), Remedy::words(remedy));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_found() {
        let well = || Seen { api: "https://10.0.0.1:443".into(), error: None, forbidden: Vec::new() };
        let (lost, forbidden) = (|| Some("no answer".to_owned()), || vec!["forbidden (403): list pods".to_owned()]);
        let table: [(Seen, &[&str]); 4] = [
            (well(), &[]),
            (Seen { error: lost(), ..well() }, &["kubernetes-unreachable"]),
            (Seen { error: lost(), forbidden: forbidden(), ..well() }, &["kubernetes-forbidden"]),
            (Seen { forbidden: forbidden(), ..well() }, &["kubernetes-forbidden"]),
        ];
        for (seen, expected) in table {
            let mut report = Report::default();
            judge(&seen, &mut report);
            assert_eq!(report.ids(), expected, "{seen:?}");
        }
    }
}

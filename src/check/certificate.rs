//! Findings about the certificate, from its files.

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::pki::offline;

/// The state of the server certificate.
#[derive(Clone, Debug)]
pub struct CertificateState {
    /// The content of the certificate's files, or why they can't be read; `None` if loopgate has
    /// not made a certificate yet.
    pub files: Option<Result<offline::CertificateReport, String>>,
    /// Whether the operator provides the certificate. loopgate does not renew it then.
    pub own_pair: bool,
    /// Whether loopgate adds new names to the certificate (`tls.follow_names`).
    pub follows_names: bool,
    /// The names and addresses that clients may dial.
    pub wanted: Vec<String>,
    /// Why the running sidecar could not load or make a newer certificate; `None` if there is no
    /// such problem.
    pub problem: Option<String>,
    /// The current time in RFC 3339 and UTC, like the times in `files`.
    pub now: String,
}

/// A certificate that the operator provides is reported if it expires within this many days.
const PROVIDED_EXPIRES_SOON_DAYS: i64 = 14;
/// A certificate that loopgate made is reported if it expires within this many days. loopgate
/// should have renewed it long before.
const MANAGED_EXPIRES_SOON_DAYS: i64 = 7;

/// Adds the findings about the certificate. Adds none about its files if loopgate has not made a
/// certificate yet.
pub fn judge(state: &CertificateState, report: &mut Report) {
    if let Some(problem) = &state.problem {
        let remedy = Remedy::in_words(
            "correct the file that it names; the sidecar reads it again by itself, or at once with `loopgate reload`",
        );
        report.add_finding(&kind::CERTIFICATE_PROBLEM, problem.clone(), remedy);
    }
    let files = match &state.files {
        None => return,
        Some(Ok(files)) => files,
        Some(Err(error)) => {
            let remedy = Remedy::in_words("repair or remove the file that it names; loopgate creates what is missing");
            return report.add_finding(&kind::CERTIFICATE_UNREADABLE, error.clone(), remedy);
        }
    };
    judge_validity(state, files, report);
    if let Some(ca) = files.ca.as_ref().filter(|ca| state.now < ca.not_before) {
        let remedy = Remedy::in_words("set this clock right (NTP)");
        report.add_finding(
            &kind::CLOCK_CA,
            format!("it is {}, and {} begins at {}", state.now, ca.file.display(), ca.not_before),
            remedy,
        );
    }
    if let Some(issuer) = &files.missing_issuer {
        let description =
            format!("{} does not contain the certificate of its issuer, {issuer}", files.server.file.display());
        let remedy = Remedy::in_words(
            "append the issuer's certificate to the file, unless every client trusts that issuer itself",
        );
        report.add_finding(&kind::CERTIFICATE_CHAIN, description, remedy);
    }
    judge_names(state, files, report);
}

/// Adds the finding about the validity of the server certificate.
fn judge_validity(state: &CertificateState, files: &offline::CertificateReport, report: &mut Report) {
    let server = &files.server;
    let until = format!("{} is valid from {} to {}", server.file.display(), server.not_before, server.not_after);
    let renew = if state.own_pair {
        "put a renewed pair in its place; it is read again by itself"
    } else {
        "loopgate cert rotate"
    };
    // RFC 3339 in UTC and whole seconds sorts as text.
    if state.now < server.not_before || server.not_after <= state.now {
        report.add_finding(&kind::CERTIFICATE_EXPIRED, until, Remedy::in_words(renew));
    } else if server.days_left < if state.own_pair { PROVIDED_EXPIRES_SOON_DAYS } else { MANAGED_EXPIRES_SOON_DAYS } {
        report.add_finding(
            &kind::CERTIFICATE_EXPIRING,
            format!("{until}: {} days left", server.days_left),
            Remedy::in_words(renew),
        );
    } else {
        report.add_passed("certificate", format!("{} days left, fingerprint {}", server.days_left, server.fingerprint));
    }
}

/// Adds the finding about names and addresses that the server certificate lacks.
fn judge_names(state: &CertificateState, files: &offline::CertificateReport, report: &mut Report) {
    let server = &files.server;
    let missing: Vec<&str> = state
        .wanted
        .iter()
        .filter(|name| !server.names.iter().any(|certified| matches_name(certified, name)))
        .map(String::as_str)
        .collect();
    if missing.is_empty() {
        report.add_passed("certificate", format!("it has every name and address: {}", state.wanted.join(" ")));
        return;
    }
    let description = format!("{} is not for {}", server.file.display(), missing.join(", "));
    let remedy = if state.own_pair {
        Remedy::in_words(format!(
            "have it issued for {} too, or let clients connect only to the names that it has",
            missing.join(", ")
        ))
    } else if !state.follows_names {
        Remedy::in_words(
            "let clients connect only to the names that it has. Or start the sidecar once with tls.follow_names = \
             true, which adds them and breaks pins of the certificate",
        )
    } else {
        Remedy::in_words("restart the sidecar with this configuration: it adds the missing names to its certificate")
    };
    report.add_finding(&kind::CERTIFICATE_NAMES, description, remedy);
}

/// Returns whether `certified`, a name in a certificate, matches `name` (RFC 6125: `*` matches one
/// label).
fn matches_name(certified: &str, name: &str) -> bool {
    certified.eq_ignore_ascii_case(name)
        || certified
            .strip_prefix("*.")
            .zip(name.split_once('.'))
            .is_some_and(|(certified_parent, (_, parent))| certified_parent.eq_ignore_ascii_case(parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::offline::Description;

    fn description(from: &str, until: &str, days_left: i64) -> Description {
        Description {
            file: "/state/server.pem".into(),
            subject: String::new(),
            names: vec!["localhost".into(), "172.18.0.2".into(), "*.example.org".into()],
            not_before: from.into(),
            not_after: until.into(),
            days_left,
            serial: String::new(),
            fingerprint: "AB".into(),
            public_key: String::new(),
        }
    }

    fn state(server: Description) -> CertificateState {
        let ca = Some(description("2026-01-01T00:00:00Z", "2036-01-01T00:00:00Z", 3650));
        CertificateState {
            files: Some(Ok(offline::CertificateReport { server, ca, missing_issuer: None })),
            own_pair: false,
            follows_names: true,
            wanted: vec!["localhost".into(), "172.18.0.2".into()],
            problem: None,
            now: "2026-06-01T00:00:00Z".into(),
        }
    }

    fn without_issuer(mut state: CertificateState) -> CertificateState {
        let files = state.files.as_mut().unwrap().as_mut().unwrap();
        files.missing_issuer = Some("CN=R3".into());
        state
    }

    #[test]
    fn each_fault_is_found() {
        let good = || description("2026-05-01T00:00:00Z", "2026-08-01T00:00:00Z", 60);
        let table: [(CertificateState, &[&str]); 12] = [
            (state(good()), &[]),
            (CertificateState { files: None, ..state(good()) }, &[]),
            (CertificateState { files: Some(Err("no".into())), ..state(good()) }, &["certificate-unreadable"]),
            (CertificateState { problem: Some("disk full".into()), ..state(good()) }, &["certificate-problem"]),
            (state(description("2026-05-01T00:00:00Z", "2026-06-01T00:00:00Z", 0)), &["certificate-expired"]),
            (state(description("2026-06-02T00:00:00Z", "2026-08-01T00:00:00Z", 60)), &["certificate-expired"]),
            (state(description("2026-05-01T00:00:00Z", "2026-06-07T00:00:00Z", 6)), &["certificate-expiring"]),
            (
                CertificateState {
                    own_pair: true,
                    ..state(description("2026-05-01T00:00:00Z", "2026-06-13T00:00:00Z", 12))
                },
                &["certificate-expiring"],
            ),
            (CertificateState { wanted: vec!["gateway".into()], ..state(good()) }, &["certificate-names"]),
            (
                CertificateState { wanted: vec!["172.18.0.3".into()], own_pair: true, ..state(good()) },
                &["certificate-names"],
            ),
            (without_issuer(state(good())), &["certificate-chain"]),
            (
                CertificateState { now: "2025-12-31T00:00:00Z".into(), ..state(good()) },
                &["certificate-expired", "clock-behind"],
            ),
        ];
        for (state, expected) in table {
            let mut report = Report::default();
            judge(&state, &mut report);
            assert_eq!(report.ids(), expected, "{state:?}");
        }
    }

    #[test]
    fn the_remedy_for_a_missing_name_is_one_that_adds_it() {
        let good = description("2026-05-01T00:00:00Z", "2026-08-01T00:00:00Z", 60);
        let missing = CertificateState { wanted: vec!["gateway".into()], ..state(good) };
        for (own_pair, follows_names, words) in [
            (true, true, "have it issued for gateway"),
            (false, true, "restart the sidecar"),
            (false, false, "tls.follow_names = true"),
        ] {
            let mut report = Report::default();
            judge(&CertificateState { own_pair, follows_names, ..missing.clone() }, &mut report);
            assert!(report.findings[0].remedy.to_string().contains(words), "{:?}", report.findings);
        }
    }

    #[test]
    fn a_star_matches_one_label() {
        let table = [
            ("*.example.org", "a.example.org", true),
            ("*.example.org", "A.Example.Org", true),
            ("*.Example.org", "a.example.org", true),
            ("*.example.org", "a.b.example.org", false),
            ("*.example.org", "example.org", false),
            ("gateway", "Gateway", true),
            ("gateway", "gateways", false),
        ];
        for (certified, name, expected) in table {
            assert_eq!(matches_name(certified, name), expected, "{certified} {name}");
        }
    }
}

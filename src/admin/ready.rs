//! Readiness: derived anew each time from what is the case, never latched.

/// What readiness depends on, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// How many addresses are listened on.
    pub doors: usize,
    /// Where one should listen, and no address is such.
    pub not_listening: Vec<String>,
    /// Whether the certificate is valid now.
    pub certificate_valid: bool,
    /// Why the certificate is not a newer one.
    pub certificate_problem: Option<String>,
    /// Why the gateway accepts no connection, if that is so.
    pub gateway_error: Option<String>,
    /// Whether the interfaces of this network namespace are gone with its owner.
    pub orphaned: bool,
    /// Whether the end has begun.
    pub stopping: bool,
}

/// Every reason against readiness; none means ready.
///
/// A problem with a newer certificate is none by itself: the one before serves on.
pub(super) fn reasons(facts: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    if facts.stopping {
        reasons.push("stopping".to_owned());
    }
    if facts.orphaned {
        reasons.push("the owner of this network namespace does not run".to_owned());
    }
    if facts.doors == 0 {
        let which = if facts.not_listening.is_empty() { String::new() } else { format!(" as {}", facts.not_listening.join(", ")) };
        reasons.push(format!("no address to listen on{which}"));
    }
    if !facts.certificate_valid {
        let cause = facts.certificate_problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        reasons.push(format!("the certificate is not valid now{cause}"));
    }
    if let Some(error) = &facts.gateway_error {
        reasons.push(format!("the gateway accepts no connection: {error}"));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told() {
        let well = || Facts {
            doors: 1,
            not_listening: Vec::new(),
            certificate_valid: true,
            certificate_problem: None,
            gateway_error: None,
            orphaned: false,
            stopping: false,
        };
        let refused = || Some("connection refused".to_owned());
        let table: [(Facts, &[&str]); 9] = [
            (well(), &[]),
            (Facts { doors: 0, ..well() }, &["no address to listen on"]),
            (Facts { doors: 0, not_listening: vec!["eth7:1".into()], ..well() }, &["no address to listen on as eth7:1"]),
            (Facts { not_listening: vec!["eth7:1".into()], ..well() }, &[]),
            (
                Facts { stopping: true, gateway_error: refused(), ..well() },
                &["stopping", "the gateway accepts no connection: connection refused"],
            ),
            (Facts { orphaned: true, ..well() }, &["the owner of this network namespace does not run"]),
            (Facts { certificate_valid: false, ..well() }, &["the certificate is not valid now"]),
            (Facts { certificate_problem: Some("disk full".into()), ..well() }, &[]),
            (
                Facts { certificate_valid: false, certificate_problem: Some("disk full".into()), ..well() },
                &["the certificate is not valid now: disk full"],
            ),
        ];
        for (facts, expected) in table {
            assert_eq!(reasons(&facts), expected, "{facts:?}");
        }
    }
}

//! Readiness, computed anew for each request.

use crate::openclaw::tls_detector;

/// What readiness depends on, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// How many addresses are listened on for the gateway itself.
    pub listeners: usize,
    /// The values of `listen.on` and `listen.plain` that no local address matches.
    pub not_listening: Vec<String>,
    /// Whether the certificate is valid now.
    pub certificate_valid: bool,
    /// Why a newer certificate is not served.
    pub certificate_problem: Option<String>,
    /// Why the gateway can't be used, if it can't.
    pub gateway_error: Option<GatewayError>,
    /// Whether the container that owns this network namespace has stopped.
    pub orphaned: bool,
    /// Whether the sidecar is stopping.
    pub stopping: bool,
}

/// Why the gateway can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum GatewayError {
    /// It accepts no connection.
    #[error("{0}")]
    Unreachable(String),
    /// It expects TLS.
    #[error("{}", tls_detector::PROBLEM)]
    Tls,
}

/// Returns why the sidecar is not ready; empty means ready.
///
/// A newer certificate that can't be served is no reason: the old one still is.
pub(super) fn why_not_ready(facts: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    if facts.stopping {
        reasons.push("stopping".to_owned());
    }
    if facts.orphaned {
        reasons.push("the container that owns this network namespace does not run".to_owned());
    }
    if facts.listeners == 0 {
        let which = if facts.not_listening.is_empty() {
            String::new()
        } else {
            format!(" matches {}", facts.not_listening.join(", "))
        };
        reasons.push(format!("no address to listen on{which}"));
    }
    if !facts.certificate_valid {
        let cause = facts.certificate_problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        reasons.push(format!("the certificate is not valid now{cause}"));
    }
    match &facts.gateway_error {
        Some(GatewayError::Unreachable(error)) => reasons.push(format!("the gateway accepts no connection: {error}")),
        Some(error @ GatewayError::Tls) => reasons.push(error.to_string()),
        None => {}
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_named() {
        let well = || Facts {
            listeners: 1,
            not_listening: Vec::new(),
            certificate_valid: true,
            certificate_problem: None,
            gateway_error: None,
            orphaned: false,
            stopping: false,
        };
        let refused = || Some(GatewayError::Unreachable("connection refused".to_owned()));
        let table: [(Facts, &[&str]); 10] = [
            (Facts { gateway_error: Some(GatewayError::Tls), ..well() }, &[tls_detector::PROBLEM]),
            (well(), &[]),
            (Facts { listeners: 0, ..well() }, &["no address to listen on"]),
            (
                Facts { listeners: 0, not_listening: vec!["eth7:1".into()], ..well() },
                &["no address to listen on matches eth7:1"],
            ),
            (Facts { not_listening: vec!["eth7:1".into()], ..well() }, &[]),
            (
                Facts { stopping: true, gateway_error: refused(), ..well() },
                &["stopping", "the gateway accepts no connection: connection refused"],
            ),
            (Facts { orphaned: true, ..well() }, &["the container that owns this network namespace does not run"]),
            (Facts { certificate_valid: false, ..well() }, &["the certificate is not valid now"]),
            (Facts { certificate_problem: Some("disk full".into()), ..well() }, &[]),
            (
                Facts { certificate_valid: false, certificate_problem: Some("disk full".into()), ..well() },
                &["the certificate is not valid now: disk full"],
            ),
        ];
        for (facts, expected) in table {
            assert_eq!(why_not_ready(&facts), expected, "{facts:?}");
        }
    }
}

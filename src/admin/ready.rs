//! Decides whether the sidecar is ready.

use crate::openclaw::tls_detector;

/// The facts at one moment on which readiness depends.
#[derive(Clone, Debug)]
pub(super) struct ReadinessFacts {
    /// The number of addresses on which the sidecar listens for the gateway's own port.
    pub listeners: usize,
    /// The values of `listen.on` and `listen.plain` that no local address matches.
    pub not_listening: Vec<String>,
    /// Whether the certificate is valid now.
    pub certificate_valid: bool,
    /// Why a newer certificate than the served one could not be loaded or made, or the client CA
    /// could not be read again; `None` if there is no such problem.
    pub certificate_problem: Option<String>,
    /// Why loopgate can't use the gateway; `None` if it can.
    pub gateway_error: Option<GatewayError>,
    /// Whether the container that owns this network namespace has stopped, or runs in another one.
    pub orphaned: bool,
    /// Whether the sidecar is stopping.
    pub stopping: bool,
}

/// Why loopgate can't use the gateway.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum GatewayError {
    /// The gateway accepts no connection. The field says why.
    #[error("{0}")]
    Unreachable(String),
    /// The gateway expects TLS, but loopgate connects to it without.
    #[error("{}", tls_detector::PROBLEM)]
    Tls,
}

/// Returns the reasons why the sidecar is not ready, or none if it is.
///
/// A newer certificate that can't be served is not a reason, because the old one is still served.
pub(super) fn why_not_ready(facts: &ReadinessFacts) -> Vec<String> {
    let mut reasons = Vec::new();
    if facts.stopping {
        reasons.push("stopping".to_owned());
    }
    if facts.orphaned {
        reasons.push("the container that owns this network namespace does not run".to_owned());
    }
    if facts.listeners == 0 {
        let unmatched = if facts.not_listening.is_empty() {
            String::new()
        } else {
            format!(" matches {}", facts.not_listening.join(", "))
        };
        reasons.push(format!("no address to listen on{unmatched}"));
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
        let well = || ReadinessFacts {
            listeners: 1,
            not_listening: Vec::new(),
            certificate_valid: true,
            certificate_problem: None,
            gateway_error: None,
            orphaned: false,
            stopping: false,
        };
        let refused = || Some(GatewayError::Unreachable("connection refused".to_owned()));
        let table: [(ReadinessFacts, &[&str]); 10] = [
            (ReadinessFacts { gateway_error: Some(GatewayError::Tls), ..well() }, &[tls_detector::PROBLEM]),
            (well(), &[]),
            (ReadinessFacts { listeners: 0, ..well() }, &["no address to listen on"]),
            (
                ReadinessFacts { listeners: 0, not_listening: vec!["eth7:1".into()], ..well() },
                &["no address to listen on matches eth7:1"],
            ),
            (ReadinessFacts { not_listening: vec!["eth7:1".into()], ..well() }, &[]),
            (
                ReadinessFacts { stopping: true, gateway_error: refused(), ..well() },
                &["stopping", "the gateway accepts no connection: connection refused"],
            ),
            (
                ReadinessFacts { orphaned: true, ..well() },
                &["the container that owns this network namespace does not run"],
            ),
            (ReadinessFacts { certificate_valid: false, ..well() }, &["the certificate is not valid now"]),
            (ReadinessFacts { certificate_problem: Some("disk full".into()), ..well() }, &[]),
            (
                ReadinessFacts { certificate_valid: false, certificate_problem: Some("disk full".into()), ..well() },
                &["the certificate is not valid now: disk full"],
            ),
        ];
        for (facts, expected) in table {
            assert_eq!(why_not_ready(&facts), expected, "{facts:?}");
        }
    }
}

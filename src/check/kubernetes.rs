//! Findings about the connection to the Kubernetes API server.

use super::catalogue as kind;
use super::finding::{Remedy, Report};

/// The state of the API server, as the probe observed it.
#[derive(Clone, Debug)]
pub struct ApiServerState {
    /// The API server's address as a URL.
    pub api: String,
    /// Why loopgate can't watch pods; `None` if it can.
    pub error: Option<String>,
    /// The errors of the requests that loopgate needs but the API server forbids.
    pub forbidden: Vec<String>,
}

/// Adds the findings about the API server.
pub fn judge(state: &ApiServerState, report: &mut Report) {
    for forbidden_request in &state.forbidden {
        let remedy = "bind the role that this finding names to the pod's service account; charts/loopgate does so with \
                      agents.discovery=kubernetes, and with agents.attested";
        report.add_finding(&kind::KUBERNETES_FORBIDDEN, forbidden_request.clone(), Remedy::in_words(remedy));
    }
    match &state.error {
        None => report.add_passed("kubernetes", format!("{} is followed", state.api)),
        Some(_) if !state.forbidden.is_empty() => {}
        Some(error) => {
            let remedy = "project the service account's token, ca.crt and namespace into the pod, and let it reach the \
                          API server (NetworkPolicy)";
            report.add_finding(
                &kind::KUBERNETES_UNREACHABLE,
                format!("{}: {error}", state.api),
                Remedy::in_words(remedy),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_found() {
        let well = || ApiServerState { api: "https://10.0.0.1:443".into(), error: None, forbidden: Vec::new() };
        let (lost, forbidden) = (|| Some("no answer".to_owned()), || vec!["forbidden (403): list pods".to_owned()]);
        let table: [(ApiServerState, &[&str]); 4] = [
            (well(), &[]),
            (ApiServerState { error: lost(), ..well() }, &["kubernetes-unreachable"]),
            (ApiServerState { error: lost(), forbidden: forbidden(), ..well() }, &["kubernetes-forbidden"]),
            (ApiServerState { forbidden: forbidden(), ..well() }, &["kubernetes-forbidden"]),
        ];
        for (state, expected) in table {
            let mut report = Report::default();
            judge(&state, &mut report);
            assert_eq!(report.ids(), expected, "{state:?}");
        }
    }
}

//! Findings about the running sidecar, from its `/status`.

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::admin::status::Status;

/// Adds the findings about the running sidecar. `status` is its status, or the error if it could
/// not be asked.
pub fn judge(status: &Result<Status, String>, report: &mut Report) {
    if let Some(problem) = status.as_ref().ok().and_then(|status| status.config_problem.as_ref()) {
        let remedy = Remedy::in_words(
            "correct the named option; the sidecar reads the file again by itself, or at once with `loopgate reload`",
        );
        report.add_finding(&kind::CONFIG_PROBLEM, problem.clone(), remedy);
    }
    match status {
        Err(error) => {
            let remedy = Remedy::in_words("start it (loopgate run), or give its admin address with --admin");
            report.add_finding(&kind::SIDECAR_DOWN, error.clone(), remedy);
        }
        Ok(status) if status.ready => {
            let lanes = status.lanes;
            let listening = status.listening.join(" ");
            report.add_passed(
                "sidecar",
                format!("ready on {listening}, {} agent and {} external connections", lanes.agent, lanes.external),
            );
        }
        Ok(status) => {
            for reason in &status.not_ready {
                report.add_finding(
                    &kind::SIDECAR_NOT_READY,
                    reason.clone(),
                    Remedy::in_words("see the other findings and the sidecar's log"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::example;

    #[test]
    fn each_problem_in_the_status_is_a_finding() {
        let mut unready = example();
        unready.ready = false;
        unready.not_ready = vec!["stopping".into()];
        let mut misled = example();
        misled.config_problem = Some("gateway.adress: there is no such key".into());
        let table: [(Result<Status, String>, &[&str]); 4] = [
            (Ok(misled), &["config-problem"]),
            (Ok(example()), &[]),
            (Ok(unready), &["sidecar-not-ready"]),
            (Err("refused".into()), &["sidecar-down"]),
        ];
        for (status, expected) in table {
            let mut report = Report::default();
            judge(&status, &mut report);
            assert_eq!(report.ids(), expected);
        }
    }
}

//! Findings about the connection to the Docker Engine, and about its clock.

use std::time::Duration;

use super::catalogue as kind;
use super::finding::{Remedy, Report};

/// The state of the engine, as the probe observed it.
#[derive(Clone, Debug)]
pub struct EngineState {
    /// The engine's address as a URL; `None` if discovery through Docker is off.
    pub engine: Option<String>,
    /// Whether the address is that of a usual socket, because neither the configuration nor
    /// `DOCKER_HOST` names one.
    pub guessed: bool,
    /// The value of `DOCKER_HOST`, if it is set but the configuration names another engine.
    pub unused_docker_host: Option<String>,
    /// Whether the engine's socket does not exist.
    pub absent: bool,
    /// Why loopgate can't follow the engine's events; `None` if it can.
    pub error: Option<String>,
    /// The responses to the requests that loopgate needs.
    pub needed: Vec<PathStatus>,
    /// The response to a request that loopgate does not need.
    pub needless: Option<PathStatus>,
    /// The seconds by which the engine's clock is ahead of this one; negative if it is behind.
    /// `None` if it is not known.
    pub clock_ahead_seconds: Option<i64>,
}

/// The response to a request for a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStatus {
    /// The path, in the form that findings print.
    pub path: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// The text of the response, if it is a refusal.
    pub refusal: Option<String>,
}

/// The largest difference of the clocks that causes no finding.
const TOLERANCE: Duration = Duration::from_secs(30);

/// Adds the findings about the engine.
pub fn judge(state: &EngineState, report: &mut Report) {
    let Some(engine) = &state.engine else {
        return report.add_passed("docker", "discovery is off");
    };
    if let Some(host) = &state.unused_docker_host {
        let description = format!("DOCKER_HOST is {host}, while {engine} is configured and used");
        report.add_finding(
            &kind::DOCKER_HOST,
            description,
            Remedy::in_words("unset DOCKER_HOST, or set --docker auto, which uses it"),
        );
    }
    if let Some(error) = &state.error {
        let (kind, remedy) = if state.absent && state.guessed {
            (
                &kind::DOCKER_MISSING,
                "mount the directory of a filtered socket and name it by --docker unix://PATH, or set --docker off",
            )
        } else {
            let remedy = "mount the directory of the socket, let this user (65532 in loopgate's image) use it \
                          (group_add), name another engine by --docker, or set --docker off";
            (&kind::DOCKER_UNREACHABLE, remedy)
        };
        return report.add_finding(kind, format!("{engine}: {error}"), Remedy::in_words(remedy));
    }
    report.add_passed("docker", format!("{engine} is followed"));
    judge_filter(state, report);
    judge_clock(state.clock_ahead_seconds, report);
}

/// Adds the findings about the filter before the socket: what it refuses, and what it lets through.
fn judge_filter(state: &EngineState, report: &mut Report) {
    for answer in state.needed.iter().filter(|answer| (400..500).contains(&answer.status)) {
        let reason = answer
            .refusal
            .as_deref()
            .filter(|reason| !reason.is_empty())
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        let description = format!("GET {} is answered {}{reason}", answer.path, answer.status);
        let remedy = "permit exactly that path, for GET, in the socket's filter; or correct what the answer says, if \
                      it is the engine's own";
        report.add_finding(&kind::DOCKER_FORBIDDEN, description, Remedy::in_words(remedy));
    }
    match &state.needless {
        // The engine itself responded. 400 is its response to a query without a file name.
        Some(PathStatus { path, status: status @ (400 | 200..300), .. }) => {
            let description = format!(
                "GET {path} gets through to the engine ({status}), which returns any file of any container on it"
            );
            let remedy = "put a filter before the socket that permits exact paths only, as docker/socket-filter does";
            report.add_finding(&kind::DOCKER_WIDE, description, Remedy::in_words(remedy));
        }
        Some(PathStatus { status: 400.., .. }) => {
            report.add_passed("docker", "it refuses the request that was tried and that loopgate does not need")
        }
        _ => {}
    }
}

/// Adds the finding about a clock of the Docker host that is `ahead_seconds` ahead of this one;
/// `None` if that is not known.
fn judge_clock(ahead_seconds: Option<i64>, report: &mut Report) {
    match ahead_seconds {
        Some(seconds) if seconds.unsigned_abs() > TOLERANCE.as_secs() => {
            let description = format!(
                "the Docker host's clock is {} s {}",
                seconds.abs(),
                if seconds > 0 { "ahead" } else { "behind" }
            );
            report.add_finding(&kind::CLOCK, description, Remedy::in_words("let both hosts set their clocks by NTP"));
        }
        Some(_) => report.add_passed("clock", "it agrees with the Docker host's"),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_found() {
        let needless = |status| Some(PathStatus { path: "/containers/{id}/archive", status, refusal: None });
        let needed =
            |status, text: &str| PathStatus { path: "/containers/{id}/top", status, refusal: Some(text.into()) };
        let well = || EngineState {
            engine: Some("unix:///run/docker.sock".into()),
            guessed: false,
            unused_docker_host: None,
            absent: false,
            error: None,
            needed: vec![PathStatus { path: "/containers/json", status: 200, refusal: None }],
            needless: needless(403),
            clock_ahead_seconds: Some(-2),
        };
        let lost = || Some("no socket".to_owned());
        let table: [(EngineState, &[&str]); 14] = [
            (well(), &[]),
            (EngineState { engine: None, error: lost(), ..well() }, &[]),
            (EngineState { error: lost(), absent: true, guessed: true, ..well() }, &["docker-missing"]),
            (EngineState { error: lost(), absent: true, ..well() }, &["docker-unreachable"]),
            (EngineState { error: lost(), guessed: true, ..well() }, &["docker-unreachable"]),
            (EngineState { unused_docker_host: Some("tcp://h:1".into()), ..well() }, &["docker-host-unused"]),
            (EngineState { needed: vec![needed(403, "")], ..well() }, &["docker-forbidden"]),
            (
                EngineState { needed: vec![needed(400, "client version 1.24 is too old")], ..well() },
                &["docker-forbidden"],
            ),
            (EngineState { needless: needless(400), ..well() }, &["docker-too-wide"]),
            (EngineState { needless: needless(200), ..well() }, &["docker-too-wide"]),
            (EngineState { needless: needless(404), ..well() }, &[]),
            (EngineState { needless: None, ..well() }, &[]),
            (EngineState { clock_ahead_seconds: Some(-31), ..well() }, &["clock-skew"]),
            (EngineState { clock_ahead_seconds: Some(3600), ..well() }, &["clock-skew"]),
        ];
        for (state, expected) in table {
            let mut report = Report::default();
            judge(&state, &mut report);
            assert_eq!(report.ids(), expected, "{state:?}");
            let texts = || report.findings.iter().flat_map(|finding| &finding.seen);
            let refusal = |answer: &PathStatus| answer.refusal.clone().unwrap_or_default();
            assert!(
                state
                    .needed
                    .iter()
                    .all(|answer| answer.status < 400 || texts().any(|text| text.contains(&refusal(answer)))),
                "{state:?}"
            );
        }
    }
}

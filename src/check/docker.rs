//! Judges the way to the Docker Engine, and its clock.

use std::time::Duration;

use super::catalogue as kind;
use super::finding::{Remedy, Report};

/// What was seen of the engine.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where it is, as a URL; `None` where discovery by Docker is off.
    pub engine: Option<String>,
    /// Whether its place was only guessed (`--docker auto`).
    pub guessed: bool,
    /// Whether there is no socket.
    pub absent: bool,
    /// Why it can't be followed.
    pub error: Option<String>,
    /// What each request of loopgate's was answered.
    pub needed: Vec<Answer>,
    /// What a request was answered that loopgate doesn't need.
    pub needless: Option<Answer>,
    /// How far the engine's clock is from this one, in seconds; positive where the engine's is ahead.
    pub ahead: Option<i64>,
}

/// How a request was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The path.
    pub path: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// Clocks may differ by that much.
const TOLERANCE: Duration = Duration::from_secs(30);

/// Judges all of it.
pub fn judge(seen: &Seen, report: &mut Report) {
    let Some(engine) = &seen.engine else {
        return report.fine("docker", "discovery is off");
    };
    if let Some(error) = &seen.error {
        let (kind, remedy) = if seen.absent && seen.guessed {
            (&kind::DOCKER_MISSING, "mount the directory of a filtered socket and name it by --docker unix://PATH, or say --docker off")
        } else {
            (&kind::DOCKER_UNREACHABLE, "mount the directory of the socket, let this user use it (group_add), or say --docker off")
        };
        return report.find(kind, format!("{engine}: {error}"), Remedy::words(remedy));
    }
    report.fine("docker", format!("{engine} is followed"));
    for answer in seen.needed.iter().filter(|answer| matches!(answer.status, 401 | 403 | 405)) {
        let what = format!("GET {} is answered {}", answer.path, answer.status);
        report.find(&kind::DOCKER_FORBIDDEN, what, Remedy::words("permit exactly that path, for GET, in the socket's filter"));
    }
    match &seen.needless {
        // The engine itself misses the file's name.
        Some(Answer { path, status: status @ (400 | 200..300) }) => {
            let what = format!("GET {path} gets through to the engine ({status}), which hands out any file of any container by it");
            let remedy = "put a filter before the socket that permits exact paths only, as docker/socket-filter does";
            report.find(&kind::DOCKER_WIDE, what, Remedy::words(remedy));
        }
        Some(Answer { status: 400.., .. }) => report.fine("docker", "it permits no more than it has to, as far as was tried"),
        _ => {}
    }
    match seen.ahead {
        Some(ahead) if ahead.unsigned_abs() > TOLERANCE.as_secs() => {
            let what = format!("the Docker host's clock is {} s {}", ahead.abs(), if ahead > 0 { "ahead" } else { "behind" });
            report.find(&kind::CLOCK, what, Remedy::words("let both hosts set their clocks by NTP"));
        }
        Some(_) => report.fine("clock", "it agrees with the Docker host's"),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_found() {
        let needless = |status| Some(Answer { path: "/containers/{id}/archive", status });
        let well = || Seen {
            engine: Some("unix:///run/docker.sock".into()),
            guessed: false,
            absent: false,
            error: None,
            needed: vec![Answer { path: "/containers/json", status: 200 }],
            needless: needless(403),
            ahead: Some(-2),
        };
        let lost = || Some("no socket".to_owned());
        let table: [(Seen, &[&str]); 12] = [
            (well(), &[]),
            (Seen { engine: None, error: lost(), ..well() }, &[]),
            (Seen { error: lost(), absent: true, guessed: true, ..well() }, &["docker-missing"]),
            (Seen { error: lost(), absent: true, ..well() }, &["docker-unreachable"]),
            (Seen { error: lost(), guessed: true, ..well() }, &["docker-unreachable"]),
            (Seen { needed: vec![Answer { path: "/containers/{id}/top", status: 403 }], ..well() }, &["docker-forbidden"]),
            (Seen { needless: needless(400), ..well() }, &["docker-too-wide"]),
            (Seen { needless: needless(200), ..well() }, &["docker-too-wide"]),
            (Seen { needless: needless(404), ..well() }, &[]),
            (Seen { needless: None, ..well() }, &[]),
            (Seen { ahead: Some(-31), ..well() }, &["clock-skew"]),
            (Seen { ahead: Some(3600), ..well() }, &["clock-skew"]),
        ];
        for (seen, expected) in table {
            let mut report = Report::default();
            judge(&seen, &mut report);
            assert_eq!(report.ids(), expected, "{seen:?}");
        }
    }
}

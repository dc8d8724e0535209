//! What loopgate is held to.

use serde::Serialize;

use crate::peer::Peer;
use crate::results::Results;
use crate::scenario::Scenario;

const L7: &[Peer] = &[Peer::Nginx, Peer::Haproxy, Peer::Caddy, Peer::Traefik];
const ALL: &[Peer] = &[Peer::Nginx, Peer::Haproxy, Peer::HaproxyTcp, Peer::Caddy, Peer::Traefik];

/// At most so much.
enum Limit {
    /// So many times what the best of these has.
    Times(f64, &'static [Peer]),
    /// So much, absolutely.
    Most(f64),
}

use Limit::{Most, Times};

const GOALS: &[(Scenario, &str, Limit)] = &[
    (Scenario::H1, "CPU µs/request", Times(0.95, &[Peer::Nginx, Peer::Haproxy])),
    (Scenario::H1Lat, "p50 µs", Times(1.0, &[Peer::Nginx])),
    (Scenario::H2, "CPU µs/request", Times(1.10, &[Peer::Haproxy])),
    (Scenario::H2, "CPU µs/request", Times(0.80, &[Peer::Nginx])),
    (Scenario::HsFull, "CPU µs/handshake", Times(1.05, &[Peer::NullTls])),
    (Scenario::HsResumed, "CPU µs/handshake", Times(1.05, &[Peer::NullTls])),
    (Scenario::Ws, "CPU µs/echo", Times(0.92, L7)),
    (Scenario::WsLat, "p50 µs", Times(1.0, L7)),
    (Scenario::WsBulk, "CPU µs/MiB", Times(0.86, ALL)),
    (Scenario::Down, "CPU µs/MiB", Times(0.85, ALL)),
    (Scenario::Up, "CPU µs/MiB", Times(0.85, ALL)),
    (Scenario::Sse, "CPU µs/event", Times(0.95, L7)),
    (Scenario::Idle, "KiB each, new", Most(15.0)),
    (Scenario::Idle, "KiB each, after 64 KiB", Most(17.0)),
    (Scenario::Idle, "CPU ms/s, quiet", Most(0.5)),
    (Scenario::Stall, "KiB each", Most(50.0)),
    (Scenario::Start, "ms to the first answer", Most(12.0)),
    (Scenario::Start, "PSS KiB at rest", Most(5120.0)),
    (Scenario::Start, "MiB of program and libraries", Most(6.0)),
    (Scenario::AttackChains, "times a handshake, worst chain", Most(3.0)),
    (Scenario::AttackChains, "agent p99 ms", Most(100.0)),
    (Scenario::AttackUnread, "agent p99 ms", Most(100.0)),
    (Scenario::AttackUnread, "outsider p99 ms", Most(1000.0)),
    (Scenario::AttackUnread, "MiB more", Most(64.0)),
    (Scenario::AttackUnread, "MiB more, backend", Most(300.0)),
    (Scenario::AttackSlow, "agent p99 ms", Most(100.0)),
    (Scenario::AttackSlow, "outsider p99 ms", Most(1000.0)),
    (Scenario::AttackSlow, "MiB more", Most(64.0)),
    (Scenario::AttackSlow, "MiB more, backend", Most(300.0)),
    (Scenario::AttackUploads, "MiB more", Most(64.0)),
    (Scenario::AttackConnections, "agent p99 ms", Most(100.0)),
    (Scenario::AttackConnections, "outsider p99 ms", Most(1000.0)),
];

/// How loopgate stands to one goal.
#[derive(Debug, Serialize)]
pub struct Verdict {
    scenario: Scenario,
    measure: &'static str,
    goal: String,
    found: f64,
    reached: bool,
}

/// The goals that `results` say something about.
pub fn judge(results: &Results) -> Vec<Verdict> {
    let verdict = |(scenario, measure, limit): &(Scenario, &'static str, Limit)| {
        let (goal, found, most) = match limit {
            Most(most) => (format!("<= {most}"), results.median(*scenario, Peer::Loopgate, measure)?, *most),
            Times(most, peers) => {
                let medians = peers.iter().filter_map(|peer| Some((*peer, results.median(*scenario, *peer, measure)?)));
                let (best, _) = medians.min_by(|(_, one), (_, other)| one.total_cmp(other))?;
                let ratio = results.ratio(*scenario, best, measure)?;
                (format!("<= {most:.2} x {}", best.name()), 1.0 / ratio, *most)
            }
        };
        Some(Verdict { scenario: *scenario, measure, goal, found, reached: found <= most })
    };
    GOALS.iter().filter_map(verdict).collect()
}

/// `verdicts` as a table.
pub fn table(verdicts: &[Verdict]) -> String {
    let mut table = "| scenario | measure | goal | loopgate | |\n|---|---|---|---:|---|\n".to_owned();
    for Verdict { scenario, measure, goal, found, reached } in verdicts {
        let word = if *reached { "reached" } else { "MISSED" };
        table +=
            &format!("| {} | {measure} | {goal} | {} | {word} |\n", scenario.name(), crate::results::digits(*found));
    }
    table
}

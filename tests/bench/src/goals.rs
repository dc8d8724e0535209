//! The goals of loopgate, and whether the results reach them.

use serde::Serialize;

use crate::peer::Peer;
use crate::results::{Results, digits};
use crate::scenario::Scenario;

const PROXIES: &[Peer] = &[Peer::Nginx, Peer::Haproxy, Peer::Caddy, Peer::Traefik];

/// The highest value that reaches a goal.
#[derive(Clone, Copy)]
enum Limit {
    /// This many times the best proxy's value.
    Times(f64),
    /// The best proxy's value, and this much more for noise.
    Best(f64),
    /// This value, whatever other proxies have.
    Most(f64),
}

use Limit::{Best, Most, Times};

/// A measure of a scenario, and its limits for the shipped build and for the plain build.
type Goal = (Scenario, &'static str, Limit, Limit);

const GOALS: &[Goal] = &[
    (Scenario::H1, "CPU µs/request", Times(0.85), Times(0.95)),
    (Scenario::H1Lat, "p50 µs", Times(0.97), Times(0.97)),
    (Scenario::H2, "CPU µs/request", Times(0.75), Times(0.85)),
    (Scenario::HsFull, "CPU µs/handshake", Times(0.60), Times(0.70)),
    (Scenario::HsResumed, "CPU µs/handshake", Times(0.60), Times(0.70)),
    (Scenario::Ws, "CPU µs/echo", Times(0.85), Times(0.90)),
    (Scenario::WsLat, "p50 µs", Times(1.0), Times(1.0)),
    (Scenario::WsBulk, "CPU µs/MiB", Times(1.0), Times(1.0)),
    (Scenario::Down, "CPU µs/MiB", Times(1.0), Times(1.0)),
    (Scenario::Up, "CPU µs/MiB", Times(0.95), Times(0.95)),
    (Scenario::Sse, "CPU µs/event", Times(0.95), Times(0.95)),
    (Scenario::Idle, "KiB each, new", Most(15.0), Most(15.0)),
    (Scenario::Idle, "KiB each, after 64 KiB", Most(17.0), Most(17.0)),
    (Scenario::Idle, "CPU ms/s, quiet", Most(0.1), Most(0.1)),
    (Scenario::Stall, "KiB each", Most(50.0), Most(50.0)),
    (Scenario::Start, "ms to the first answer", Times(0.5), Times(0.5)),
    (Scenario::Start, "PSS KiB at rest", Most(4096.0), Most(4096.0)),
    (Scenario::Start, "MiB of program and libraries", Most(7.0), Most(7.0)),
    (Scenario::AttackChains, "times a handshake, worst chain", Most(3.0), Most(3.0)),
    (Scenario::AttackUnread, "MiB more", Most(64.0), Most(64.0)),
    (Scenario::AttackUnread, "MiB more, backend", Most(300.0), Most(300.0)),
    (Scenario::AttackSlow, "MiB more", Most(64.0), Most(64.0)),
    (Scenario::AttackSlow, "MiB more, backend", Most(300.0), Most(300.0)),
    (Scenario::AttackUploads, "MiB more", Most(64.0), Most(64.0)),
];

/// The goals for every attack: loopgate is as good as the best proxy, and an agent waits at most
/// 100 ms.
const GOALS_OF_ATTACKS: [(&str, Limit); 7] = [
    ("agent p50 ms", Best(0.2)),
    ("agent p99 ms", Best(2.0)),
    ("agent p99 ms", Most(100.0)),
    ("outsider p99 ms", Best(2.0)),
    ("CPU ms/s", Best(10.0)),
    ("MiB more", Best(1.0)),
    ("MiB more, backend", Best(1.0)),
];

/// Whether a build of loopgate reaches one goal.
#[derive(Debug, Serialize)]
pub struct Verdict {
    scenario: Scenario,
    measure: &'static str,
    build: Peer,
    goal: String,
    found: f64,
    reached: bool,
}

/// Judges the goals whose measures are in `results`.
pub fn judge(results: &Results) -> Vec<Verdict> {
    let of_attacks = Scenario::ATTACKS
        .into_iter()
        .flat_map(|scenario| GOALS_OF_ATTACKS.map(|(measure, limit)| -> Goal { (scenario, measure, limit, limit) }));
    let goals = GOALS.iter().copied().chain(of_attacks);
    goals
        .flat_map(|(scenario, measure, shipped, plain)| {
            [(Peer::Loopgate, shipped), (Peer::LoopgatePlain, plain)].map(|(build, limit)| {
                let (goal, found, most) = goal_and_value(limit, results, scenario, build, measure)?;
                Some(Verdict { scenario, measure, build, goal, found, reached: found <= most })
            })
        })
        .flatten()
        .collect()
}

/// Returns the goal in words, the value that was found, and the limit of this value.
fn goal_and_value(
    limit: Limit,
    results: &Results,
    scenario: Scenario,
    build: Peer,
    measure: &str,
) -> Option<(String, f64, f64)> {
    let own = results.median(scenario, build, measure)?;
    let best = || {
        let medians = PROXIES.iter().filter_map(|peer| Some((*peer, results.median(scenario, *peer, measure)?)));
        medians.min_by(|(_, one), (_, other)| one.total_cmp(other))
    };
    match limit {
        Most(most) => Some((format!("<= {most}"), own, most)),
        Best(noise) => {
            let (best, other) = best()?;
            Some((format!("<= {} ({})", digits(other + noise), best.name()), own, other + noise))
        }
        Times(most) => {
            let (best, _) = best()?;
            let ratio = results.ratio(scenario, best, build, measure)?;
            Some((format!("<= {most:.2} x {}", best.name()), ratio.median, most))
        }
    }
}

/// Returns `verdicts` as a table.
pub fn table(verdicts: &[Verdict]) -> String {
    let mut table = "| scenario | measure | build | goal | found | |\n|---|---|---|---|---:|---|\n".to_owned();
    for Verdict { scenario, measure, build, goal, found, reached } in verdicts {
        let word = if *reached { "reached" } else { "MISSED" };
        let (scenario, build, found) = (scenario.name(), build.name(), digits(*found));
        table += &format!("| {scenario} | {measure} | {build} | {goal} | {found} | {word} |\n");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Sample;

    #[test]
    fn each_build_has_its_own_goal() {
        let mut results = Results::default();
        let values = [(Peer::Loopgate, 9.0), (Peer::LoopgatePlain, 9.0), (Peer::Nginx, 11.0), (Peer::Haproxy, 10.0)];
        for (peer, value) in values {
            results.add(Scenario::H1, peer, 0, Sample::new(vec![("CPU µs/request", value)], 0));
        }
        let verdicts = judge(&results);
        let found: Vec<_> = verdicts.iter().map(|verdict| (verdict.build, verdict.reached)).collect();
        assert_eq!(found, [(Peer::Loopgate, false), (Peer::LoopgatePlain, true)]);
        assert!(table(&verdicts).contains("| h1 | CPU µs/request | loopgate | <= 0.85 x haproxy | 0.90 | MISSED |"));
    }

    #[test]
    fn an_attack_may_cost_no_more_than_the_best_proxy() {
        for (own, other, reached) in [(0.0, 0.0, true), (1.1, 1.0, true), (1.0, 2.0, true), (1.3, 1.0, false)] {
            let mut results = Results::default();
            for (peer, value) in [(Peer::Loopgate, own), (Peer::Nginx, other)] {
                results.add(Scenario::AttackSlow, peer, 0, Sample::new(vec![("agent p50 ms", value)], 0));
            }
            let [verdict] = &judge(&results)[..] else { panic!("one goal") };
            assert_eq!(verdict.reached, reached, "{own} beside {other}");
        }
    }
}

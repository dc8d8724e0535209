//! Samples of a run, their medians and ratios, as a table and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::peer::Peer;
use crate::scenario::{Sample, Scenario};

/// Everything that was measured, in the order of measuring.
#[derive(Debug, Default)]
pub struct Results {
    /// By round; what is missing could not be measured.
    samples: BTreeMap<(Scenario, Peer), Vec<(usize, Sample)>>,
    /// Why it could not be.
    missing: BTreeMap<(Scenario, Peer), String>,
}

impl Results {
    /// Adds what `round` gave.
    pub fn add(&mut self, scenario: Scenario, peer: Peer, round: usize, sample: Sample) {
        self.samples.entry((scenario, peer)).or_default().push((round, sample));
    }

    /// Notes that there is no sample, and why.
    pub fn miss(&mut self, scenario: Scenario, peer: Peer, why: String) {
        self.missing.insert((scenario, peer), why);
    }

    /// Says whether everything that was begun was measured.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    fn values(&self, scenario: Scenario, peer: Peer, measure: &str) -> BTreeMap<usize, f64> {
        let samples = self.samples.get(&(scenario, peer)).into_iter().flatten();
        let value =
            |sample: &Sample| sample.measures.iter().find(|(name, _)| *name == measure).map(|(_, value)| *value);
        samples.filter_map(|(round, sample)| Some((*round, value(sample)?))).collect()
    }

    /// The median over all rounds.
    pub fn median(&self, scenario: Scenario, peer: Peer, measure: &str) -> Option<f64> {
        median(self.values(scenario, peer, measure).into_values().collect())
    }

    /// How many times loopgate's value `peer` has: the median over the rounds of the ratio within a
    /// round, which the machine's own ups and downs touch least.
    pub fn ratio(&self, scenario: Scenario, peer: Peer, measure: &str) -> Option<f64> {
        let own = self.values(scenario, Peer::Loopgate, measure);
        let others = self.values(scenario, peer, measure);
        median(
            others
                .iter()
                .filter_map(|(round, other)| Some(other / own.get(round)?))
                .filter(|ratio| ratio.is_finite())
                .collect(),
        )
    }

    /// Failed connections and requests of all rounds.
    pub fn failed(&self, scenario: Scenario, peer: Peer) -> u64 {
        self.samples.get(&(scenario, peer)).into_iter().flatten().map(|(_, sample)| sample.failed).sum()
    }

    fn scenarios(&self) -> Vec<Scenario> {
        let mut all: Vec<_> = self.samples.keys().map(|(scenario, _)| *scenario).collect();
        all.dedup();
        all
    }

    fn peers(&self) -> Vec<Peer> {
        let mut all: Vec<_> = self.samples.keys().map(|(_, peer)| *peer).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn measures(&self, scenario: Scenario) -> Vec<&'static str> {
        let mut names = Vec::new();
        for ((_, _), samples) in self.samples.iter().filter(|((of, _), _)| *of == scenario) {
            for (name, _) in samples.iter().flat_map(|(_, sample)| &sample.measures) {
                if !names.contains(name) {
                    names.push(name);
                }
            }
        }
        names
    }

    /// A table in Markdown: medians, and in brackets how many times loopgate's that is.
    pub fn table(&self) -> String {
        let peers = self.peers();
        let mut table = String::from("| scenario | measure |");
        table.extend(peers.iter().map(|peer| format!(" {} |", peer.name())));
        table += "\n|---|---|";
        table.extend(peers.iter().map(|_| "---:|"));
        for scenario in self.scenarios() {
            for measure in self.measures(scenario) {
                table += &format!("\n| {} | {measure} |", scenario.name());
                table.extend(peers.iter().map(|peer| format!(" {} |", self.cell(scenario, *peer, measure))));
            }
            table += &format!("\n| {} | failed |", scenario.name());
            let failed = |peer: &Peer| {
                if self.samples.contains_key(&(scenario, *peer)) {
                    self.failed(scenario, *peer).to_string()
                } else {
                    "–".into()
                }
            };
            table.extend(peers.iter().map(|peer| format!(" {} |", failed(peer))));
        }
        table + "\n"
    }

    fn cell(&self, scenario: Scenario, peer: Peer, measure: &str) -> String {
        let Some(median) = self.median(scenario, peer, measure) else { return "–".into() };
        match self.ratio(scenario, peer, measure) {
            Some(ratio) if peer != Peer::Loopgate => format!("{} ({ratio:.2})", digits(median)),
            _ => digits(median),
        }
    }

    /// All samples, medians and ratios.
    pub fn json(&self) -> Value {
        let mut all = Vec::new();
        for ((scenario, peer), samples) in &self.samples {
            for measure in self.measures(*scenario) {
                let values = self.values(*scenario, *peer, measure);
                if values.is_empty() {
                    continue;
                }
                all.push(json!({
                    "scenario": scenario,
                    "peer": peer,
                    "measure": measure,
                    "median": self.median(*scenario, *peer, measure),
                    "times_loopgate": self.ratio(*scenario, *peer, measure),
                    "samples": values,
                }));
            }
            all.push(json!({ "scenario": scenario, "peer": peer, "measure": "failed", "rounds": samples.len(),
                "sum": self.failed(*scenario, *peer) }));
        }
        let missing: Vec<_> = self
            .missing
            .iter()
            .map(|((scenario, peer), why)| json!({ "scenario": scenario, "peer": peer, "why": why }))
            .collect();
        json!({ "measured": all, "missing": missing })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| !value.is_nan());
    values.sort_by(f64::total_cmp);
    let (below, above) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*below, *above))
}

/// `value` with as many digits as mean something.
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: f64) -> Sample {
        Sample { measures: vec![("µs", value)], failed: 1 }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut results = Results::default();
        // The machine was ten times slower in the second round, for both.
        for (round, own, other) in [(0, 1.0, 2.0), (1, 10.0, 20.0), (2, 1.0, 3.0)] {
            results.add(Scenario::H1, Peer::Loopgate, round, sample(own));
            results.add(Scenario::H1, Peer::Nginx, round, sample(other));
        }
        assert_eq!(results.median(Scenario::H1, Peer::Nginx, "µs"), Some(3.0));
        assert_eq!(results.ratio(Scenario::H1, Peer::Nginx, "µs"), Some(2.0));
        assert_eq!(results.ratio(Scenario::H1, Peer::Caddy, "µs"), None);
        assert_eq!(results.failed(Scenario::H1, Peer::Nginx), 3);
        assert!(results.table().contains("| h1 | µs | 1.00 | 3.00 (2.00) |"), "{}", results.table());
    }

    #[test]
    fn medians() {
        for (values, expected) in
            [(vec![], None), (vec![3.0], Some(3.0)), (vec![4.0, 1.0], Some(2.5)), (vec![9.0, 1.0, 2.0], Some(2.0))]
        {
            assert_eq!(median(values), expected);
        }
    }
}

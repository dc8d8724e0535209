//! Samples of a run, their medians and ratios, as a table and as JSON.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::peer::Peer;
use crate::scenario::{Sample, Scenario};

/// Everything that was measured, in the order of measuring.
#[derive(Debug, Default)]
pub struct Results {
    /// The samples with their rounds. A round that could not be measured has none.
    samples: BTreeMap<(Scenario, Peer), Vec<(usize, Sample)>>,
    /// Why a side could not be measured.
    missing: BTreeMap<(Scenario, Peer), String>,
}

/// The median, the lowest and the highest of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median over the rounds.
    pub median: f64,
    /// The lowest value of a round.
    pub lowest: f64,
    /// The highest value of a round.
    pub highest: f64,
}

impl Spread {
    /// Returns the spread of the finite `values`; `None` if there are none.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|value| value.is_finite());
        let (lowest, highest) = (values.iter().copied().reduce(f64::min)?, values.iter().copied().reduce(f64::max)?);
        Some(Self { median: median(values)?, lowest, highest })
    }

    /// Returns the lowest and the highest value with two decimal places.
    pub fn range(&self) -> String {
        format!("{:.2}–{:.2}", self.lowest, self.highest)
    }
}

impl Results {
    /// Adds the sample of `round`.
    pub fn add(&mut self, scenario: Scenario, peer: Peer, round: usize, sample: Sample) {
        self.samples.entry((scenario, peer)).or_default().push((round, sample));
    }

    /// Records why there is no sample.
    pub fn miss(&mut self, scenario: Scenario, peer: Peer, why: String) {
        self.missing.insert((scenario, peer), why);
    }

    /// Returns whether nothing failed to be measured.
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

    /// The median over all rounds, and their range.
    pub fn spread(&self, scenario: Scenario, peer: Peer, measure: &str) -> Option<Spread> {
        Spread::of(self.values(scenario, peer, measure).into_values().collect())
    }

    /// Returns the ratio of the value of `peer` to that of `base`. It is taken within each round,
    /// so that changes of the machine's speed affect it little.
    pub fn ratio(&self, scenario: Scenario, base: Peer, peer: Peer, measure: &str) -> Option<Spread> {
        let own = self.values(scenario, base, measure);
        let others = self.values(scenario, peer, measure);
        Spread::of(others.iter().filter_map(|(round, other)| Some(other / own.get(round)?)).collect())
    }

    /// Returns the number of failed connections and requests of all rounds.
    pub fn failed(&self, scenario: Scenario, peer: Peer) -> u64 {
        self.samples.get(&(scenario, peer)).into_iter().flatten().map(|(_, sample)| sample.failed).sum()
    }

    fn scenarios(&self) -> Vec<Scenario> {
        let mut scenarios: Vec<_> = self.samples.keys().map(|(scenario, _)| *scenario).collect();
        scenarios.dedup();
        scenarios
    }

    /// Returns the sides of which `scenario` was measured.
    pub fn peers_of(&self, scenario: Scenario) -> Vec<Peer> {
        self.samples.keys().filter(|(of, _)| *of == scenario).map(|(_, peer)| *peer).collect()
    }

    fn peers(&self, scenarios: &[Scenario]) -> Vec<Peer> {
        let mut peers: Vec<_> = scenarios.iter().flat_map(|scenario| self.peers_of(*scenario)).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// Returns the names of the measures of `scenario`.
    pub fn measures(&self, scenario: Scenario) -> Vec<&str> {
        let mut names = Vec::new();
        for ((_, _), samples) in self.samples.iter().filter(|((of, _), _)| *of == scenario) {
            for (name, _) in samples.iter().flat_map(|(_, sample)| &sample.measures) {
                if !names.contains(&name.as_ref()) {
                    names.push(name.as_ref());
                }
            }
        }
        names
    }

    /// Returns a table in Markdown: medians, and in brackets their ratio to loopgate's, with the
    /// lowest and the highest ratio of a round.
    pub fn table(&self) -> String {
        self.table_of(&self.scenarios())
    }

    /// Returns the same table for these scenarios.
    pub fn table_of(&self, scenarios: &[Scenario]) -> String {
        let peers = self.peers(scenarios);
        let mut table = String::from("| scenario | measure |");
        table.extend(peers.iter().map(|peer| format!(" {} |", peer.name())));
        table += "\n|---|---|";
        table.extend(peers.iter().map(|_| "---:|"));
        for scenario in scenarios.iter().filter(|scenario| !self.peers_of(**scenario).is_empty()) {
            for measure in self.measures(*scenario) {
                table += &format!("\n| {} | {measure} |", scenario.name());
                table.extend(peers.iter().map(|peer| format!(" {} |", self.cell(*scenario, *peer, measure))));
            }
            table += &format!("\n| {} | failed |", scenario.name());
            let failed = |peer: &Peer| {
                if self.samples.contains_key(&(*scenario, *peer)) {
                    self.failed(*scenario, *peer).to_string()
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
        let base = self.peers_of(scenario).first().copied().filter(|base| base.is_loopgate() && *base != peer);
        match base.and_then(|base| self.ratio(scenario, base, peer, measure)) {
            Some(ratio) if self.values(scenario, peer, measure).len() > 1 => {
                format!("{} ({:.2}; {})", digits(median), ratio.median, ratio.range())
            }
            Some(ratio) => format!("{} ({:.2})", digits(median), ratio.median),
            None => digits(median),
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
                let times = |base| self.ratio(*scenario, base, *peer, measure).map(|ratio| ratio.median);
                all.push(json!({
                    "scenario": scenario,
                    "peer": peer,
                    "measure": measure,
                    "median": self.median(*scenario, *peer, measure),
                    "times_loopgate": times(Peer::Loopgate),
                    "times_loopgate_plain": times(Peer::LoopgatePlain),
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

    /// Adds the results of another run, as [`Results::json`] returned them. Ratios are taken within
    /// the rounds of one run only.
    ///
    /// # Errors
    /// `run` has another form, or is from another version of this program.
    pub fn add_json(&mut self, run: &Value) -> Result<(), String> {
        let after = self.samples.values().flatten().map(|(round, _)| round + 1).max().unwrap_or(0);
        let mut samples = BTreeMap::<(Scenario, Peer, usize), Sample>::new();
        for measured in run["measured"].as_array().ok_or("no measurements")? {
            let text = |key: &str| measured[key].as_str().ok_or_else(|| format!("no {key} in {measured}"));
            let scenario = Scenario::from_str(text("scenario")?, false)?;
            let peer = Peer::from_str(text("peer")?, false)?;
            if let Some(sum) = measured["sum"].as_u64() {
                samples.entry((scenario, peer, after)).or_default().failed += sum;
                continue;
            }
            let measure = text("measure")?.to_owned();
            for (round, value) in measured["samples"].as_object().ok_or_else(|| format!("no samples in {measured}"))? {
                let round: usize = round.parse().map_err(|_| format!("round {round}"))?;
                // JSON has no infinity and no NaN.
                let value = value.as_f64().unwrap_or(f64::NAN);
                samples.entry((scenario, peer, after + round)).or_default().add([(measure.clone(), value)]);
            }
        }
        for ((scenario, peer, round), sample) in samples {
            self.add(scenario, peer, round, sample);
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| !value.is_nan());
    values.sort_by(f64::total_cmp);
    let (below, above) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*below, *above))
}

/// Returns `value` with two decimal places, with one from 10 on, and with none from 100 on.
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
        Sample::new(vec![("µs", value)], 1)
    }

    /// Three rounds. In the second one, the machine was ten times slower for both sides.
    fn three_rounds() -> Results {
        let mut results = Results::default();
        for (round, own, other) in [(0, 1.0, 2.0), (1, 10.0, 20.0), (2, 1.0, 3.0)] {
            results.add(Scenario::H1, Peer::Loopgate, round, sample(own));
            results.add(Scenario::H1, Peer::Nginx, round, sample(other));
        }
        results
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let results = three_rounds();
        assert_eq!(results.median(Scenario::H1, Peer::Nginx, "µs"), Some(3.0));
        let ratio = results.ratio(Scenario::H1, Peer::Loopgate, Peer::Nginx, "µs");
        assert_eq!(ratio, Some(Spread { median: 2.0, lowest: 2.0, highest: 3.0 }));
        assert_eq!(results.ratio(Scenario::H1, Peer::Loopgate, Peer::Caddy, "µs"), None);
        assert_eq!(results.failed(Scenario::H1, Peer::Nginx), 3);
        let expected = "| h1 | µs | 1.00 | 3.00 (2.00; 2.00–3.00) |";
        assert!(results.table().contains(expected), "{}", results.table());
    }

    #[test]
    fn the_first_build_of_a_scenario_is_the_base_of_its_ratios() {
        let mut results = Results::default();
        for (scenario, peer, value) in [
            (Scenario::H1, Peer::Loopgate, 2.0),
            (Scenario::H1, Peer::LoopgatePlain, 3.0),
            (Scenario::H1, Peer::Nginx, 4.0),
            (Scenario::Ws, Peer::LoopgatePlain, 4.0),
            (Scenario::Ws, Peer::Nginx, 2.0),
        ] {
            results.add(scenario, peer, 0, sample(value));
        }
        for expected in ["| h1 | µs | 2.00 | 3.00 (1.50) | 4.00 (2.00) |", "| ws | µs | – | 4.00 | 2.00 (0.50) |"] {
            assert!(results.table().contains(expected), "{}", results.table());
        }
    }

    #[test]
    fn results_read_from_json_equal_the_written_ones() {
        let mut read = Results::default();
        read.add_json(&three_rounds().json()).unwrap();
        assert_eq!(read.json(), three_rounds().json());
        // A second run adds its own rounds.
        read.add_json(&three_rounds().json()).unwrap();
        assert_eq!(read.values(Scenario::H1, Peer::Nginx, "µs").len(), 6);
        assert_eq!(read.failed(Scenario::H1, Peer::Nginx), 6);
        for wrong in [json!({}), json!({ "measured": [{ "scenario": "h9", "peer": "nginx" }] })] {
            assert!(read.add_json(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_median_is_the_middle_value_or_the_mean_of_the_two_middle_ones() {
        for (values, expected) in
            [(vec![], None), (vec![3.0], Some(3.0)), (vec![4.0, 1.0], Some(2.5)), (vec![9.0, 1.0, 2.0], Some(2.0))]
        {
            assert_eq!(median(values), expected);
        }
    }
}

//! A run: every scenario, the sides in turn, and what comes of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::backend::Backend;
use crate::goals;
use crate::peer::{Peer, Programs, Surroundings, free_address};
use crate::results::Results;
use crate::scenario::scale;
use crate::scenario::{Extent, Scenario};
use crate::stated::{self, Rows};
use crate::tls::Certificate;

/// Files that a side needs besides two for each connection.
const OTHER_FILES: u64 = 600;

/// What to compare, and how.
#[derive(Parser)]
pub struct Compare {
    /// What to measure; everything by default.
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// Whom to measure; everybody by default.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// How many times; the sides take turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of a window.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Idle WebSockets, if there may be as many open files.
    #[arg(long, default_value_t = 9000)]
    idle: usize,
    /// Worker threads or processes of each side.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Where to write all samples.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A document with a table of measurements, such as docs/comparison.md: fail where loopgate is now more than 15 % worse
    /// beside the best peer.
    #[arg(long)]
    stated: Option<PathBuf>,
    /// loopgate as it is shipped: compiled with the profile of docker/profile.sh. Without this file it is left out.
    #[arg(long)]
    loopgate: Option<PathBuf>,
    /// loopgate as `cargo build --release` makes it. Without this file it is left out.
    #[arg(long)]
    loopgate_plain: Option<PathBuf>,
    /// Other programs, if they are not on the path.
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    #[arg(long, default_value = "haproxy")]
    haproxy: PathBuf,
    #[arg(long, default_value = "caddy")]
    caddy: PathBuf,
    #[arg(long, default_value = "traefik")]
    traefik: PathBuf,
}

impl Compare {
    /// Measures, prints tables, and writes the samples.
    ///
    /// # Errors
    /// Nothing could be measured, or something that should be measured could not.
    pub async fn run(mut self) -> io::Result<()> {
        if self.scenarios.is_empty() {
            self.scenarios = Scenario::value_variants().to_vec();
        }
        if self.peers.is_empty() {
            self.peers = Peer::value_variants().to_vec();
        }
        for (peer, file) in [(Peer::Loopgate, &self.loopgate), (Peer::LoopgatePlain, &self.loopgate_plain)] {
            if file.is_none() && self.peers.contains(&peer) {
                println!("{} is left out: there is no such build", peer.name());
                self.peers.retain(|other| *other != peer);
            }
        }
        if self.peers.is_empty() {
            return Err(io::Error::other("nothing to measure: --loopgate or --loopgate-plain names a build"));
        }
        let files = raise_file_limit()?;
        let affordable = usize::try_from(files.saturating_sub(OTHER_FILES) / 2).unwrap_or(usize::MAX);
        let extent = Extent { time: Duration::from_secs_f64(self.seconds), idle: self.idle.min(affordable), round: 0 };
        let directory = tempfile::tempdir()?;
        let backend = Backend::start(free_address()?)?;
        let around = Surroundings {
            programs: self.programs(),
            certificate: Certificate::make(directory.path())?,
            directory: directory.path().to_owned(),
            backend: backend.address,
            workers: self.workers,
        };
        let before = machine();
        let results = self.measure(&around, extent).await;
        let verdicts = goals::judge(&results);
        let versions: serde_json::Map<_, _> =
            self.peers.iter().filter_map(|peer| Some((peer.name(), peer.version(&around.programs)?.into()))).collect();
        for (peer, version) in &versions {
            println!("{peer}: {}", version.as_str().unwrap_or_default());
        }
        println!();
        println!("{}", results.table());
        println!(
            "In brackets: how many times the first build's, and the lowest and highest of a round. {} rounds, {} \
             workers, windows of {} s.\n",
            self.rounds, self.workers, self.seconds
        );
        println!("{}", goals::table(&verdicts));
        println!("{}", stated::table(&results, Rows::All));
        println!("{}", scale::report(&results));
        if let Some(file) = &self.json {
            let mut all = json!({
                "machine": before,
                "load_at_the_end": load(),
                "versions": versions,
                "rounds": self.rounds,
                "seconds": self.seconds,
                "workers": self.workers,
                "idle": extent.idle,
                "goals": verdicts,
            });
            if let (Some(all), serde_json::Value::Object(results)) = (all.as_object_mut(), results.json()) {
                all.extend(results);
            }
            fs::write(file, format!("{all:#}\n"))?;
        }
        if !results.is_complete() {
            return Err(io::Error::other("not everything could be measured"));
        }
        self.stated.as_deref().map_or(Ok(()), |document| hold_to(document, &results))
    }

    async fn measure(&self, around: &Surroundings, extent: Extent) -> Results {
        let mut results = Results::default();
        for scenario in &self.scenarios {
            for round in 0..self.rounds {
                for peer in self.turns(round).into_iter().filter(|peer| scenario.suits(*peer)) {
                    eprintln!("{} {}/{} {} (load {})", scenario.name(), round + 1, self.rounds, peer.name(), load());
                    match scenario.measure(peer, around, Extent { round, ..extent }).await {
                        Ok(sample) => results.add(*scenario, peer, round, sample),
                        Err(error) => {
                            eprintln!("    not measured: {error}");
                            results.miss(*scenario, peer, error.to_string());
                        }
                    }
                }
            }
        }
        results
    }

    /// Each round begins with another side, and every second one goes backwards.
    fn turns(&self, round: usize) -> Vec<Peer> {
        let mut turns = self.peers.clone();
        turns.rotate_left(round % self.peers.len());
        if round % 2 == 1 {
            turns.reverse();
        }
        turns
    }

    fn programs(&self) -> Programs {
        Programs {
            loopgate: self.loopgate.as_deref().map(find),
            loopgate_plain: self.loopgate_plain.as_deref().map(find),
            nginx: find(&self.nginx),
            haproxy: find(&self.haproxy),
            caddy: find(&self.caddy),
            traefik: find(&self.traefik),
        }
    }
}

/// Prints how `results` stand to the table in `document`.
///
/// # Errors
/// A row is worse than stated, or the table can't be read.
fn hold_to(document: &Path, results: &Results) -> io::Result<()> {
    let named = |error| io::Error::other(format!("{}: {error}", document.display()));
    let text = fs::read_to_string(document).map_err(|error| named(error.to_string()))?;
    let (report, good) = stated::compare(&text, results).map_err(named)?;
    println!("{report}");
    if good { Ok(()) } else { Err(named("loopgate is slower or larger beside the best peer than this says".into())) }
}

/// The whole path of `program`, since the sides run in a directory of their own; a bare name is
/// looked up on the search path. What is not found stays as it is, and fails when it is to be
/// started.
fn find(program: &Path) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&paths).map(|directory| directory.join(program));
    let found =
        if program.components().count() > 1 { Some(program.to_owned()) } else { places.find(|place| place.is_file()) };
    found.and_then(|place| fs::canonicalize(place).ok()).unwrap_or_else(|| program.to_owned())
}

/// As many open files as may be, for this process and for those that it starts.
fn raise_file_limit() -> io::Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

fn machine() -> serde_json::Value {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = cpus
        .lines()
        .filter_map(|line| Some(line.strip_prefix("model name")?.trim_start_matches([' ', '\t', ':'])))
        .collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({ "cpus": models.len(), "model": models.first(), "kernel": kernel.trim(), "load": load() })
}

//! The command `compare`: measures every scenario with the sides in turn, and prints and writes the
//! results.

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

/// The file descriptors that a side needs besides two for each connection.
const OTHER_FILES: u64 = 600;

/// What to compare, and how.
#[derive(Parser)]
pub struct Compare {
    /// The scenarios to measure; all by default.
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// The sides to measure; all by default.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// The number of rounds, in each of which every side is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The length of a window of measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// The number of idle WebSockets, or fewer if the limit on open files does not allow as many.
    #[arg(long, default_value_t = 9000)]
    idle: usize,
    /// Worker threads or processes of each side.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// The file to which all samples are written.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A document with a table of measurements, such as docs/comparison.md: fail if loopgate,
    /// compared with the best peer, is more than 15 % worse than stated there.
    #[arg(long)]
    stated: Option<PathBuf>,
    /// The shipped build of loopgate, compiled with the profile of docker/profile.sh. Without it,
    /// this side is left out.
    #[arg(long)]
    loopgate: Option<PathBuf>,
    /// The build of `cargo build --release`. Without it, this side is left out.
    #[arg(long)]
    loopgate_plain: Option<PathBuf>,
    /// The program of nginx, if it is not in PATH.
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// The program of HAProxy, if it is not in PATH.
    #[arg(long, default_value = "haproxy")]
    haproxy: PathBuf,
    /// The program of Caddy, if it is not in PATH.
    #[arg(long, default_value = "caddy")]
    caddy: PathBuf,
    /// The program of Traefik, if it is not in PATH.
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
            "In brackets: the ratio to the first build, and the lowest and highest ratio of a round. {} rounds, {} \
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
        self.stated.as_deref().map_or(Ok(()), |document| compare_with_document(document, &results))
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

    /// Returns the order of the sides in `round`. Each round begins with another side, and every
    /// second round has the reverse order.
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

/// Compares `results` with the table in `document`, and prints the comparison.
///
/// # Errors
/// A row is worse than stated, or the table can't be read.
fn compare_with_document(document: &Path, results: &Results) -> io::Result<()> {
    let named = |error| io::Error::other(format!("{}: {error}", document.display()));
    let text = fs::read_to_string(document).map_err(|error| named(error.to_string()))?;
    let (report, good) = stated::compare(&text, results).map_err(named)?;
    println!("{report}");
    if good {
        Ok(())
    } else {
        Err(named("loopgate, compared with the best peer, is slower or larger than stated here".into()))
    }
}

/// Returns the absolute path of `program`, because the sides run in another directory. A bare name
/// is looked up in PATH. A program that is not found is returned unchanged, and fails when it is
/// started.
fn find(program: &Path) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&paths).map(|directory| directory.join(program));
    let found =
        if program.components().count() > 1 { Some(program.to_owned()) } else { places.find(|place| place.is_file()) };
    found.and_then(|place| fs::canonicalize(place).ok()).unwrap_or_else(|| program.to_owned())
}

/// Raises the soft limit on open files to the hard limit, for this process and its children;
/// returns the limit.
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

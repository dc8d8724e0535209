//! The cost of a request, of a new connection and of an idle connection when loopgate has more to
//! do or to hold.
//!
//! Each change is compared with its base: both run at the same time, and get windows of load in
//! turn, so that changes of the machine's speed affect both.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::fleet::{Namespace, known, scrape};
use super::{Extent, Sample, Scenario, http, idle};
use crate::client::{Connection, head};
use crate::load::Window;
use crate::peer::{Options, Peer, Running, Surroundings, free_address};
use crate::results::{Results, Spread, digits};

/// The number of windows of each side.
const TURNS: usize = 2;
/// The highest ratio to the base that counts as no growth.
const FLAT: f64 = 1.05;
/// The number of clients that send requests over keep-alive connections.
const REQUESTING: usize = 64;
/// The number of clients that open a new connection for each request.
const CONNECTING: usize = 16;
/// The interval at which the metrics are read.
const SCRAPES: Duration = Duration::from_secs(1);

const REQUEST: &str = "CPU µs/request";
const CONNECTION: &str = "CPU µs/connection";
const IDLE: &str = "KiB/idle connection";
/// The prefix of the names of ratios.
const RATIO: &str = "ratio, ";
const GROWTH_OF_REQUESTS: &str = "growth of a request by a worker";
const GROWTH_OF_CONNECTIONS: &str = "growth of a connection by a worker";
const ACCEPTING: &str = "share of the accepting thread";

/// A difference between two loopgate processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Idle(usize),
    Workers(usize),
    Agents(usize),
    PathRules(usize),
    AccessLog(bool),
    Scraped(bool),
}

use Change::{AccessLog, Agents, Idle, PathRules, Scraped, Workers};

/// Returns the comparisons: each begins with its base, and the changes follow.
fn axes(idle: usize) -> Vec<Vec<Change>> {
    let mut connections = vec![Idle(100)];
    connections.extend([1000, 9000].map(|count| Idle(idle.min(count))));
    connections.dedup();
    vec![
        connections,
        vec![Workers(1), Workers(2)],
        vec![Agents(0), Agents(100), Agents(3000)],
        vec![PathRules(0), PathRules(200)],
        vec![AccessLog(false), AccessLog(true)],
        vec![Scraped(false), Scraped(true)],
    ]
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |f: &mut fmt::Formatter<'_>, count: usize, what: &str| match count {
            0 => write!(f, "no {what}s"),
            1 => write!(f, "1 {what}"),
            _ => write!(f, "{count} {what}s"),
        };
        match *self {
            Idle(count) => counted(f, count, "idle connection"),
            Workers(count) => counted(f, count, "worker"),
            Agents(count) => counted(f, count, "agent"),
            PathRules(count) => counted(f, count, "path rule"),
            AccessLog(on) => f.write_str(if on { "access log" } else { "no access log" }),
            Scraped(on) => f.write_str(if on { "metrics read each second" } else { "metrics not read" }),
        }
    }
}

pub(super) async fn measure(
    peer: Peer,
    around: &Surroundings,
    config: &Arc<ClientConfig>,
    extent: Extent,
) -> io::Result<Sample> {
    let mut sample = Sample::default();
    for changes in axes(extent.idle) {
        let mut sides = Vec::new();
        for (number, change) in changes.iter().enumerate() {
            sides.push(Side::start(*change, number, peer, around, config).await?);
        }
        for turn in 0..TURNS {
            let mut order: Vec<_> = sides.iter_mut().collect();
            if (turn + extent.round) % 2 == 1 {
                order.reverse();
            }
            for side in order {
                side.take_turn(extent.time).await?;
            }
        }
        report_sides(&sides, &mut sample);
    }
    Ok(sample)
}

/// Adds the measures of each side, and their ratios to the first side's.
fn report_sides(sides: &[Side], sample: &mut Sample) {
    let base = &sides[0];
    for side in sides {
        sample.failed += side.failed;
        for (measure, value) in side.measures() {
            sample.add([(format!("{measure}, {}", side.change), value)]);
        }
    }
    for side in &sides[1..] {
        for ((measure, value), (_, base_value)) in side.measures().into_iter().zip(base.measures()) {
            let name = format!("{RATIO}{measure}, {} to {}", side.change, base.change);
            sample.add([(name, value / base_value)]);
        }
    }
    if let [one, two] = sides
        && two.change == Workers(2)
    {
        sample.add([
            (GROWTH_OF_REQUESTS, two.requests.each() / one.requests.each() - 1.0),
            (GROWTH_OF_CONNECTIONS, two.connections.each() / one.connections.each() - 1.0),
            (ACCEPTING, two.accepting.as_secs_f64() / two.connections.cpu.as_secs_f64()),
        ]);
    }
}

/// CPU time, and the units of work that were done in it.
#[derive(Default)]
struct Cost {
    units: u64,
    cpu: Duration,
}

impl Cost {
    fn add(&mut self, window: &Window) {
        self.units += window.units;
        self.cpu += window.cpu;
    }

    /// Returns the CPU time of a unit of work, in microseconds.
    fn each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.units as f64
    }
}

/// A loopgate process with a change, and its costs so far.
struct Side {
    change: Change,
    running: Running,
    admin: Option<SocketAddr>,
    requests: Cost,
    connections: Cost,
    /// CPU time of the thread that accepts connections, in the same windows as `connections`.
    accepting: Duration,
    /// The memory of each idle connection, in KiB.
    each_idle: Option<f64>,
    failed: u64,
    // These are held for as long as the process is measured.
    idle: Rc<RefCell<Vec<Connection>>>,
    _pods: Option<Namespace>,
}

impl Side {
    async fn start(
        change: Change,
        number: usize,
        peer: Peer,
        around: &Surroundings,
        config: &Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let pods = if let Agents(count) = change { Some(Namespace::with(count)) } else { None };
        let admin = if matches!(change, Agents(_) | Scraped(_)) { Some(free_address()?) } else { None };
        let mut options = pods.as_ref().map_or_else(
            || Options { number, admin, arguments: words(&["--docker", "off"]), ..Options::default() },
            |pods| pods.followed(number, admin),
        );
        if pods.is_none() {
            // The lines of the access log have this level.
            let level = if matches!(change, AccessLog(_)) { "info" } else { "warn" };
            options.arguments.extend(words(&["--log-level", level]));
        }
        options.arguments.extend(words(&[
            "--max-connections=20000",
            "--max-connections-per-client=20000",
            "--gateway-requests=100000",
            "--idle-timeout=1h",
        ]));
        match change {
            Workers(count) => options.workers = Some(count),
            PathRules(count @ 1..) => {
                let file = around.directory.join("path-rules.toml");
                let rule = |number| format!("[[external.paths]]\ndeny = \"/closed/{number}/\"\n");
                fs::write(&file, (0..count).map(rule).collect::<String>())?;
                options.arguments.extend(["--config".into(), file.into()]);
            }
            AccessLog(true) => options.arguments.extend(words(&["--access-log"])),
            _ => {}
        }
        let running = around.start_with(&options, peer, config).await?;
        if let (Agents(count), Some(admin)) = (change, admin) {
            known(admin, count).await?;
        }
        let mut side = Self {
            change,
            running,
            admin,
            requests: Cost::default(),
            connections: Cost::default(),
            accepting: Duration::ZERO,
            each_idle: None,
            failed: 0,
            idle: Rc::default(),
            _pods: pods,
        };
        if let Idle(count) = change {
            side.open(count).await?;
        }
        Ok(side)
    }

    /// Opens connections that send one request each and are then idle, and records their memory.
    async fn open(&mut self, count: usize) -> io::Result<()> {
        let tree = self.running.tree.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        // The first requests come before the measurement, so that their cost does not count for the
        // connections. There is only one client, because the idle connections would reuse the
        // memory of more.
        self.failed += http::drive_requests(&self.running, Duration::from_millis(400), 1).await.failed;
        sleep(idle::SETTLE).await;
        let before = tree.memory()?;
        let (target, open) = (self.running.target.clone(), Rc::clone(&self.idle));
        self.failed += idle::all(count, move |_| {
            let (target, open) = (target.clone(), Rc::clone(&open));
            async move {
                let mut connection = target.connect().await?;
                connection.exchange(&head("GET", "/", "")).await?;
                open.borrow_mut().push(connection);
                Ok(())
            }
        })
        .await;
        sleep(idle::SETTLE).await;
        let open = self.idle.borrow().len() as f64;
        self.each_idle = Some(tree.memory()?.saturating_sub(before) as f64 / 1024.0 / open);
        Ok(())
    }

    /// Measures a window of requests, and a window of connections.
    async fn take_turn(&mut self, time: Duration) -> io::Result<()> {
        // The window is at least as long as the interval of the scrapes.
        let time = if matches!(self.change, Scraped(_)) { time.max(SCRAPES) } else { time };
        let tree = self.running.tree.clone().ok_or(io::ErrorKind::Unsupported)?;
        let window = {
            let _scraping = self.scrape();
            http::drive_requests(&self.running, time, REQUESTING).await
        };
        self.requests.add(&window);
        self.failed += window.failed;
        let (cpu, accepting) = (tree.cpu(), tree.main_thread_cpu()?);
        let (window, _) = {
            let _scraping = self.scrape();
            http::drive_handshakes(&self.running, time, CONNECTING, false).await
        };
        // These CPU times include the warm-up, but the share of the accepting thread is the same in
        // it.
        let share = (tree.main_thread_cpu()? - accepting).as_secs_f64() / (tree.cpu() - cpu).as_secs_f64();
        self.accepting += window.cpu.mul_f64(share);
        self.connections.add(&window);
        self.failed += window.failed;
        Ok(())
    }

    /// Reads the metrics each second until the returned value is dropped, if that is the change.
    fn scrape(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        if let (Scraped(true), Some(admin)) = (self.change, self.admin) {
            tasks.spawn_local(async move {
                let mut ticks = interval(SCRAPES);
                loop {
                    ticks.tick().await;
                    if let Err(error) = scrape(admin).await {
                        eprintln!("    no metrics: {error}");
                    }
                }
            });
        }
        tasks
    }

    fn measures(&self) -> Vec<(&'static str, f64)> {
        let mut measures = vec![(REQUEST, self.requests.each()), (CONNECTION, self.connections.each())];
        measures.extend(self.each_idle.map(|each| (IDLE, each)));
        measures
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// Returns the ratios in `results` as a table, which of them are too high, and the estimated cost
/// with more workers; empty if the scenario was not measured.
pub fn report(results: &Results) -> String {
    let builds = results.peers_of(Scenario::Scale);
    let mut report = String::new();
    for build in &builds {
        report += &report_build(results, *build);
    }
    report
}

/// Returns a sentence about the changes that cost the first build more than [`FLAT`] times their
/// base; empty if the scenario was not measured.
pub fn summary(results: &Results) -> String {
    let Some(build) = results.peers_of(Scenario::Scale).first().copied() else { return String::new() };
    let above: Vec<_> = ratios(results, build)
        .filter(|(_, ratio)| ratio.median > FLAT)
        .map(|(what, ratio)| format!("{what} ({:.2} times)", ratio.median))
        .collect();
    let measured = "Idle connections, workers, agents, path rules, an access log and reads of the metrics each cost a \
                    request, a connection and an idle connection at most 5 % more";
    match &above[..] {
        [] => format!("{measured}."),
        above => format!("{measured}, except: {}.", above.join("; ")),
    }
}

/// Returns the names of the changes and their ratios to the base.
fn ratios(results: &Results, build: Peer) -> impl Iterator<Item = (&str, Spread)> {
    results
        .measures(Scenario::Scale)
        .into_iter()
        .filter_map(move |name| Some((name.strip_prefix(RATIO)?, results.spread(Scenario::Scale, build, name)?)))
}

fn report_build(results: &Results, build: Peer) -> String {
    let mut report = format!("| {} | times its base | lowest and highest | |\n|---|---:|---:|---|\n", build.name());
    let mut above = Vec::new();
    for (what, ratio) in ratios(results, build) {
        let word = if ratio.median > FLAT { "OVER 1.05" } else { "" };
        if ratio.median > FLAT {
            above.push(what);
        }
        report += &format!("| {what} | {:.2} | {} | {word} |\n", ratio.median, ratio.range());
    }
    report += &match &above[..] {
        [] => format!("\n{}: nothing is over {FLAT}.\n", build.name()),
        above => format!("\n{}: over {FLAT}: {}.\n", build.name(), above.join("; ")),
    };
    let median = |name| results.median(Scenario::Scale, build, name);
    for (what, name) in [("request", GROWTH_OF_REQUESTS), ("connection", GROWTH_OF_CONNECTIONS)] {
        if let Some(growth) = median(name) {
            report += &format!(
                "A {what} takes 1 + g (n - 1) times the CPU time of one worker with n workers; g = {growth:.3} is \
                 measured with 2, so it takes {} with 4 and {} with 8.\n",
                digits(at_workers(growth, 4)),
                digits(at_workers(growth, 8)),
            );
        }
    }
    if let Some(share) = median(ACCEPTING) {
        report += &format!(
            "One thread accepts all connections and has {share:.3} (a) of their CPU time: it is busy with the \
             connections of (1 - a) / a = {} workers.\n",
            digits((1.0 - share) / share),
        );
    }
    report + "\n"
}

/// Returns the ratio of the cost of a unit of work with `workers` to that with one worker, if the
/// cost grows by `growth` with each further worker. A negative `growth` is noise, and counts as
/// none.
fn at_workers(growth: f64, workers: u32) -> f64 {
    1.0 + growth.max(0.0) * f64::from(workers - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_cost_more_than_their_base_are_named() {
        let mut results = Results::default();
        for (round, log) in [(0, 1.09), (1, 1.07), (2, 1.02)] {
            let mut sample = Sample::default();
            sample.add([
                (format!("{RATIO}{REQUEST}, access log to no access log"), log),
                (format!("{RATIO}{REQUEST}, 200 path rules to no path rules"), 1.04),
                (format!("{REQUEST}, access log"), 10.0),
                (GROWTH_OF_REQUESTS.to_owned(), 0.02),
                (ACCEPTING.to_owned(), 0.05),
            ]);
            results.add(Scenario::Scale, Peer::LoopgatePlain, round, sample);
        }
        let report = report(&results);
        for line in [
            "| CPU µs/request, access log to no access log | 1.07 | 1.02–1.09 | OVER 1.05 |",
            "| CPU µs/request, 200 path rules to no path rules | 1.04 | 1.04–1.04 |  |",
            "loopgate-plain: over 1.05: CPU µs/request, access log to no access log.",
            "A request takes 1 + g (n - 1) times the CPU time of one worker with n workers; g = 0.020 is measured \
             with 2, so it takes 1.06 with 4 and 1.14 with 8.",
            "One thread accepts all connections and has 0.050 (a) of their CPU time: it is busy with the connections \
             of (1 - a) / a = 19.0 workers.",
        ] {
            assert!(report.lines().any(|other| other == line), "{line}\n{report}");
        }
        assert_eq!(report.matches("1.05").count(), 2, "{report}");
        let summary = summary(&results);
        assert!(summary.ends_with("except: CPU µs/request, access log to no access log (1.07 times)."), "{summary}");
    }

    #[test]
    fn there_are_no_more_idle_connections_than_files_permit() {
        assert_eq!(axes(9500)[0], [Idle(100), Idle(1000), Idle(9000)]);
        assert_eq!(axes(4000)[0], [Idle(100), Idle(1000), Idle(4000)]);
        assert_eq!(axes(500)[0], [Idle(100), Idle(500)]);
    }

    #[test]
    fn the_cost_grows_with_each_further_worker() {
        assert_eq!(at_workers(0.1, 1), 1.0);
        assert!((at_workers(0.1, 8) - 1.7).abs() < 1e-9);
        assert_eq!(at_workers(-0.1, 8), 1.0, "noise");
    }
}

//! The tables of README.md and docs/comparison.md: makes their rows from results, and compares
//! results with the values that the documents state.

use std::collections::BTreeMap;

use crate::peer::Peer;
use crate::results::{Results, digits};
use crate::scenario::Scenario;

/// The highest multiple of a stated ratio that counts as the same, because machines and runs
/// differ.
const TOLERANCE: f64 = 1.15;

/// A build is ahead of the best proxy if its value is less than this share of the proxy's.
const AHEAD: f64 = 0.995;

/// The columns of a table. One may be missing.
const COLUMNS: [(&str, Peer); 7] = [
    ("loopgate", Peer::Loopgate),
    ("plain build", Peer::LoopgatePlain),
    ("nginx", Peer::Nginx),
    ("HAProxy", Peer::Haproxy),
    ("Caddy", Peer::Caddy),
    ("Traefik", Peer::Traefik),
    ("bare loop", Peer::NullTls),
];

/// loopgate's own columns.
const BUILDS: [Peer; 2] = [Peer::Loopgate, Peer::LoopgatePlain];
/// The proxies with which a build is compared.
const PROXIES: [Peer; 4] = [Peer::Nginx, Peer::Haproxy, Peer::Caddy, Peer::Traefik];

/// A row: one measure of one scenario.
struct Row {
    label: &'static str,
    scenario: Scenario,
    measure: &'static str,
    /// Whether the ratio to the best proxy is compared. If not, the value itself is, because it is
    /// near zero.
    by_ratio: bool,
    /// The largest difference that counts as noise, in the unit of the measure.
    noise: f64,
    /// Whether README.md also has this row if loopgate is ahead in it.
    short: bool,
}

const fn row(label: &'static str, scenario: Scenario, measure: &'static str, noise: f64, short: bool) -> Row {
    Row { label, scenario, measure, by_ratio: true, noise, short }
}

/// The rows of the whole table.
const ROWS: [Row; 18] = [
    row("HTTP/1.1, 64 clients: CPU µs a request", Scenario::H1, "CPU µs/request", 0.0, true),
    row("HTTP/1.1, one client: p50 µs", Scenario::H1Lat, "p50 µs", 3.0, false),
    row("HTTP/2: CPU µs a request", Scenario::H2, "CPU µs/request", 0.0, true),
    row("full handshake: CPU µs", Scenario::HsFull, "CPU µs/handshake", 0.0, true),
    row("resumed handshake: CPU µs", Scenario::HsResumed, "CPU µs/handshake", 0.0, false),
    row("WebSocket echo: CPU µs", Scenario::Ws, "CPU µs/echo", 0.0, true),
    row("WebSocket echo, one client: p50 µs", Scenario::WsLat, "p50 µs", 3.0, false),
    row("WebSocket bulk: CPU µs a MiB", Scenario::WsBulk, "CPU µs/MiB", 0.0, false),
    row("download: CPU µs a MiB", Scenario::Down, "CPU µs/MiB", 0.0, false),
    row("upload: CPU µs a MiB", Scenario::Up, "CPU µs/MiB", 0.0, false),
    row("server-sent event: CPU µs", Scenario::Sse, "CPU µs/event", 0.0, false),
    row("idle WebSocket: KiB", Scenario::Idle, "KiB each, new", 1.0, true),
    row("idle WebSocket, after 64 KiB through it: KiB", Scenario::Idle, "KiB each, after 64 KiB", 1.0, false),
    Row {
        label: "5,000 idle WebSockets: CPU ms a second",
        scenario: Scenario::Idle,
        measure: "CPU ms/s, quiet",
        by_ratio: false,
        noise: 0.1,
        short: false,
    },
    row("stalled reader: KiB", Scenario::Stall, "KiB each", 2.0, false),
    row("exec to the first answer: ms", Scenario::Start, "ms to the first answer", 0.5, false),
    row("at rest: PSS KiB", Scenario::Start, "PSS KiB at rest", 256.0, false),
    row("program and libraries: MiB", Scenario::Start, "MiB of program and libraries", 0.0, false),
];

/// A row of a document: its label, and the value of each side that has one.
type StatedRow = (String, BTreeMap<Peer, f64>);

/// Which rows a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All that were measured.
    All,
    /// Those in which a build of loopgate is not ahead of every proxy.
    NotAhead,
    /// Those of [`Rows::NotAhead`], and then a few of those in which every build is ahead.
    Short,
}

/// Returns the rows that were measured as a Markdown table; empty if there are none.
pub fn table(results: &Results, rows: Rows) -> String {
    let is_measured =
        |row: &&Row| BUILDS.iter().any(|build| results.median(row.scenario, *build, row.measure).is_some());
    let measured: Vec<&Row> = ROWS.iter().filter(is_measured).collect();
    let (ahead, not_ahead): (Vec<&Row>, Vec<&Row>) = measured.iter().partition(|row| is_ahead(row, results));
    let chosen = match rows {
        Rows::All => measured,
        Rows::NotAhead => not_ahead,
        Rows::Short => not_ahead.into_iter().chain(ahead.into_iter().filter(|row| row.short)).collect(),
    };
    let line = |row: &Row| {
        let cells = COLUMNS.map(|(_, peer)| results.median(row.scenario, peer, row.measure));
        let cells = cells.map(|cell| format!(" {} |", cell.map_or_else(|| "–".into(), with_thousands)));
        format!("| {} |{}\n", row.label, cells.concat())
    };
    let lines: String = chosen.into_iter().map(line).collect();
    if lines.is_empty() {
        return lines;
    }
    let names = COLUMNS.map(|(name, _)| format!(" {name} |")).concat();
    format!("| |{names}\n|---|{}\n{lines}", "---:|".repeat(COLUMNS.len()))
}

/// Returns whether every build that was measured is ahead of every proxy.
fn is_ahead(row: &Row, results: &Results) -> bool {
    let median = |peer: &Peer| results.median(row.scenario, *peer, row.measure);
    let best = PROXIES.iter().filter_map(median).reduce(f64::min);
    best.is_some_and(|best| BUILDS.iter().filter_map(median).all(|own| own < best * AHEAD))
}

fn with_thousands(value: f64) -> String {
    let text = digits(value);
    match text.len().checked_sub(3).filter(|at| *at > 0 && !text.contains('.')) {
        Some(at) => format!("{},{}", &text[..at], &text[at..]),
        None => text,
    }
}

/// Compares `results` with the tables in `document`, for each build that was measured. Returns a
/// line for each row that was measured, and whether all rows are as good as stated.
///
/// A build is compared with the proxy that is best according to the document, of those that were
/// measured. A row is worse if the build's ratio to this proxy is more than 1.15 times the stated
/// ratio, and the difference is more than noise.
///
/// # Errors
/// The document has no such table, states nothing for a build that was measured, a row of it is
/// unknown, or a value is no number.
pub fn compare(document: &str, results: &Results) -> Result<(String, bool), String> {
    let mut report = String::from("| | build | beside | stated | now | |\n|---|---|---|---:|---:|---|\n");
    let (mut rows, mut good) = (0, true);
    let stated = read(document)?;
    for build in BUILDS {
        let mut of_build = 0;
        for (label, stated) in &stated {
            let row = ROWS.iter().find(|row| row.label == label).ok_or_else(|| format!("unknown row: {label}"))?;
            let measured = results.median(row.scenario, build, row.measure);
            let (Some(own), Some(now)) = (stated.get(&build), measured) else { continue };
            let (beside, stated, shown, most) = if row.by_ratio {
                let best =
                    best_by(stated, results, row).ok_or_else(|| format!("not measured beside a proxy: {label}"))?;
                let (stated, other) = (own / stated[&best], results.median(row.scenario, best, row.measure));
                let ratio = results.ratio(row.scenario, best, build, row.measure);
                let (Some(ratio), Some(other)) = (ratio, other) else { return Err(format!("no ratio: {label}")) };
                let noise = if other > 0.0 { row.noise / other } else { 0.0 };
                (best.name(), stated, ratio.median, stated * TOLERANCE + noise)
            } else {
                ("–".to_owned(), *own, now, own * TOLERANCE + row.noise)
            };
            let is_as_stated = shown <= most;
            (of_build, good) = (of_build + 1, good && is_as_stated);
            let word = if is_as_stated { "as stated" } else { "WORSE" };
            let (name, stated, shown) = (build.name(), digits(stated), digits(shown));
            report += &format!("| {label} | {name} | {beside} | {stated} | {shown} | {word} |\n");
        }
        let measured = ROWS.iter().any(|row| results.median(row.scenario, build, row.measure).is_some());
        if measured && of_build == 0 {
            return Err(format!("nothing is stated of {} that was measured", build.name()));
        }
        rows += of_build;
    }
    if rows == 0 { Err("no row of the table was measured".into()) } else { Ok((report, good)) }
}

/// Returns the proxy with the lowest stated value, of those that were measured.
fn best_by(stated: &BTreeMap<Peer, f64>, results: &Results, row: &Row) -> Option<Peer> {
    let measured = PROXIES.iter().filter_map(|peer| {
        let value = stated.get(peer).filter(|value| **value > 0.0)?;
        results.median(row.scenario, *peer, row.measure).map(|_| (*peer, *value))
    });
    measured.min_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(peer, _)| peer)
}

/// Returns the rows of the tables in `document` with their labels. A side without a value is left
/// out. If a row is in several tables, the first one counts.
fn read(document: &str) -> Result<Vec<StatedRow>, String> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let (mut rows, mut columns) = (Vec::<StatedRow>::new(), None::<Vec<Peer>>);
    for line in document.lines() {
        let cells = cells(line);
        match &columns {
            _ if !line.starts_with('|') => columns = None,
            None => columns = header(&cells),
            Some(_) if cells[0].starts_with("---") => {}
            Some(_) if rows.iter().any(|(label, _)| *label == cells[0]) => {}
            Some(columns) => {
                let values = columns.iter().zip(&cells[1..]).filter(|(_, cell)| *cell != "–");
                let values = values.map(|(peer, cell)| match cell.replace(',', "").parse::<f64>() {
                    Ok(value) if value >= 0.0 => Ok((*peer, value)),
                    _ => Err(format!("{}: {cell:?} is no measured value", cells[0])),
                });
                rows.push((cells[0].clone(), values.collect::<Result<_, String>>()?));
            }
        }
    }
    if rows.is_empty() { Err("no table of measurements".into()) } else { Ok(rows) }
}

/// Returns the columns of a table of measurements; `None` if `cells` are the header of another
/// table.
fn header(cells: &[String]) -> Option<Vec<Peer>> {
    let (first, names) = cells.split_first()?;
    let peer = |name: &String| COLUMNS.iter().find(|(column, _)| column == name).map(|(_, peer)| *peer);
    let peers: Vec<_> = names.iter().map(peer).collect::<Option<_>>()?;
    (first.is_empty() && peers.iter().any(|peer| peer.is_loopgate())).then_some(peers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Sample;

    const DOCUMENT: &str = "
| | loopgate | plain build | nginx | HAProxy | Caddy | Traefik | bare loop |
|---|---:|---:|---:|---:|---:|---:|---:|
| HTTP/1.1, 64 clients: CPU µs a request | 10.0 | 12.1 | 12.0 | 11.0 | 1,000 | 60 | 9 |

text

| | other | table |
|---|---|---|
| a | b | c |

| | loopgate | nginx | HAProxy |
|---|---:|---:|---:|
| HTTP/2: CPU µs a request | 11 | 14 | 11 |
| HTTP/1.1, one client: p50 µs | 10 | 10 | 11 |
| 5,000 idle WebSockets: CPU ms a second | 0.10 | 0.00 | 0.20 |
";

    fn add(results: &mut Results, scenario: Scenario, measure: &'static str, values: &[(Peer, f64)]) {
        for (peer, value) in values {
            results.add(scenario, *peer, 0, Sample::new(vec![(measure, *value)], 0));
        }
    }

    fn h1(values: &[(Peer, f64)]) -> Results {
        let mut results = Results::default();
        add(&mut results, Scenario::H1, "CPU µs/request", values);
        results
    }

    const OTHERS: [(Peer, f64); 2] = [(Peer::Nginx, 12.0), (Peer::Haproxy, 11.0)];

    #[test]
    fn a_row_is_worse_beyond_fifteen_percent_of_its_ratio_to_the_best_peer() {
        // The stated ratios are 10 to 11, and 12.1 to 11 for the plain build. The machine's speed
        // does not matter.
        for (build, own, stated, is_as_stated) in [
            (Peer::Loopgate, 10.0, "0.91", true),
            (Peer::Loopgate, 11.4, "0.91", true),
            (Peer::Loopgate, 11.6, "0.91", false),
            (Peer::LoopgatePlain, 13.8, "1.10", true),
            (Peer::LoopgatePlain, 14.0, "1.10", false),
        ] {
            for times in [1.0, 3.0] {
                let values = [(build, own), OTHERS[0], OTHERS[1]].map(|(peer, value)| (peer, value * times));
                let (report, good) = compare(DOCUMENT, &h1(&values)).unwrap();
                assert_eq!(good, is_as_stated, "{own}: {report}");
                assert!(report.contains(&format!("| {} | haproxy | {stated} |", build.name())), "{report}");
                assert_eq!(report.lines().count(), 3, "the other rows were not measured: {report}");
            }
        }
    }

    #[test]
    fn both_builds_are_compared_each_with_its_column() {
        let both = |plain| h1(&[(Peer::Loopgate, 10.0), (Peer::LoopgatePlain, plain), OTHERS[0], OTHERS[1]]);
        for (plain, is_as_stated) in [(12.1, true), (15.0, false)] {
            let (report, good) = compare(DOCUMENT, &both(plain)).unwrap();
            assert_eq!((good, report.lines().count()), (is_as_stated, 4), "{report}");
        }
    }

    #[test]
    fn noise_is_not_worse() {
        let own = |value| {
            let mut results = Results::default();
            let others = [(Peer::Loopgate, value), (Peer::Nginx, 10.0)];
            add(&mut results, Scenario::H1Lat, "p50 µs", &others);
            results
        };
        // The limit is 15 % and three microseconds more.
        for (value, is_as_stated) in [(14.4, true), (14.6, false)] {
            assert_eq!(compare(DOCUMENT, &own(value)).unwrap().1, is_as_stated, "{value}");
        }
        let quiet = |value| {
            let mut results = Results::default();
            add(&mut results, Scenario::Idle, "CPU ms/s, quiet", &[(Peer::Loopgate, value), (Peer::Nginx, 0.0)]);
            results
        };
        // The limit is 15 % and a tenth of a millisecond more, whatever nginx's value is.
        for (value, is_as_stated) in [(0.21, true), (0.22, false)] {
            assert_eq!(compare(DOCUMENT, &quiet(value)).unwrap().1, is_as_stated, "{value}");
        }
    }

    #[test]
    fn results_that_can_not_be_compared_are_an_error() {
        let all = h1(&[(Peer::Loopgate, 10.0), OTHERS[0], OTHERS[1]]);
        for (document, error) in [
            ("no table".to_owned(), "no table of measurements"),
            (DOCUMENT.replace("HTTP/1.1, 64", "HTTP/1.1, 65"), "unknown row: HTTP/1.1, 65 clients: CPU µs a request"),
            (
                DOCUMENT.replace("12.0", "twelve"),
                "HTTP/1.1, 64 clients: CPU µs a request: \"twelve\" is no measured value",
            ),
        ] {
            assert_eq!(compare(&document, &all).unwrap_err(), error);
        }
        assert_eq!(compare(DOCUMENT, &Results::default()).unwrap_err(), "no row of the table was measured");
        let alone = h1(&[(Peer::Loopgate, 1.0)]);
        let error = compare(DOCUMENT, &alone).unwrap_err();
        assert_eq!(error, "not measured beside a proxy: HTTP/1.1, 64 clients: CPU µs a request");
        let plain = h1(&[(Peer::LoopgatePlain, 10.0), OTHERS[0]]);
        let error = compare(&DOCUMENT.replace("12.1", "–"), &plain).unwrap_err();
        assert_eq!(error, "nothing is stated of loopgate-plain that was measured");
    }

    #[test]
    fn a_written_table_can_be_read() {
        let written = table(&h1(&[(Peer::Loopgate, 1234.0), (Peer::LoopgatePlain, 9.5), OTHERS[0]]), Rows::All);
        assert!(
            written.contains("| HTTP/1.1, 64 clients: CPU µs a request | 1,234 | 9.50 | 12.0 | – | – | – | – |"),
            "{written}"
        );
        let read = read(&written).unwrap();
        assert_eq!((read.len(), read[0].1[&Peer::Loopgate]), (1, 1234.0));
    }

    #[test]
    fn a_row_is_ahead_if_both_builds_are() {
        for (own, plain, ahead) in
            [(10.0, 10.9, true), (10.0, 11.0, false), (10.0, 12.0, false), (11.5, 10.0, false), (10.0, 10.99, false)]
        {
            let results = h1(&[(Peer::Loopgate, own), (Peer::LoopgatePlain, plain), OTHERS[0], OTHERS[1]]);
            let not_ahead = table(&results, Rows::NotAhead).lines().count();
            assert_eq!(not_ahead, if ahead { 0 } else { 3 }, "{own} {plain}");
        }
    }

    #[test]
    fn the_short_table_begins_with_the_rows_in_which_a_proxy_is_ahead() {
        let mut results = h1(&[(Peer::Loopgate, 10.0), OTHERS[0]]);
        add(&mut results, Scenario::H2, "CPU µs/request", &[(Peer::Loopgate, 20.0), OTHERS[0]]);
        add(&mut results, Scenario::Up, "CPU µs/MiB", &[(Peer::Loopgate, 1.0), OTHERS[0]]);
        let short = table(&results, Rows::Short);
        let labels: Vec<_> = short.lines().skip(2).map(|line| line.split('|').nth(1).unwrap().trim()).collect();
        assert_eq!(labels, ["HTTP/2: CPU µs a request", "HTTP/1.1, 64 clients: CPU µs a request"]);
    }

    #[test]
    fn a_row_in_two_tables_counts_once() {
        let again = DOCUMENT.replace("10.0", "99.0");
        let read = read(&format!("{DOCUMENT}\ntext\n{again}")).unwrap();
        assert_eq!((read.len(), read[0].1[&Peer::Loopgate]), (4, 10.0));
    }

    #[test]
    fn the_documents_have_known_rows_only() {
        for document in [include_str!("../../../README.md"), include_str!("../../../docs/comparison.md")] {
            for (label, _) in read(document).unwrap_or_else(|error| panic!("{error}")) {
                assert!(ROWS.iter().any(|row| row.label == label), "{label}");
            }
        }
    }
}

//! The table of the README: its rows as measured now, and whether they are as good as it says.

use std::collections::BTreeMap;

use crate::peer::Peer;
use crate::results::{Results, digits};
use crate::scenario::Scenario;

/// How many times the stated ratio is still the same: machines and runs differ.
const TOLERANCE: f64 = 1.15;

/// The columns of the table.
const COLUMNS: [(&str, Peer); 6] = [
    ("loopgate", Peer::Loopgate),
    ("nginx", Peer::Nginx),
    ("HAProxy", Peer::Haproxy),
    ("Caddy", Peer::Caddy),
    ("Traefik", Peer::Traefik),
    ("bare loop", Peer::NullTls),
];

/// The rows of the table: each is one measure of one scenario.
const ROWS: [(&str, Scenario, &str); 18] = [
    ("HTTP/1.1, 64 clients: CPU µs a request", Scenario::H1, "CPU µs/request"),
    ("HTTP/1.1, one client: p50 µs", Scenario::H1Lat, "p50 µs"),
    ("HTTP/2: CPU µs a request", Scenario::H2, "CPU µs/request"),
    ("full handshake: CPU µs", Scenario::HsFull, "CPU µs/handshake"),
    ("resumed handshake: CPU µs", Scenario::HsResumed, "CPU µs/handshake"),
    ("WebSocket echo: CPU µs", Scenario::Ws, "CPU µs/echo"),
    ("WebSocket echo, one client: p50 µs", Scenario::WsLat, "p50 µs"),
    ("WebSocket bulk: CPU µs a MiB", Scenario::WsBulk, "CPU µs/MiB"),
    ("download: CPU µs a MiB", Scenario::Down, "CPU µs/MiB"),
    ("upload: CPU µs a MiB", Scenario::Up, "CPU µs/MiB"),
    ("server-sent event: CPU µs", Scenario::Sse, "CPU µs/event"),
    ("idle WebSocket: KiB", Scenario::Idle, "KiB each, new"),
    ("the same after 64 KiB through it: KiB", Scenario::Idle, "KiB each, after 64 KiB"),
    ("5,000 of them quiet: CPU ms a second", Scenario::Idle, "CPU ms/s, quiet"),
    ("stalled reader: KiB", Scenario::Stall, "KiB each"),
    ("exec to the first answer: ms", Scenario::Start, "ms to the first answer"),
    ("at rest: PSS KiB", Scenario::Start, "PSS KiB at rest"),
    ("program and libraries: MiB", Scenario::Start, "MiB of program and libraries"),
];

/// The rows that `results` have, as Markdown with the README's labels.
pub fn table(results: &Results) -> String {
    let mut table = String::from("| |");
    table.extend(COLUMNS.iter().map(|(name, _)| format!(" {name} |")));
    table += "\n|---|";
    table.extend(COLUMNS.iter().map(|_| "---:|"));
    for (label, scenario, measure) in ROWS {
        let cells = COLUMNS.map(|(_, peer)| results.median(scenario, peer, measure));
        if cells[0].is_some() {
            table += &format!("\n| {label} |");
            table.extend(cells.iter().map(|cell| format!(" {} |", cell.map_or_else(|| "–".into(), digits))));
        }
    }
    table + "\n"
}

/// Compares `results` with the table in `document`: a line for each row of it that was measured, and whether all are
/// as good as stated. A row is worse if loopgate's ratio to the best measured peer is more than 1.15 times the stated
/// one.
///
/// # Errors
/// The document has no such table, a row of it is unknown, or a value is no number.
pub fn compare(document: &str, results: &Results) -> Result<(String, bool), String> {
    let mut report = String::from("| | peer | stated | now | |\n|---|---|---:|---:|---|\n");
    let (mut rows, mut good) = (0, true);
    for (label, stated) in read(document)? {
        let &(_, scenario, measure) =
            ROWS.iter().find(|(row, ..)| *row == label).ok_or_else(|| format!("unknown row: {label}"))?;
        let measured = results.median(scenario, Peer::Loopgate, measure);
        let (Some(own), Some(_)) = (stated.get(&Peer::Loopgate), measured) else { continue };
        let peers = |(peer, value): &(&Peer, &f64)| !matches!(peer, Peer::Loopgate | Peer::NullTls) && **value > 0.0;
        let others = stated.iter().filter(peers);
        let ratios = others
            .filter_map(|(peer, value)| Some((*peer, own / value, 1.0 / results.ratio(scenario, *peer, measure)?)));
        let Some((peer, stated, now)) = ratios.max_by(|(_, one, _), (_, other, _)| one.total_cmp(other)) else {
            return Err(format!("not measured beside a peer: {label}"));
        };
        let held = now <= stated * TOLERANCE;
        (rows, good) = (rows + 1, good && held);
        let word = if held { "as stated" } else { "WORSE" };
        report += &format!("| {label} | {} | {} | {} | {word} |\n", peer.name(), digits(stated), digits(now));
    }
    if rows == 0 { Err("no row of the table was measured".into()) } else { Ok((report, good)) }
}

/// The rows of the table in `document`, by their labels; a peer without a value is left out.
fn read(document: &str) -> Result<Vec<(String, BTreeMap<Peer, f64>)>, String> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = document.lines();
    let names = COLUMNS.map(|(name, _)| name);
    lines.find(|line| line.starts_with('|') && cells(line)[1..] == names).ok_or("no table of measurements")?;
    let rows = lines.skip(1).take_while(|line| line.starts_with('|')).map(|line| {
        let cells = cells(line);
        let values = COLUMNS.iter().zip(&cells[1..]).filter(|(_, cell)| *cell != "–");
        let values = values.map(|((_, peer), cell)| match cell.replace(',', "").parse::<f64>() {
            Ok(value) if value >= 0.0 => Ok((*peer, value)),
            _ => Err(format!("{}: {cell:?} is no measured value", cells[0])),
        });
        Ok((cells[0].clone(), values.collect::<Result<_, String>>()?))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Sample;

    const README: &str = "
| | loopgate | nginx | HAProxy | Caddy | Traefik | bare loop |
|---|---:|---:|---:|---:|---:|---:|
| HTTP/1.1, 64 clients: CPU µs a request | 10.0 | 12.0 | 11.0 | 1,000 | 60 | 9 |
| HTTP/2: CPU µs a request | 11 | 14 | 11 | 120 | 81 | – |

text
";

    fn results(own: f64, nginx: f64, haproxy: f64) -> Results {
        let mut results = Results::default();
        for (peer, value) in [(Peer::Loopgate, own), (Peer::Nginx, nginx), (Peer::Haproxy, haproxy)] {
            results.add(Scenario::H1, peer, 0, Sample { measures: vec![("CPU µs/request", value)], failed: 0 });
        }
        results
    }

    #[test]
    fn a_row_is_worse_beyond_fifteen_percent_of_its_ratio_to_the_best_peer() {
        // Stated is 10 to 11; the machine's own speed does not matter.
        for (own, held) in [(10.0, true), (11.4, true), (11.6, false)] {
            for times in [1.0, 3.0] {
                let (report, good) = compare(README, &results(own * times, 12.0 * times, 11.0 * times)).unwrap();
                assert_eq!(good, held, "{own}: {report}");
                assert!(report.contains("| haproxy | 0.91 |"), "{report}");
                assert_eq!(report.lines().count(), 3, "the other row was not measured: {report}");
            }
        }
    }

    #[test]
    fn what_can_not_be_compared_is_an_error() {
        let all = results(10.0, 12.0, 11.0);
        for (document, error) in [
            ("no table".to_owned(), "no table of measurements"),
            (README.replace("HTTP/1.1, 64", "HTTP/1.1, 65"), "unknown row: HTTP/1.1, 65 clients: CPU µs a request"),
            (
                README.replace("12.0", "twelve"),
                "HTTP/1.1, 64 clients: CPU µs a request: \"twelve\" is no measured value",
            ),
        ] {
            assert_eq!(compare(&document, &all).unwrap_err(), error);
        }
        assert_eq!(compare(README, &Results::default()).unwrap_err(), "no row of the table was measured");
        let mut alone = Results::default();
        alone.add(Scenario::H1, Peer::Loopgate, 0, Sample { measures: vec![("CPU µs/request", 1.0)], failed: 0 });
        let error = compare(README, &alone).unwrap_err();
        assert_eq!(error, "not measured beside a peer: HTTP/1.1, 64 clients: CPU µs a request");
    }

    #[test]
    fn the_table_is_written_as_it_is_read() {
        let written = table(&results(10.0, 12.0, 11.0));
        assert!(
            written.contains("| HTTP/1.1, 64 clients: CPU µs a request | 10.0 | 12.0 | 11.0 | – | – | – |"),
            "{written}"
        );
        assert_eq!(read(&written).unwrap()[0].1[&Peer::Haproxy], 11.0);
    }

    #[test]
    fn the_documents_have_known_rows_only() {
        for document in [include_str!("../../../README.md"), include_str!("../../../docs/comparison.md")] {
            for (label, _) in read(document).unwrap_or_else(|error| panic!("{error}")) {
                assert!(ROWS.iter().any(|(row, ..)| *row == label), "{label}");
            }
        }
    }
}

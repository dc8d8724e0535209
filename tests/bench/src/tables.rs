//! The tables of the documents, made from the results of `compare --json`.
//!
//! A document has a table between two lines, `<!-- begin NAME -->` and `<!-- end NAME -->`:
//!
//! | name | what |
//! | --- | --- |
//! | `measured` | all rows |
//! | `not-ahead` | the rows in which a build of loopgate is not ahead of every proxy |
//! | `short` | the rows of `not-ahead`, and then a few in which every build is ahead |
//! | `conditions` | versions of the proxies, and how they were measured |
//! | `attacks` | the attacks |
//! | `scale` | what growth costs |
//! | `growth` | the same in a sentence |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::results::Results;
use crate::scenario::{Scenario, scale};
use crate::stated::{self, Rows};

/// The number of idle WebSockets that a row of the table states.
const IDLE: u64 = 5000;
/// The width of the documents' lines, in columns.
const COLUMNS: usize = 150;

/// The files with the results, and the documents for the tables.
#[derive(Args)]
pub struct Tables {
    /// Files that `compare --json` wrote, of one run or several.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// A document whose tables are replaced. Without a document, the tables are printed.
    #[arg(long)]
    write: Vec<PathBuf>,
}

impl Tables {
    /// Prints the tables, or writes them into the documents.
    ///
    /// # Errors
    /// A file can't be read or written, or has another form.
    pub fn run(&self) -> io::Result<()> {
        let mut results = Results::default();
        let mut runs = Vec::new();
        for file in &self.results {
            let run: Value = serde_json::from_str(&read(file)?).map_err(|error| named(file, error))?;
            results.add_json(&run).map_err(|error| named(file, error))?;
            if has(&run, Scenario::Idle) && run["idle"] != IDLE {
                return Err(named(file, format!("{} idle WebSockets, and the tables say {IDLE}", run["idle"])));
            }
            runs.push(run);
        }
        let tables = tables(&results, &runs);
        if self.write.is_empty() {
            for (name, table) in &tables {
                println!("{name}:\n\n{table}");
            }
        }
        for file in &self.write {
            let text = read(file)?;
            let text = tables.iter().try_fold(text, |text, (name, table)| replace(&text, name, table));
            fs::write(file, text.map_err(|error| named(file, error))?)?;
        }
        Ok(())
    }
}

fn named(file: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", file.display()))
}

fn read(file: &Path) -> io::Result<String> {
    fs::read_to_string(file).map_err(|error| named(file, error))
}

fn has(run: &Value, scenario: Scenario) -> bool {
    let name = scenario.name();
    run["measured"].as_array().is_some_and(|all| all.iter().any(|measured| measured["scenario"] == name.as_str()))
}

/// Returns the tables with their names. Tables without a row are left out.
fn tables(results: &Results, runs: &[Value]) -> Vec<(&'static str, String)> {
    let attacks = results.peers_of(Scenario::AttackSlow).first().map(|_| results.table_of(&Scenario::ATTACKS));
    let mut tables = vec![
        ("measured", stated::table(results, Rows::All)),
        ("not-ahead", stated::table(results, Rows::NotAhead)),
        ("short", stated::table(results, Rows::Short)),
        ("conditions", runs.iter().find(|run| has(run, Scenario::H1)).map(conditions).unwrap_or_default()),
        ("attacks", attacks.unwrap_or_default()),
        ("scale", scale::report(results)),
        ("growth", wrap(&scale::summary(results))),
    ];
    tables.retain(|(_, table)| !table.is_empty());
    tables
}

/// Returns a paragraph about how `run` was measured.
fn conditions(run: &Value) -> String {
    let proxies = [("nginx", "nginx"), ("haproxy", "HAProxy"), ("caddy", "Caddy"), ("traefik", "Traefik")];
    let proxies: Vec<_> = proxies
        .into_iter()
        .filter_map(|(side, name)| Some(format!("{name} {}", version(run["versions"][side].as_str()?)?)))
        .collect();
    let machine = &run["machine"];
    let model = machine["model"].as_str().unwrap_or("an unknown processor").replace("(R)", "");
    let kernel = machine["kernel"].as_str().unwrap_or_default().split('-').next().unwrap_or_default().to_owned();
    wrap(&format!(
        "{}. {} rounds, windows of {} s, {} workers each. {} processors ({model}) under Linux {kernel}, for client and \
         backend too.",
        proxies.join(", "),
        run["rounds"],
        run["seconds"],
        run["workers"],
        machine["cpus"],
    ))
}

/// Wraps `text` in lines of at most `COLUMNS` columns. An empty text has no lines.
fn wrap(text: &str) -> String {
    let (mut lines, mut column) = (String::new(), 0);
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > COLUMNS {
            lines.push('\n');
            column = 0;
        } else if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines += word;
        column += width;
    }
    if column > 0 { lines + "\n" } else { lines }
}

/// Returns the version in what a program prints: the first word of numbers with dots.
fn version(printed: &str) -> Option<&str> {
    let words = printed.split([' ', '/', ';', '-']).map(|word| word.trim_start_matches('v'));
    words.into_iter().find(|word| {
        let parts: Vec<_> = word.split('.').collect();
        parts.len() > 1 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Replaces the table between the lines for `name` in `text`, if it has these lines.
fn replace(text: &str, name: &str, table: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let Some((before, rest)) = text.split_once(&begin) else { return Ok(text.to_owned()) };
    let (_, after) = rest.split_once(&end).ok_or_else(|| format!("no {end}"))?;
    Ok(format!("{before}{begin}\n{table}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Peer;
    use crate::scenario::Sample;
    use serde_json::json;

    #[test]
    fn a_table_is_written_between_its_lines() {
        let document = "text\n<!-- begin short -->\n\nold\n\n<!-- end short -->\nmore\n";
        let expected = "text\n<!-- begin short -->\n\nnew\n\n<!-- end short -->\nmore\n";
        assert_eq!(replace(document, "short", "new\n").unwrap(), expected);
        assert_eq!(replace(expected, "short", "new\n").unwrap(), expected, "again");
        assert_eq!(replace(document, "scale", "new\n").unwrap(), document);
        assert!(replace(&document.replace("end short", "end"), "short", "new\n").is_err());
    }

    #[test]
    fn the_version_is_found_in_what_a_program_prints() {
        for (printed, expected) in [
            ("nginx version: nginx/1.30.6; built with OpenSSL 3.6.5", Some("1.30.6")),
            ("HAProxy version 3.2.26-1 2026/10/02 - https://haproxy.org/", Some("3.2.26")),
            ("v2.11.7 h1:abc=", Some("2.11.7")),
            ("Version:      3.7.15; Codename:     abc; Go version:   go1.26.1", Some("3.7.15")),
            ("none", None),
        ] {
            assert_eq!(version(printed), expected, "{printed}");
        }
    }

    #[test]
    fn a_paragraph_is_wrapped() {
        let text = "word ".repeat(31);
        let lines = wrap(&text);
        assert_eq!(lines, format!("{}word\nword\n", "word ".repeat(29)));
        assert_eq!(wrap(""), "");
    }

    #[test]
    fn tables_come_from_json() {
        let mut results = Results::default();
        for (peer, value) in [(Peer::Loopgate, 1.0), (Peer::LoopgatePlain, 3.0), (Peer::Nginx, 2.0)] {
            results.add(Scenario::H1, peer, 0, Sample::new(vec![("CPU µs/request", value)], 0));
        }
        let mut run = results.json();
        run["versions"] = json!({ "nginx": "nginx version: nginx/1.30.6" });
        run["machine"] = json!({ "cpus": 2, "model": "Intel(R) Xeon(R)", "kernel": "6.18.5-1-generic" });
        (run["rounds"], run["seconds"], run["workers"]) = (json!(3), json!(2.0), json!(2));
        let tables = tables(&results, &[run]);
        let names: Vec<_> = tables.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["measured", "not-ahead", "short", "conditions"]);
        assert_eq!(
            tables[3].1,
            "nginx 1.30.6. 3 rounds, windows of 2.0 s, 2 workers each. 2 processors (Intel Xeon) under Linux 6.18.5, \
             for client and backend too.\n"
        );
    }
}

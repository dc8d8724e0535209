//! The tables of `docs/reference.md` (commands, options, findings, metrics) are generated from the
//! code, and commands, links and texts in the other documents exist.
//!
//! `TEST_BLESS=1 cargo test --test operator reference` updates the tables.

use std::path::Path;

use loopgate::check::catalogue;
use loopgate::config::key::KEYS;
use loopgate::config::live::ChangeTiming;
use loopgate::config::option::Form;

use crate::harness::loopgate;
use crate::metrics::all_metrics;

#[test]
fn the_tables_of_the_reference_are_those_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let mut expected = written.clone();
    for (name, table) in
        [("commands", commands()), ("options", options()), ("findings", findings()), ("metrics", metrics())]
    {
        let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
        let (before, rest) = expected.split_once(&begin).unwrap_or_else(|| panic!("no section {name}"));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("section {name} does not end"));
        expected = format!("{before}{begin}\n{table}\n{end}{after}");
    }
    if std::env::var_os("TEST_BLESS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    } else {
        assert!(written == expected, "docs/reference.md is out of date: TEST_BLESS=1 updates it");
    }
}

/// The table of commands, from `loopgate --help`.
fn commands() -> String {
    let output = loopgate(["--help"]).env("COLUMNS", "1000").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut table = "| command | does |\n| --- | --- |\n".to_owned();
    for line in list.lines() {
        let (name, what) = line.trim().split_once("  ").unwrap();
        table.push_str(&format!("| `loopgate {name}` | {} |\n", what.trim()));
    }
    table
}

fn options() -> String {
    let mut table = "| flag | key | default | a change applies | what |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for key in KEYS.iter() {
        let form = match key.form {
            Form::Switch => "true/false".into(),
            Form::Number => "number".into(),
            Form::Duration => "time".into(),
            Form::Choice(words) => words.join("/"),
            Form::Text(name) => name.to_lowercase().replace('|', "/"),
            Form::List(name) => format!("{}, ...", name.to_lowercase()),
        };
        let default = key.default.map(|default| format!("`{default}`")).unwrap_or_default();
        let applies = match ChangeTiming::of_change_to(key) {
            ChangeTiming::AtOnce => "at once",
            ChangeTiming::NewConnections => "to new connections",
            ChangeTiming::Restart => "after a restart",
        };
        let (flag, path, help) = (key.flag, key.path, key.help);
        table.push_str(&format!("| `--{flag}` | `{path}` ({form}) | {default} | {applies} | {help} |\n"));
    }
    table
}

fn findings() -> String {
    let mut table = "| id | severity | what it means |\n| --- | --- | --- |\n".to_owned();
    for kind in catalogue::ALL {
        table.push_str(&format!("| `{}` | {} | {} |\n", kind.id, kind.severity.label(), kind.means));
    }
    table
}

/// The table of metrics, from their metadata.
fn metrics() -> String {
    let answer = all_metrics();
    let mut rows = Vec::new();
    let mut help = "";
    for line in answer.lines() {
        if let Some(metadata) = line.strip_prefix("# HELP ") {
            help = metadata.split_once(' ').unwrap().1;
        } else if let Some(metadata) = line.strip_prefix("# TYPE ") {
            let (name, kind) = metadata.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let series = answer
                .lines()
                .find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ', '_'])));
            let labels =
                series.and_then(|rest| rest.split_once('{')).map(|(_, rest)| rest).unwrap_or_default().split(',');
            let labels: Vec<&str> = labels.filter_map(|pair| pair.split_once('=')).map(|(label, _)| label).collect();
            rows.push(format!("| `{name}{suffix}` | {kind} | {} | {help} |\n", labels.join(", ")));
        }
    }
    rows.sort();
    format!("| metric | type | labels | what |\n| --- | --- | --- | --- |\n{}", rows.concat())
}

#[test]
fn every_command_in_the_documentation_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = ["openclaw", "reference", "operations", "security", "architecture", "comparison"]
        .map(|name| root.join(format!("docs/{name}.md")));
    let mut count = 0;
    for document in documents.iter().chain([&root.join("README.md")]) {
        let text = std::fs::read_to_string(document).unwrap();
        let blocks = text.split("```").skip(1).step_by(2);
        for line in
            blocks.filter(|block| block.starts_with("sh\n") || block.starts_with("console\n")).flat_map(str::lines)
        {
            let Some((_, rest)) = line.split_once("loopgate ") else { continue };
            let words: Vec<&str> =
                rest.split_whitespace().take_while(|word| !["|", ">", "&&", "--", ";"].contains(word)).collect();
            let command: Vec<&str> =
                words.iter().copied().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())).collect();
            if command.is_empty()
                || line.trim_start().starts_with('#')
                || line.contains("compose") && !line.contains("/loopgate ")
            {
                continue;
            }
            // `cert` and `config` have subcommands. The second word of `completions bash` is an
            // argument.
            let depth = if ["cert", "config"].contains(&command[0]) { 2 } else { 1 };
            let output = loopgate([&command[..depth.min(command.len())], &["--help"]].concat()).output().unwrap();
            assert!(output.status.success(), "{}: {line}", document.display());
            let help = String::from_utf8(output.stdout).unwrap();
            for flag in words.iter().filter(|word| word.starts_with("--")).map(|word| word.split('=').next().unwrap()) {
                assert!(
                    help.contains(&format!("{flag} "))
                        || help.contains(&format!("{flag}\n"))
                        || help.contains(&format!("{flag}[")),
                    "{}: {line}: no {flag}",
                    document.display()
                );
            }
            count += 1;
        }
    }
    assert!(count > 15, "only {count} commands were found");
}

#[test]
fn links_between_documents_lead_to_existing_files() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for entry in
        std::fs::read_dir(&docs).unwrap().flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "md"))
    {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().unwrap();
            assert!(docs.join(file).exists(), "{}: {target}", entry.path().display());
        }
    }
}

/// Beginnings of texts in the headings of "Troubleshooting" that other programs print.
const OTHER_PROGRAMS_TEXTS: [&str; 29] = [
    "1008: pairing required",
    "pairing required: device is not approved yet",
    "SECURITY ERROR: Gateway URL",
    "proxy_attribution_required",
    "Proxy client attribution is required",
    "origin not allowed",
    "missing scope: operator.read",
    "trusted_proxy_loopback_source",
    "another gateway instance is already listening",
    "gateway tls fingerprint mismatch",
    "unable to verify the first certificate",
    "self-signed certificate in certificate chain",
    "gateway closed (1006 abnormal closure",
    "devices list",
    "devices approve",
    "Proxy headers detected from untrusted address",
    "port 18789 is already in use",
    "port is still busy",
    "openclaw config set",
    "EBUSY: resource busy or locked",
    "Gateway is only bound to loopback",
    "Another Gateway owner lease is still active",
    "Too many unauthenticated sockets",
    "Client sent an HTTP request to an HTTPS server",
    "cannot join network namespace of a non running container",
    "No such container",
    "conflicting options: port publishing",
    "container rootfs is marked read-only",
    "gateway auth mode is trusted-proxy",
];

#[test]
fn loopgates_messages_in_troubleshooting_are_in_its_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    let mut directories = vec![root.join("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => directories.push(path),
                path if path.extension().is_some_and(|e| e == "rs") => {
                    sources.push_str(&std::fs::read_to_string(path).unwrap())
                }
                _ => {}
            }
        }
    }
    let operations = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let (_, troubleshooting) = operations.split_once("## Troubleshooting").unwrap();
    let headings = troubleshooting.lines().filter(|line| line.starts_with("### "));
    let mut count = 0;
    for text in headings.flat_map(|heading| heading.split('`').skip(1).step_by(2)) {
        // The rest of the text differs from case to case.
        let fixed =
            [" address=", " 172.", " /var", ": 4"].iter().fold(text, |text, end| text.split(end).next().unwrap());
        if fixed.chars().all(|c| c.is_ascii_digit())
            || OTHER_PROGRAMS_TEXTS.iter().any(|other| fixed.starts_with(other))
        {
            continue;
        }
        assert!(sources.contains(fixed) || fixed == "Unexpected server response", "no source has {fixed:?}");
        count += 1;
    }
    assert!(count > 5, "only {count} texts were found");
}

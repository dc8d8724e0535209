//! What the demonstration prints: the self-check as a table of 80 columns, and how to go on by hand.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use super::AGENT;
use super::check::{Report, Row, Trial};
use crate::config::Config;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// Text in colours, or plain.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn with(self, style: &str, text: &str) -> String {
        if self.0 { format!("{style}{text}{RESET}") } else { text.to_owned() }
    }
}

/// The self-check as a table.
pub(super) fn render(report: &Report, config: &Config, colours: bool) -> String {
    let paint = Paint(colours);
    let mut text = format!(
        "\n{}\n{}\n\n",
        paint.with(BOLD, "loopgate demo: what each client looks like from the gateway's side"),
        paint.with(DIM, &format!("a gateway on {}, loopgate before it, and clients that come by TLS", config.gateway.address)),
    );
    let head = line("lane", "protocol", "seen from", "X-Forwarded-For", "Host", "judged", "held");
    let _ = writeln!(text, "{}\n{}", paint.with(BOLD, head.trim_end()), paint.with(DIM, &"─".repeat(head.chars().count())));
    let mut group = None;
    for row in &report.rows {
        let now = (row.trial.lane, row.trial.forged);
        if group.replace(now).is_some_and(|before| before != now) {
            text.push('\n');
        }
        if group_begins(report, row) && !row.trial.forged.is_empty() {
            let _ = writeln!(text, "{}", paint.with(DIM, &claims(&row.trial)));
        }
        write_row(&mut text, row, paint);
    }
    let (all, failed) = (report.rows.len(), report.failed());
    let verdict = match report.held() {
        true => paint.with(GREEN, &format!("All {all} checks held.")),
        false => paint.with(RED, &format!("{failed} of {all} checks did not hold.")),
    };
    let unknown = config.external.unknown_client;
    let _ = write!(
        text,
        "\n{verdict}\n\n{}",
        paint.with(
            DIM,
            &format!(
                "  local   the gateway takes the client for one of its own host\n  \
                   remote  the gateway takes it for an outsider, whom somebody must approve\n  \
                   {unknown} stands for a client without an address of its own: this one is on loopback\n"
            )
        )
    );
    text
}

fn group_begins(report: &Report, row: &Row) -> bool {
    let first = report.rows.iter().find(|other| other.trial.forged == row.trial.forged && other.trial.lane == row.trial.lane);
    first.is_some_and(|first| std::ptr::eq(first, row))
}

/// What the client says of itself.
fn claims(trial: &Trial) -> String {
    match trial.forged {
        [(name, value)] => format!("{} says {name}: {value}", trial.lane.label()),
        all => {
            let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
            format!("{} says all of {}", trial.lane.label(), names.join(", "))
        }
    }
}

fn write_row(text: &mut String, row: &Row, paint: Paint) {
    let (lane, way) = (row.trial.lane.label(), row.trial.way.to_string());
    let held = row.objections.is_empty();
    let cells = match &row.told {
        Some(told) => {
            let one = |name| Some(told.all(name).join(", ")).filter(|value| !value.is_empty()).unwrap_or_else(|| "-".into());
            let from = told.from.ip().to_string();
            line(lane, &way, &from, &one("x-forwarded-for"), &one("host"), told.judged.label(), "")
        }
        None => line(lane, &way, "-", "-", "-", "-", ""),
    };
    let mark = if held { paint.with(GREEN, "yes") } else { paint.with(RED, "NO") };
    let _ = writeln!(text, "{cells}{mark}");
    for objection in &row.objections {
        let _ = writeln!(text, "  {}", paint.with(RED, objection));
    }
}

fn line(lane: &str, way: &str, from: &str, client: &str, host: &str, judged: &str, held: &str) -> String {
    format!("{lane:<9} {way:<14} {from:<14} {client:<16} {host:<16} {judged:<7} {held}")
}

/// How to go on by hand: `listening` is the door for others, `near` the one that a client on loopback reaches.
pub(super) fn invitation(listening: SocketAddr, near: SocketAddr, ca: &Path, fingerprint: &str, colours: bool) -> String {
    let paint = Paint(colours);
    let title = |text| paint.with(BOLD, text);
    let (url, ca) = (format!("https://{near}/"), ca.display());
    let elsewhere = if listening == near { String::new() } else { format!("  Listening    {listening}\n") };
    format!(
        "
{up} It stays up until Ctrl-C.

  URL          {shown}
{elsewhere}  CA           {ca}
  Fingerprint  {fingerprint}

{browser}
  Open the URL. The browser warns, for the CA was made just now and it does not know it:
  compare the fingerprint (SHA-256) with that of the certificate it shows, and go on.

{curl}
  curl --cacert {ca} {url}json
  curl --cacert {ca} --interface {AGENT} {url}json

",
        up = title("Now try it yourself."),
        shown = paint.with(GREEN, &url),
        browser = title("In a browser (external)"),
        curl = title("With curl (external; then as the agent, whose address is 127.0.0.9)"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::check::Lane;
    use super::super::client::Way;
    use super::super::judge::Judgement;
    use super::super::told::Told;
    use super::*;

    fn row(told: Option<Told>, objections: &[&str]) -> Row {
        let trial = Trial { lane: Lane::External, way: Way::Http2, forged: &[("host", "localhost")] };
        Row { trial, told, objections: objections.iter().map(|text| (*text).into()).collect() }
    }

    #[test]
    fn what_did_not_hold_is_said_below_its_row() {
        let told = Told {
            from: "127.0.0.2:1".parse().unwrap(),
            method: "GET".into(),
            target: "/".into(),
            headers: vec![("host".into(), "localhost".into())],
            judged: Judgement::Local,
            because: String::new(),
        };
        let report = Report { rows: vec![row(Some(told), &["the judgement must be remote, but is local"]), row(None, &["nobody there"])] };
        let text = render(&report, &Config::default(), false);
        assert!(text.contains("external says host: localhost\n"), "{text}");
        assert!(text.contains("localhost        local   NO\n  the judgement must be remote, but is local\n"), "{text}");
        assert!(text.contains("-       NO\n  nobody there\n"), "{text}");
        assert!(text.contains("2 of 2 checks did not hold."), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(render(&report, &Config::default(), true).contains(RED));
    }
}

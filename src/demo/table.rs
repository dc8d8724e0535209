//! What the demonstration prints: the self-check as a table that fits 80 columns, and how to go on by hand.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

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
    let head = line("protocol", "seen from", "X-Forwarded-For", "Host", "judged", "held");
    let mut text = format!(
        "\n{}\n{}\n\n{}\n{}\n",
        paint.with(BOLD, "loopgate demo: what each client looks like from the gateway's side"),
        paint.with(DIM, &format!("A gateway on {}, loopgate before it, and clients that come by TLS.", config.gateway.address)),
        paint.with(BOLD, &head),
        paint.with(DIM, &"─".repeat(head.len())),
    );
    let mut group = None;
    for row in &report.rows {
        let now = (row.trial.lane, row.trial.forged);
        if group != Some(now) {
            text.push_str(if group.is_some() { "\n" } else { "" });
            text.push_str(&heading(&row.trial, paint));
            group = Some(now);
        }
        write_row(&mut text, row, paint);
    }
    let verdict = match report.verdict() {
        Ok(()) => paint.with(GREEN, &format!("All {} checks held.", report.rows.len())),
        Err(error) => paint.with(RED, &format!("{error}.")),
    };
    let legend = format!(
        "  local      the gateway takes the client for one of its own host\n  \
           remote     the gateway takes it for an outsider, whom somebody must approve\n  \
           {:<9}  stands for a client on loopback, which the gateway must not hear of\n",
        config.external.unknown_client.to_string(),
    );
    let _ = write!(text, "\n{verdict}\n\n{}", paint.with(DIM, &legend));
    text
}

/// Who the rows below are about.
fn heading(trial: &Trial, paint: Paint) -> String {
    let lane = format!("{} lane", trial.lane.label());
    let who = match trial.forged {
        [] => format!("a client at {}", trial.lane.client()),
        [(name, value)] => format!("the same, with {name}: {value}"),
        all => format!("the same, with {} forged fields at once", all.len()),
    };
    format!("{} {}\n", paint.with(BOLD, &lane), paint.with(DIM, &format!("· {who}")))
}

fn write_row(text: &mut String, row: &Row, paint: Paint) {
    let way = row.trial.way.to_string();
    let cells = match &row.told {
        Some(told) => {
            let one = |name| Some(told.all(name).join(", ")).filter(|value| !value.is_empty()).unwrap_or_else(|| "none".into());
            line(&way, &told.from.ip().to_string(), &one("x-forwarded-for"), &one("host"), told.judged.label(), "")
        }
        None => line(&way, "-", "-", "-", "-", ""),
    };
    let held = if row.objections.is_empty() { paint.with(GREEN, "yes") } else { paint.with(RED, "NO") };
    let _ = writeln!(text, "{cells}{held}");
    for objection in &row.objections {
        let _ = writeln!(text, "    {}", paint.with(RED, objection));
    }
}

/// One line; with addresses as long as they can be it is 80 columns wide.
fn line(way: &str, from: &str, client: &str, host: &str, judged: &str, held: &str) -> String {
    format!("  {way:<13}  {from:<15}  {client:<15}  {host:<15}  {judged:<6}  {held}")
}

/// What somebody needs to know to go on by hand.
pub(super) struct Invitation {
    /// The door that was asked for.
    pub(super) listening: SocketAddr,
    /// Where a browser on this machine finds it.
    pub(super) url: String,
    /// The door that clients on loopback reach.
    pub(super) near: SocketAddr,
    /// The CA's certificate, in PEM.
    pub(super) ca: PathBuf,
    /// SHA-256 of the server's certificate.
    pub(super) fingerprint: String,
}

/// How to go on by hand.
pub(super) fn invitation(invitation: &Invitation, colours: bool) -> String {
    let paint = Paint(colours);
    let Invitation { listening, url, near, ca, fingerprint } = invitation;
    let ca = ca.display();
    let elsewhere = if listening.ip().is_unspecified() { format!("  Listening    {listening}\n") } else { String::new() };
    format!(
        "
{title} It stays up until Ctrl-C.

  URL          {shown}
{elsewhere}  CA           {ca}
  Fingerprint  {fingerprint}

{browser}
  Open the URL. The browser warns, because the CA was made just now and it does not know it.
  Compare the SHA-256 fingerprint with that of the certificate it shows, and go on.

{outsider}
  curl --cacert {ca} {url}json
{agent}
  curl --cacert {ca} --interface {AGENT} https://{near}/json

",
        title = paint.with(BOLD, "Now try it yourself."),
        shown = paint.with(GREEN, url),
        browser = paint.with(BOLD, "In a browser"),
        outsider = paint.with(BOLD, "With curl, as an outsider"),
        agent = paint.with(BOLD, &format!("With curl, as the agent at {AGENT}")),
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
        let trial = Trial { lane: Lane::External, way: Way::Http2, forged: &[("Host", "localhost")] };
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
        assert!(text.contains("external lane · the same, with Host: localhost\n"), "{text}");
        assert!(text.contains("localhost        local   NO\n    the judgement must be remote, but is local\n"), "{text}");
        assert!(text.contains("-       NO\n    nobody there\n"), "{text}");
        assert!(text.contains("2 of 2 checks did not hold."), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(render(&report, &Config::default(), true).contains(RED));
    }
}

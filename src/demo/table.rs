//! The output of the demonstration: the results of the self-check as a table of at most 80 columns,
//! and instructions for trying the sidecar by hand.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::trials::{AGENT, Report, Row, Trial, client_address};
use crate::config::Config;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// Paints text, if colours are on.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn styled(self, style: &str, text: &str) -> String {
        if self.0 { format!("{style}{text}{RESET}") } else { text.to_owned() }
    }
}

/// Returns the results of the self-check as a table.
pub(super) fn render(report: &Report, config: &Config, colours: bool) -> String {
    let paint = Paint(colours);
    let head = format_row("protocol", "seen from", "X-Forwarded-For", "Host", "class", "ok");
    let mut text = format!(
        "\n{}\n{}\n\n{}\n{}\n",
        paint.styled(BOLD, "loopgate demo: what each client looks like from the gateway's side"),
        paint.styled(
            DIM,
            &format!("A gateway on {}, loopgate in front, and clients that use TLS.", config.gateway.address)
        ),
        paint.styled(BOLD, &head),
        paint.styled(DIM, &"─".repeat(head.len())),
    );
    let mut group = None;
    for row in &report.rows {
        let now = (row.trial.lane, row.trial.forged);
        if group != Some(now) {
            text.push_str(if group.is_some() { "\n" } else { "" });
            text.push_str(&trial_heading(&row.trial, paint));
            group = Some(now);
        }
        write_row(&mut text, row, paint);
    }
    let verdict = match report.check_all_passed() {
        Ok(()) => paint.styled(GREEN, &format!("All {} checks passed.", report.rows.len())),
        Err(error) => paint.styled(RED, &format!("{error}.")),
    };
    let legend = format!(
        "  local      the gateway sees a client on its own host\n  \
           remote     the gateway sees a remote client, whose pairing needs approval\n  \
           {:<9}  stated instead of a loopback client address\n",
        config.external.unknown_client.to_string(),
    );
    let _ = write!(text, "\n{verdict}\n\n{}", paint.styled(DIM, &legend));
    text
}

/// Returns the heading of a group of rows.
fn trial_heading(trial: &Trial, paint: Paint) -> String {
    let lane = format!("{} lane", trial.lane.label());
    let who = match trial.forged {
        [] => format!("a client at {}", client_address(trial.lane)),
        [(name, value)] => format!("the same, with {name}: {value}"),
        all => format!("the same, with {} forged fields at once", all.len()),
    };
    format!("{} {}\n", paint.styled(BOLD, &lane), paint.styled(DIM, &format!("· {who}")))
}

/// Writes the result of a trial as a line of the table.
fn write_row(text: &mut String, row: &Row, paint: Paint) {
    let protocol = row.trial.protocol.to_string();
    let cells = match &row.received {
        Some(received) => {
            let joined_values = |name| {
                Some(received.values_of(name).join(", "))
                    .filter(|value| !value.is_empty())
                    .unwrap_or_else(|| "none".into())
            };
            format_row(
                &protocol,
                &received.from.ip().to_string(),
                &joined_values("x-forwarded-for"),
                &joined_values("host"),
                received.class.label(),
                "",
            )
        }
        None => format_row(&protocol, "-", "-", "-", "-", ""),
    };
    let passed = if row.failures.is_empty() { paint.styled(GREEN, "yes") } else { paint.styled(RED, "NO") };
    let _ = writeln!(text, "{cells}{passed}");
    for failure in &row.failures {
        let _ = writeln!(text, "    {}", paint.styled(RED, failure));
    }
}

/// Returns one row. With the longest addresses it is 80 columns wide.
fn format_row(protocol: &str, from: &str, client: &str, host: &str, class: &str, passed: &str) -> String {
    format!("  {protocol:<13}  {from:<15}  {client:<15}  {host:<15}  {class:<6}  {passed}")
}

/// The data for trying the sidecar by hand.
pub(super) struct Instructions {
    /// The address that was asked for.
    pub(super) listening: SocketAddr,
    /// The URL for a browser on this machine.
    pub(super) url: String,
    /// The address that clients on loopback can reach.
    pub(super) near: SocketAddr,
    /// The CA's certificate, in PEM.
    pub(super) ca: PathBuf,
    /// SHA-256 of the server's certificate.
    pub(super) fingerprint: String,
}

/// Returns the instructions for trying the sidecar by hand.
pub(super) fn render_instructions(instructions: &Instructions, colours: bool) -> String {
    let paint = Paint(colours);
    let Instructions { listening, url, near, ca, fingerprint } = instructions;
    let ca = ca.display();
    let elsewhere =
        if listening.ip().is_unspecified() { format!("  Listening    {listening}\n") } else { String::new() };
    format!(
        "
{title} It stays up until Ctrl-C.

  URL          {shown}
{elsewhere}  CA           {ca}
  Fingerprint  {fingerprint}

{browser}
  Open the URL. The browser warns, because it does not trust the new CA.
  Compare the SHA-256 fingerprint with that of the certificate it shows, then continue.

{outsider}
  curl --cacert {ca} {url}json
{agent}
  curl --cacert {ca} --interface {AGENT} https://{near}/json

",
        title = paint.styled(BOLD, "Now try it yourself."),
        shown = paint.styled(GREEN, url),
        browser = paint.styled(BOLD, "In a browser"),
        outsider = paint.styled(BOLD, "With curl, as an external client"),
        agent = paint.styled(BOLD, &format!("With curl, as the agent at {AGENT}")),
    )
}

#[cfg(test)]
mod tests {
    use super::super::classify::Class;
    use super::super::client::RequestProtocol;
    use super::super::received::Received;
    use super::*;
    use crate::labels::LaneKind;

    fn row(received: Option<Received>, failures: &[&str]) -> Row {
        let trial = Trial { lane: LaneKind::External, protocol: RequestProtocol::H2, forged: &[("Host", "localhost")] };
        Row { trial, received, failures: failures.iter().map(|text| (*text).into()).collect() }
    }

    #[test]
    fn failures_are_printed_below_their_row() {
        let received = Received {
            from: "127.0.0.2:1".parse().unwrap(),
            method: "GET".into(),
            target: "/".into(),
            headers: vec![("host".into(), "localhost".into())],
            class: Class::Local,
            reason: String::new(),
        };
        let report = Report {
            rows: vec![
                row(Some(received), &["the class must be remote, but is local"]),
                row(None, &["connection refused"]),
            ],
        };
        let text = render(&report, &Config::default(), false);
        assert!(text.contains("external lane · the same, with Host: localhost\n"), "{text}");
        assert!(text.contains("localhost        local   NO\n    the class must be remote, but is local\n"), "{text}");
        assert!(text.contains("-       NO\n    connection refused\n"), "{text}");
        assert!(text.contains("2 of 2 checks failed."), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(render(&report, &Config::default(), true).contains(RED));
    }
}

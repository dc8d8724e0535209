//! `loopgate status`.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use super::error::Error;
use super::flags::Flags;
use super::healthcheck::AdminOption;
use super::output;
use super::table::{Table, Tone, paint, stdout_gets_colours};
use crate::admin::client;
use crate::admin::status::{ConnectionStatus, Status, format_seconds};
use crate::config::validate;

/// Shows the running sidecar: listeners, certificate, agents and connections
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags<AdminOption>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print it again every 2 s, until interrupted
    #[arg(long)]
    watch: bool,
}

/// The time between two requests of `--watch`.
const PAUSE: Duration = Duration::from_secs(2);
/// Clears the screen and moves the cursor to its top left corner.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Prints the status once, or repeatedly.
pub fn run(Args { flags, json, watch }: Args) -> Result<(), Error> {
    let admin = validate::admin_address(&flags.merge_for_client_command()?)?.ok_or(client::Error::Off)?;
    let clear = if std::io::stdout().is_terminal() && !json { CLEAR } else { "" };
    let mut shown = format_status(&client::fetch_status(admin)?, json, watch);
    loop {
        if !watch {
            return output::print(shown);
        }
        // With `--watch`, each status is one line of JSON, so that a program can read them one by
        // one.
        if !output::print_unless_closed(format!("{clear}{shown}"))? {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
        // While the sidecar restarts, the text shows the error; with JSON, the command ends.
        shown = match client::fetch_status(admin) {
            Ok(status) => format_status(&status, json, watch),
            Err(error) if json => return Err(error.into()),
            Err(error) => format!("{error}\n"),
        };
    }
}

/// Returns `status` as text, or with `as_json` as JSON, indented unless `on_one_line`.
fn format_status(status: &Status, as_json: bool, on_one_line: bool) -> String {
    let json = || if on_one_line { serde_json::to_string(status) } else { serde_json::to_string_pretty(status) };
    if as_json {
        json().map(|json| json + "\n").unwrap_or_default()
    } else {
        status_text(status, stdout_gets_colours())
    }
}

/// Returns the text that `loopgate status` prints.
fn status_text(status: &Status, colours: bool) -> String {
    let mut text = String::new();
    let verdict =
        if status.ready { paint("ready", Tone::Good, colours) } else { paint("not ready", Tone::Bad, colours) };
    let name = paint("loopgate", Tone::Strong, colours);
    let _ = writeln!(text, "{name} {} is {verdict}, up {}", status.version, format_seconds(status.uptime_seconds));
    for reason in &status.not_ready {
        let _ = writeln!(text, "  {}", paint(reason, Tone::Bad, colours));
    }
    if let Some(problem) = &status.config_problem {
        let _ = writeln!(
            text,
            "  {}",
            paint(&format!("last reload rejected, old configuration still in use: {problem}"), Tone::Bad, colours)
        );
    }
    text.push_str(&summary_table(status).render(colours));
    let mut section = |title: &str, table: Table| {
        let _ = write!(text, "\n{}\n{}", paint(title, Tone::Strong, colours), table.render(colours));
    };
    if !status.agents.is_empty() {
        section("Agents", agents_table(status));
    }
    if !status.not_agents.is_empty() {
        let mut table = Table::default();
        for candidate in &status.not_agents {
            table.row([(candidate.container.as_str(), Tone::Plain), (&candidate.why, Tone::Fair)]);
        }
        section("Labelled, but not agents", table);
    }
    if !status.connections.is_empty() {
        section("Connections", connections_table(&status.connections));
    }
    let left_out = (status.lanes.agent + status.lanes.external).saturating_sub(status.connections.len());
    if left_out > 0 {
        let _ = writeln!(text, "  and {left_out} more");
    }
    text
}

/// Returns the table of the sidecar itself: its listeners, gateway, certificate, discovery and
/// lanes.
fn summary_table(status: &Status) -> Table {
    let mut table = Table::default();
    let mut line = |name: &str, value: String, tone: Tone| table.row([(name.to_owned(), Tone::Quiet), (value, tone)]);
    line(
        "listening",
        if status.listening.is_empty() { "nowhere".into() } else { status.listening.join(" ") },
        Tone::Plain,
    );
    if !status.listening_plain.is_empty() {
        line("plain HTTP", format!("{} for trusted proxies", status.listening_plain.join(" ")), Tone::Plain);
    }
    if !status.not_listening.is_empty() {
        line("not listening", format!("{}: no local address matches", status.not_listening.join(" ")), Tone::Bad);
    }
    let gateway = &status.gateway;
    match &gateway.error {
        None => line("gateway", format!("{} reachable", gateway.address), Tone::Plain),
        Some(error) => line("gateway", format!("{} {error}", gateway.address), Tone::Bad),
    }
    for forward in &status.forwards {
        let (to, listening) = (&forward.target, forward.listening.join(" "));
        let from = if listening.is_empty() { "nowhere" } else { &listening };
        match &forward.error {
            None => line("forward", format!("{from} to {to} reachable"), Tone::Plain),
            Some(error) => line("forward", format!("{from} to {to} {error}"), Tone::Bad),
        }
    }
    let certificate = &status.certificate;
    let tone = if certificate.expires_in_seconds <= 0 { Tone::Bad } else { Tone::Plain };
    let remaining = u64::try_from(certificate.expires_in_seconds)
        .map_or_else(|_| "expired".into(), |remaining| format!("in {}", format_seconds(remaining)));
    line("certificate", format!("until {} ({remaining})", certificate.not_after), tone);
    line("  names", certificate.names.join(" "), Tone::Plain);
    line("  fingerprint", certificate.fingerprint.clone(), Tone::Plain);
    line("  public key", format!("sha256//{}", certificate.public_key), Tone::Plain);
    if let Some(ca) = &certificate.ca_fingerprint {
        line("  CA", ca.clone(), Tone::Plain);
    }
    if let Some(problem) = &certificate.problem {
        line("  problem", problem.clone(), Tone::Bad);
    }
    let discovery = &status.discovery;
    let since = discovery.for_seconds.map(|seconds| format!(" for {}", format_seconds(seconds))).unwrap_or_default();
    let error = discovery.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let (source, state) = discovery.source();
    let tone = if matches!(state, "live" | "off") { Tone::Plain } else { Tone::Bad };
    line(&source.to_lowercase(), format!("{state}{since}{error}"), tone);
    if let Some(owner) = &discovery.owner {
        let project = discovery.project.as_ref().map(|project| format!(", project {project}")).unwrap_or_default();
        line("namespace of", format!("{owner}{project}"), Tone::Plain);
    }
    if discovery.namespace != "attached" {
        line("namespace", discovery.namespace.clone(), Tone::Bad);
    }
    line("lanes", format!("agent {}, external {}", status.lanes.agent, status.lanes.external), Tone::Plain);
    if let Some(sandbox) = &status.sandbox {
        line("sandbox", sandbox.text(), if sandbox.problem.is_some() { Tone::Fair } else { Tone::Plain });
    }
    table
}

/// Returns the table of agents.
fn agents_table(status: &Status) -> Table {
    let heading = if status.discovery.source().0 == "Kubernetes" { "POD" } else { "CONTAINER" };
    let mut table = Table::new(&[heading, "ADDRESSES", "PROOF", "CONNECTIONS", "SCOPES"]);
    for agent in &status.agents {
        let scopes = agent.scopes.as_ref().map_or_else(|| "no cap".to_owned(), |scopes| scopes.join(","));
        let cells = [
            agent.container.clone(),
            agent.addresses.join(" "),
            agent.proof.clone(),
            agent.connections.to_string(),
            scopes,
        ];
        table.row(cells.map(|cell| (cell, Tone::Plain)));
    }
    table
}

/// Returns the table of connections.
fn connections_table(connections: &[ConnectionStatus]) -> Table {
    let mut table = Table::new(&["PEER", "LANE", "FOR", "PROTOCOL", "WHO"]);
    for connection in connections {
        let lane = if connection.lane == "agent" { Tone::Good } else { Tone::Plain };
        let by = connection.basis.as_ref().map(|basis| format!("by {basis}"));
        let why = connection.why_not_agent.as_ref().map(|why| format!("not an agent: {why}"));
        let who: Vec<_> = [connection.who.clone(), by, why].into_iter().flatten().collect();
        table.row([
            (connection.peer.clone(), Tone::Plain),
            (connection.lane.clone(), lane),
            (format_seconds(connection.for_seconds), Tone::Plain),
            (connection.protocol.clone(), Tone::Plain),
            (who.join(", "), if connection.why_not_agent.is_some() { Tone::Fair } else { Tone::Plain }),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::example;

    #[test]
    fn the_status_is_shown_as_text() {
        let shown = status_text(&example(), false);
        for part in [
            "loopgate 0.1.0 is ready, up 1h 2m\n",
            "  listening      172.18.0.2:18789\n",
            "  plain HTTP     172.18.0.2:8080 for trusted proxies\n",
            "  gateway        127.0.0.1:18789 reachable\n",
            "  forward        172.18.0.2:18793 to 127.0.0.1:18793 connection refused\n",
            "  docker         live for 1h 2m\n",
            "  sandbox        seccomp, landlock\n",
            "  demo-agent-1  172.18.0.3  attested  1            operator.read\n",
            "  other-agent-1  it is in project \"other\"\n",
            "  172.18.0.3:40001  agent     1m   http/1.1  demo-agent-1, by attested\n",
            "  172.18.0.3:40002  external  1m   http/1.1  not an agent: demo-agent-1 must show a certificate\n",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
        assert!(!shown.contains('\x1b'));
    }

    #[test]
    fn problems_are_shown() {
        let mut status = example();
        status.ready = false;
        status.not_ready = vec!["stopping".into()];
        status.gateway.error = Some("connection refused".into());
        status.not_listening = vec!["nope0:28444".into()];
        status.certificate.problem = Some("disk full".into());
        status.lanes.external = 2001;
        let shown = status_text(&status, false);
        for part in [
            "is not ready",
            "  stopping\n",
            "nope0:28444: no local",
            "127.0.0.1:18789 connection refused",
            "disk full",
            "and 2000 more",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
    }
}

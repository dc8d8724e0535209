//! The page at `/`: the status as HTML, without scripts or external resources.

use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use maud::{Markup, html};

use super::status::{CertificateStatus, ConnectionStatus, DiscoveryStatus, Status, format_seconds};
use crate::discovery::agent_labels;
use crate::html_page::html_page;

const STYLE: &str = include_str!("page.css");

/// The largest number of connections that the page shows; `/status` lists more.
const MAX_ROWS: usize = 200;
/// A certificate that expires within this many seconds is highlighted.
const EXPIRES_SOON_SECONDS: i64 = 7 * 24 * 60 * 60;

/// The `Content-Security-Policy` of the page. It allows only the inline style sheet.
pub(super) static SECURITY_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let style = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("base64 is ASCII")
});

/// Returns the interval at which the page reloads itself: `refresh=SECONDS` in its query, from a
/// second to an hour. `None` for any other value, or without one: the page does not reload itself.
pub(super) fn refresh_interval(query: Option<&str>) -> Option<Duration> {
    let seconds = query?.split('&').find_map(|pair| pair.strip_prefix("refresh="))?.parse().ok()?;
    (1..=3600).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// Renders the page, which reloads itself at the interval `refresh`. maud escapes all values.
pub(super) fn render(status: &Status, refresh: Option<Duration>) -> String {
    let head = html! {
        @if let Some(after) = refresh { meta http-equiv="refresh" content=(after.as_secs()); }
    };
    let body = html! {
        header {
            h1 { "loopgate" }
            span .badge .good[status.ready] .bad[!status.ready] { (readiness_text(status)) }
            span .quiet { (status.version) ", up " (format_seconds(status.uptime_seconds)) }
            nav {
                @if refresh.is_some() { a href="/" { "Stop refreshing" } }
                @else { a href="/?refresh=5" { "Refresh every 5 s" } }
                a href="/status" { "JSON" }
                a href="/metrics" { "Metrics" }
            }
        }
        main {
            @for reason in &status.not_ready { p .alert { (reason) } }
            @if let Some(problem) = &status.config_problem {
                p .alert {
                    "The last reload was rejected, the old configuration is still in use: " (problem)
                }
            }
            div .cards {
                (render_traffic(status))
                (render_certificate(&status.certificate))
                (render_discovery(&status.discovery))
            }
            (render_agents(status))
            (render_connections(status))
        }
    };
    html_page(readiness_text(status), STYLE, &head, &body)
}

fn readiness_text(status: &Status) -> &'static str {
    if status.ready { "ready" } else { "not ready" }
}

/// Renders the listeners, the gateway, the port forwards, the number of connections of each lane,
/// and the sandbox.
fn render_traffic(status: &Status) -> Markup {
    html! {
        section {
            h2 { "Traffic" }
            dl {
                dt { "Listening" }
                dd {
                    @for address in &status.listening { code { (address) } " " }
                    @if status.listening.is_empty() { "nowhere" }
                }
                @if !status.listening_plain.is_empty() {
                    dt { "Plain HTTP" }
                    dd { @for address in &status.listening_plain { code { (address) } " " } "for trusted proxies" }
                }
                dt { "Gateway" }
                dd {
                    code { (status.gateway.address) } " "
                    @if status.gateway.reachable { span .good { "reachable" } }
                    @else { span .bad { (status.gateway.error.as_deref().unwrap_or("not reachable")) } }
                }
                @for forward in &status.forwards {
                    dt { "Forward" }
                    dd {
                        code { (forward.listening.join(" ")) } " to " code { (forward.target) } " "
                        @if forward.reachable { span .good { "reachable" } }
                        @else { span .bad { (forward.error.as_deref().unwrap_or("not reachable")) } }
                    }
                }
                dt { "Agent lane" } dd { (format_count(status.lanes.agent, "connection")) }
                dt { "External lane" } dd { (format_count(status.lanes.external, "connection")) }
                @if let Some(sandbox) = &status.sandbox {
                    dt { "Sandbox" } dd .fair[sandbox.problem.is_some()] { (sandbox.text()) }
                }
            }
        }
    }
}

/// Renders the served certificate, and why a newer one is not served.
fn render_certificate(certificate: &CertificateStatus) -> Markup {
    let remaining_seconds = certificate.expires_in_seconds;
    html! {
        section {
            h2 { "Certificate" }
            dl {
                @if let Some(problem) = &certificate.problem { dt { "Problem" } dd .bad { (problem) } }
                dt { "Names" } dd { @for name in &certificate.names { code { (name) } " " } }
                dt { "Expires" }
                dd .bad[remaining_seconds <= 0] .warning[remaining_seconds > 0 && remaining_seconds < EXPIRES_SOON_SECONDS] {
                    time datetime=(certificate.not_after) { (format_to_minute(&certificate.not_after)) }
                    @match u64::try_from(remaining_seconds) {
                        Ok(remaining_seconds) => { ", in " (format_seconds(remaining_seconds)) }
                        Err(_) => ", has expired"
                    }
                }
                dt { "Fingerprint" } dd { code .long { (certificate.fingerprint) } }
                dt { "Public key" } dd { code .long { "sha256//" (certificate.public_key) } }
                @if let Some(ca) = &certificate.ca_fingerprint { dt { "CA" } dd { code .long { (ca) } } }
            }
        }
    }
}

/// Renders the state of discovery, the owner of the namespace, and the namespace's addresses and
/// names.
fn render_discovery(discovery: &DiscoveryStatus) -> Markup {
    let (source, state) = discovery.source();
    let (live, off) = (state == "live", state == "off");
    html! {
        section {
            h2 { "Discovery" }
            dl {
                dt { (source) }
                dd {
                    span .good[live] .bad[!live && !off] { (state) }
                    @if let Some(seconds) = discovery.for_seconds { " for " (format_seconds(seconds)) }
                    @if let Some(error) = &discovery.error { ": " (error) }
                }
                @if let Some(owner) = &discovery.owner {
                    dt { "Namespace of" }
                    dd {
                        code { (owner) }
                        @if let Some(project) = &discovery.project { ", project " code { (project) } }
                    }
                }
                @if discovery.namespace != "attached" { dt { "Namespace" } dd .bad { (discovery.namespace) } }
                dt { "Own addresses" } dd { @for address in &discovery.own_addresses { code { (address) } " " } }
                @if !discovery.own_names.is_empty() {
                    dt { "Own names" } dd { @for name in &discovery.own_names { code { (name) } " " } }
                }
            }
        }
    }
}

/// Renders the agents, then the labelled containers or pods that are not agents.
fn render_agents(status: &Status) -> Markup {
    let (noun, heading, label) = match status.discovery.source() {
        ("Kubernetes", _) => ("pod", "Pod", agent_labels::POD_AGENT),
        _ => ("container", "Container", agent_labels::AGENT),
    };
    html! {
        section {
            h2 { "Agents" }
            @if status.agents.is_empty() && status.not_agents.is_empty() {
                p .quiet { "No " (noun) " is labelled " code { (label) } "." }
            } @else {
                div .scroll {
                    table {
                        thead {
                            tr {
                                th { (heading) } th { "Addresses" } th { "Proof" } th { "Scopes" } th { "Connections" }
                            }
                        }
                        tbody {
                            @for agent in &status.agents {
                                tr {
                                    td { code { (agent.container) } }
                                    td { @for address in &agent.addresses { code { (address) } " " } }
                                    td { (agent.proof) }
                                    td {
                                        @if let Some(scopes) = &agent.scopes { (scopes.join(", ")) }
                                        @else { "no cap" }
                                    }
                                    td .number { (agent.connections) }
                                }
                            }
                            @for candidate in &status.not_agents {
                                tr {
                                    td { code { (candidate.container) } }
                                    td colspan="4" .warning { "not an agent: " (candidate.why) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Renders the oldest connections, at most [`MAX_ROWS`].
fn render_connections(status: &Status) -> Markup {
    let total = status.lanes.agent + status.lanes.external;
    let shown = status.connections.len().min(MAX_ROWS);
    html! {
        section {
            h2 { "Connections" }
            @if total == 0 { p .quiet { "There are no connections." } } @else {
                div .scroll {
                    table {
                        thead { tr { th { "Peer" } th { "Lane" } th { "Who" } th { "Protocol" } th { "For" } } }
                        tbody { @for connection in &status.connections[..shown] { (connection_row(connection)) } }
                    }
                }
                @if shown < total { p .quiet { "The oldest " (shown) " of " (total) "." } }
            }
        }
    }
}

/// Renders a connection as a row of the table.
fn connection_row(connection: &ConnectionStatus) -> Markup {
    html! {
        tr {
            td { code { (connection.peer) } }
            td { span .lane .agent[connection.lane == "agent"] { (connection.lane) } }
            td {
                @if let Some(who) = &connection.who { code { (who) } " " }
                @if let Some(basis) = &connection.basis { span .quiet { (basis_in_words(basis)) } }
                @if let Some(why) = &connection.why_not_agent { span .warning { (why) } }
            }
            td { (connection.protocol) }
            td { time title=(connection.since) { (format_seconds(connection.for_seconds)) } }
        }
    }
}

/// Returns what makes a client an agent in words, for a basis as `/status` names it.
fn basis_in_words(label: &str) -> &str {
    match label {
        "own-address" => "by its own address",
        "cidr" => "by its network",
        "address" => "by its address",
        "certificate" => "by its certificate",
        other => other,
    }
}

/// Formats an RFC 3339 time in UTC to the minute.
fn format_to_minute(moment: &str) -> String {
    match (moment.get(..10), moment.get(11..16)) {
        (Some(day), Some(time)) if moment.ends_with('Z') => format!("{day} {time} UTC"),
        _ => moment.to_owned(),
    }
}

fn format_count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::example;

    #[test]
    fn every_value_is_escaped() {
        let hostile = "<script>alert(1)</script>\"'&";
        let mut status = example();
        status.gateway.error = Some(hostile.into());
        status.gateway.reachable = false;
        status.not_ready = vec![hostile.into()];
        status.certificate.names = vec![hostile.into()];
        status.certificate.problem = Some(hostile.into());
        status.config_problem = Some(hostile.into());
        status.discovery.error = Some(hostile.into());
        status.discovery.own_names = vec![hostile.into()];
        status.agents[0].container = hostile.into();
        status.agents[0].scopes = Some(vec![hostile.into()]);
        status.not_agents[0].why = hostile.into();
        for connection in &mut status.connections {
            connection.peer = hostile.into();
            connection.who = Some(hostile.into());
            connection.since = hostile.into();
            connection.why_not_agent = Some(hostile.into());
        }
        let page = render(&status, None);
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;"), "{page}");
    }

    #[test]
    fn the_page_loads_and_runs_nothing() {
        let page = render(&example(), Some(Duration::from_secs(5)));
        for never in ["<script", "src=", "style=\"", "<link", "url(", "@import", "onclick"] {
            assert!(!page.contains(never), "{never} in {page}");
        }
        assert!(page.contains("<meta http-equiv=\"refresh\" content=\"5\">"));
        assert!(SECURITY_POLICY.to_str().unwrap().starts_with("default-src 'none'; style-src 'sha256-"));
    }

    #[test]
    fn long_lists_are_cut() {
        let mut status = example();
        status.connections = std::iter::repeat_n(status.connections[0].clone(), 300).collect();
        status.lanes.external = 5000;
        let page = render(&status, None);
        assert!(page.contains("The oldest 200 of 500"), "{page}");
        assert_eq!(page.matches("<tr><td><code>172.18.0.3:").count(), 200);
    }

    #[test]
    fn machine_values_are_shown_in_words() {
        let mut status = example();
        status.certificate.not_after = "2026-04-01T00:00:00Z".into();
        let page = render(&status, None);
        assert!(page.contains(">2026-04-01 00:00 UTC</time>"), "{page}");
        assert!(page.contains(">attested</span>") && !page.contains("by attested"), "{page}");
        assert_eq!(["cidr", "attested"].map(basis_in_words), ["by its network", "attested"]);
        assert_eq!(["soon", "2026-04-01T00:00:00+01:00"].map(format_to_minute), ["soon", "2026-04-01T00:00:00+01:00"]);
    }

    #[test]
    fn agents_are_called_containers_or_pods() {
        let (mut docker, mut kubernetes) = (example(), example());
        (kubernetes.discovery.docker, kubernetes.discovery.kubernetes) = ("off".into(), "live".into());
        assert!(
            render(&docker, None).contains("<th>Container</th>") && render(&kubernetes, None).contains("<th>Pod</th>")
        );
        for status in [&mut docker, &mut kubernetes] {
            status.agents.clear();
            status.not_agents.clear();
        }
        assert!(render(&docker, None).contains("No container is labelled <code>loopgate.agent</code>."));
        assert!(render(&kubernetes, None).contains("No pod is labelled <code>loopgate.dev/agent</code>."));
    }

    #[test]
    fn only_a_sensible_time_refreshes() {
        let table = [
            (None, None),
            (Some("refresh=5"), Some(5)),
            (Some("a=b&refresh=60"), Some(60)),
            (Some("refresh=0"), None),
            (Some("refresh=5;url=//evil.example"), None),
            (Some("refresh=9999"), None),
        ];
        for (query, expected) in table {
            assert_eq!(refresh_interval(query), expected.map(Duration::from_secs), "{query:?}");
        }
    }
}

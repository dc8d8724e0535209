//! Judges what the gateway answered to probes.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use super::catalogue as kind;
use super::finding::{Remedy, Report};

/// What was seen of the gateway.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where it should be.
    pub address: SocketAddr,
    /// The source address of the external lane.
    pub external_source: IpAddr,
    /// What answers there.
    pub voice: Voice,
    /// Where else it answers, and whether by TLS.
    pub exposed: Vec<(SocketAddr, bool)>,
    /// How it takes a local client without forwarding headers.
    pub local: Believed,
    /// How it takes a client of the external lane.
    pub external: Believed,
    /// Whom it trusts as a proxy, out of those that were tried.
    pub trusts: Vec<(IpAddr, bool)>,
    /// Whether a browser at this origin may connect.
    pub origins: Vec<(String, bool)>,
    /// The origins that its own configuration allows, as far as it was read.
    pub allowed: Vec<String>,
}

/// What answers at the gateway's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Voice {
    /// Nobody.
    Silent(String),
    /// A TLS server.
    Tls,
    /// A gateway that is starting.
    Starting,
    /// A gateway with health endpoints (2026.4 and later), and its version where it tells.
    Modern(Option<String>),
    /// An older gateway.
    Old,
    /// Something else.
    Other(String),
}

/// For what the gateway takes a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Believed {
    /// One of its own host.
    Local,
    /// One from elsewhere.
    Remote,
    /// Nobody it would talk with: it doesn't trust the proxy.
    Refused,
    /// That did not become clear.
    Unclear(String),
}

/// What to do so that exactly the external lane is trusted.
pub(super) fn trust_exactly(source: IpAddr) -> Remedy {
    Remedy::OpenClaw { key: "gateway.trustedProxies", value: json!([source.to_string()]) }
}

pub(super) fn bind_loopback() -> Remedy {
    Remedy::OpenClaw { key: "gateway.bind", value: json!("loopback") }
}

pub(super) fn no_tls() -> Remedy {
    Remedy::OpenClaw { key: "gateway.tls.enabled", value: json!(false) }
}

/// Judges all of it.
pub fn judge(seen: &Seen, report: &mut Report) {
    let Seen { address, .. } = seen;
    if !address.ip().is_loopback() {
        let remedy = Remedy::words("run loopgate in the gateway's network namespace, with --gateway 127.0.0.1:PORT");
        report.find(&kind::GATEWAY_REMOTE, format!("the gateway is at {address}"), remedy);
    }
    exposed(seen, report);
    match &seen.voice {
        Voice::Silent(error) => {
            let port = address.port();
            let remedy = Remedy::words(format!(
                "start the gateway with gateway.mode: \"local\", gateway.bind: \"loopback\", gateway.port: {port} in this network namespace \
                 (network_mode: \"service:...\")"
            ));
            return report.find(&kind::GATEWAY_DOWN, format!("{address}: {error}"), remedy);
        }
        Voice::Tls => return report.find(&kind::GATEWAY_TLS, format!("{address} answers by TLS"), no_tls()),
        Voice::Starting => {
            let remedy = Remedy::words("wait until it has started, and check again");
            return report.find(&kind::GATEWAY_STARTING, format!("{address} answers 503"), remedy);
        }
        Voice::Other(answer) => {
            let remedy = Remedy::words("point --gateway at the gateway's own port");
            return report.find(&kind::GATEWAY_UNKNOWN, format!("{address} answers {answer}"), remedy);
        }
        Voice::Modern(Some(version)) => report.fine("gateway", format!("{version} answers at {address}")),
        Voice::Modern(None) => report.fine("gateway", format!("it answers at {address}")),
        Voice::Old => report.fine("gateway", format!("a version without health endpoints (before 2026.4) answers at {address}")),
    }
    lanes(seen, report);
    trust(seen, report);
    origins(seen, report);
}

fn exposed(seen: &Seen, report: &mut Report) {
    for (address, tls) in &seen.exposed {
        let how = if *tls { "by TLS, with a certificate that is not the sidecar's" } else { "in plain text" };
        report.find(&kind::GATEWAY_EXPOSED, format!("{address} answers {how}"), bind_loopback());
    }
    if seen.exposed.is_empty() && !matches!(seen.voice, Voice::Silent(_)) {
        report.fine("gateway", "it can't be reached on an address of the bridge");
    }
}

fn lanes(seen: &Seen, report: &mut Report) {
    let source = seen.external_source;
    match &seen.external {
        Believed::Remote => report.fine("external lane", "the gateway takes its clients for remote ones"),
        Believed::Local => {
            let what = format!("a request from {source} that says it is for 198.51.100.7 is answered as one of a local client");
            report.find(&kind::EXTERNAL_LOCAL, what, trust_exactly(source));
        }
        Believed::Refused => {
            let what = format!("a forwarded request from {source} is answered 403 (proxy_attribution_required)");
            report.find(&kind::PROXIES_MISSING, what, trust_exactly(source));
        }
        Believed::Unclear(answer) => {
            let remedy = Remedy::words("check again with --openclaw-config FILE, which reads it from the gateway's own configuration");
            report.find(&kind::LANES_UNKNOWN, format!("a forwarded request from {source} is answered {answer}"), remedy);
        }
    }
    match seen.local {
        Believed::Local => report.fine("agent lane", "the gateway takes its clients for local ones"),
        Believed::Remote | Believed::Refused => {
            let what = "a request from 127.0.0.1 without forwarding headers is answered as one of a remote client";
            report.find(&kind::PROXIES_LOOPBACK, what, trust_exactly(source));
        }
        Believed::Unclear(_) => {}
    }
}

fn trust(seen: &Seen, report: &mut Report) {
    let source = seen.external_source;
    for (proxy, trusted) in &seen.trusts {
        let what = format!("{proxy} is believed about its clients");
        match (*proxy == source, trusted) {
            (true, true) => report.fine("external lane", format!("{source} is trusted as a proxy")),
            (true, false) => {
                report.find(&kind::PROXIES_MISSING, format!("{source} is not believed about its clients"), trust_exactly(source))
            }
            (false, true) if proxy.is_loopback() && is_first(proxy) => report.find(&kind::PROXIES_LOOPBACK, what, trust_exactly(source)),
            (false, true) => report.find(&kind::PROXIES_WIDE, what, trust_exactly(source)),
            (false, false) => {}
        }
    }
}

/// 127.0.0.1, from which everything local comes.
pub(super) fn is_first(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.octets() == [127, 0, 0, 1]) || matches!(ip, IpAddr::V6(ip) if ip.is_loopback())
}

fn origins(seen: &Seen, report: &mut Report) {
    let refused: Vec<&String> = seen.origins.iter().filter(|(_, allowed)| !allowed).map(|(origin, _)| origin).collect();
    if !refused.is_empty() {
        let all: Vec<&String> = seen.allowed.iter().chain(refused.iter().copied()).collect();
        let remedy = Remedy::OpenClaw { key: "gateway.controlUi.allowedOrigins", value: json!(all) };
        let list = refused.iter().map(|origin| origin.as_str()).collect::<Vec<_>>().join(", ");
        report.find(&kind::ORIGIN, format!("a page from {list} may not connect (leave out what no browser's address bar shows)"), remedy);
    }
    for (origin, _) in seen.origins.iter().filter(|(_, allowed)| *allowed) {
        report.fine("browsers", format!("{origin} may connect"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Seen {
        Seen {
            address: "127.0.0.1:18789".parse().unwrap(),
            external_source: "127.0.0.2".parse().unwrap(),
            voice: Voice::Modern(Some("2026.9.6".into())),
            exposed: Vec::new(),
            local: Believed::Local,
            external: Believed::Remote,
            trusts: vec![("127.0.0.1".parse().unwrap(), false), ("127.0.0.2".parse().unwrap(), true)],
            origins: vec![("https://gateway.example.com".into(), true)],
            allowed: vec!["https://old.example".into()],
        }
    }

    #[test]
    fn each_fault_is_found_with_its_remedy() {
        let trusts = |ip: &str| {
            let mut seen = well();
            seen.trusts.push((ip.parse().unwrap(), true));
            seen
        };
        let exact = Some(("gateway.trustedProxies", json!(["127.0.0.2"])));
        let table = [
            (well(), vec![], None),
            (Seen { voice: Voice::Silent("connection refused".into()), ..well() }, vec!["gateway-down"], None),
            (Seen { voice: Voice::Tls, ..well() }, vec!["gateway-tls"], Some(("gateway.tls.enabled", json!(false)))),
            (Seen { voice: Voice::Starting, ..well() }, vec!["gateway-starting"], None),
            (Seen { voice: Voice::Other("SSH".into()), ..well() }, vec!["gateway-unknown"], None),
            (
                Seen { exposed: vec![("172.18.0.2:18789".parse().unwrap(), false)], ..well() },
                vec!["gateway-exposed"],
                Some(("gateway.bind", json!("loopback"))),
            ),
            (Seen { address: "172.18.0.2:18789".parse().unwrap(), ..well() }, vec!["gateway-remote"], None),
            (Seen { external: Believed::Local, ..well() }, vec!["external-lane-local"], exact.clone()),
            (Seen { external: Believed::Refused, ..well() }, vec!["trusted-proxies-missing"], exact.clone()),
            (Seen { external: Believed::Unclear("500".into()), ..well() }, vec!["lanes-unknown"], None),
            (Seen { local: Believed::Remote, ..well() }, vec!["trusted-proxies-loopback"], exact.clone()),
            (Seen { trusts: vec![("127.0.0.2".parse().unwrap(), false)], ..well() }, vec!["trusted-proxies-missing"], exact.clone()),
            (trusts("127.0.0.1"), vec!["trusted-proxies-loopback"], exact.clone()),
            (trusts("127.0.0.3"), vec!["trusted-proxies-wide"], exact.clone()),
            (trusts("172.18.0.2"), vec!["trusted-proxies-wide"], exact),
            (
                Seen { origins: vec![("https://gw.example".into(), false)], ..well() },
                vec!["origin-not-allowed"],
                Some(("gateway.controlUi.allowedOrigins", json!(["https://old.example", "https://gw.example"]))),
            ),
        ];
        for (seen, expected, remedy) in table {
            let mut report = Report::default();
            judge(&seen, &mut report);
            assert_eq!(report.ids(), expected, "{seen:?}");
            if let Some((key, value)) = remedy {
                assert_eq!(report.findings[0].remedy, Remedy::OpenClaw { key, value }, "{seen:?}");
            }
        }
    }

    #[test]
    fn a_refusal_and_a_disbelief_are_one_finding() {
        let mut report = Report::default();
        let trusts = vec![("127.0.0.2".parse().unwrap(), false)];
        judge(&Seen { external: Believed::Refused, trusts, ..well() }, &mut report);
        assert_eq!(report.ids(), ["trusted-proxies-missing"]);
        assert_eq!(report.findings[0].seen.len(), 2);
    }
}

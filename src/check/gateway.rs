//! Findings about the gateway, from its responses to the probes.

use std::net::IpAddr;

use serde_json::json;

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::openclaw::probe::{Classification, GatewayObservation, Server};

/// Returns the remedy that makes the external lane's source the only trusted proxy.
pub(super) fn trust_exactly_remedy(source: IpAddr) -> Remedy {
    Remedy::OpenClaw { key: "gateway.trustedProxies", value: json!([source.to_string()]) }
}

pub(super) fn bind_loopback_remedy() -> Remedy {
    Remedy::OpenClaw { key: "gateway.bind", value: json!("loopback") }
}

pub(super) fn no_tls_remedy() -> Remedy {
    Remedy::OpenClaw { key: "gateway.tls.enabled", value: json!(false) }
}

/// Adds the findings about the gateway.
pub fn judge(observation: &GatewayObservation, report: &mut Report) {
    let GatewayObservation { address, .. } = observation;
    if !address.ip().is_loopback() {
        let remedy = Remedy::in_words("run loopgate in the gateway's network namespace, with --gateway 127.0.0.1:PORT");
        report.add_finding(&kind::GATEWAY_REMOTE, format!("the gateway is at {address}"), remedy);
    }
    judge_exposure(observation, report);
    match &observation.server {
        Server::Unreachable(error) => {
            let port = address.port();
            let remedy = Remedy::in_words(format!(
                "start the gateway with gateway.mode: \"local\", gateway.bind: \"loopback\", gateway.port: {port} in \
                 this network namespace (network_mode: \"service:...\"). If its log says \"another gateway instance is \
                 already listening\", its command line has --bind or --force, or its environment \
                 OPENCLAW_GATEWAY_BIND, which beat openclaw.json: remove them"
            ));
            return report.add_finding(&kind::GATEWAY_DOWN, format!("{address}: {error}"), remedy);
        }
        Server::Tls => {
            return report.add_finding(&kind::GATEWAY_TLS, format!("{address} answers by TLS"), no_tls_remedy());
        }
        Server::Starting => {
            let remedy = Remedy::in_words("wait until it has started, and check again");
            return report.add_finding(&kind::GATEWAY_STARTING, format!("{address} answers 503"), remedy);
        }
        Server::Other(answer) => {
            let remedy = Remedy::in_words("point --gateway at the gateway's own port");
            return report.add_finding(&kind::GATEWAY_UNKNOWN, format!("{address} answers {answer}"), remedy);
        }
        Server::Modern(Some(version)) => report.add_passed("gateway", format!("{version} answers at {address}")),
        Server::Modern(None) => report.add_passed("gateway", format!("it answers at {address}")),
        Server::Old => report
            .add_passed("gateway", format!("a version without health endpoints (before 2026.4) answers at {address}")),
    }
    judge_lanes(observation, report);
    judge_trusted_proxies(observation, report);
    judge_origins(observation, report);
}

/// Adds a finding for each address of the bridge on which the gateway answers.
fn judge_exposure(observation: &GatewayObservation, report: &mut Report) {
    for (address, tls) in &observation.exposed {
        let how = if *tls { "by TLS, with a certificate that is not the sidecar's" } else { "in plain text" };
        report.add_finding(&kind::GATEWAY_EXPOSED, format!("{address} answers {how}"), bind_loopback_remedy());
    }
    if observation.exposed.is_empty() && !matches!(observation.server, Server::Unreachable(_)) {
        report.add_passed("gateway", "it can't be reached on an address of the bridge");
    }
}

/// Adds the findings about how the gateway classifies the clients of each lane.
fn judge_lanes(observation: &GatewayObservation, report: &mut Report) {
    let source = observation.external_source;
    match &observation.external {
        Classification::Remote => report.add_passed("external lane", "the gateway treats its clients as remote"),
        Classification::Local => {
            let description = format!(
                "a request from {source} that is forwarded for 198.51.100.7 is answered as one of a local client"
            );
            report.add_finding(&kind::EXTERNAL_LOCAL, description, trust_exactly_remedy(source));
        }
        Classification::Refused => {
            let description = format!("a forwarded request from {source} is answered 403 (proxy_attribution_required)");
            report.add_finding(&kind::PROXIES_MISSING, description, trust_exactly_remedy(source));
        }
        Classification::Unclear(answer) => {
            let remedy = Remedy::in_words(
                "check again with --openclaw-config FILE, which has loopgate read the gateway's configuration",
            );
            report.add_finding(
                &kind::LANES_UNKNOWN,
                format!("a forwarded request from {source} is answered {answer}"),
                remedy,
            );
        }
    }
    match observation.local {
        Classification::Local => report.add_passed("agent lane", "the gateway treats its clients as local"),
        Classification::Remote | Classification::Refused => {
            let description =
                "a request from 127.0.0.1 without forwarding headers is answered as one of a remote client";
            report.add_finding(&kind::PROXIES_LOOPBACK, description, trust_exactly_remedy(source));
        }
        Classification::Unclear(_) => {}
    }
}

/// Adds the findings about the addresses that the gateway trusts as proxies: exactly the external
/// lane's source should be trusted.
fn judge_trusted_proxies(observation: &GatewayObservation, report: &mut Report) {
    let source = observation.external_source;
    for (proxy, trusted) in &observation.trusts {
        let description = format!("{proxy} is trusted as a proxy");
        match (*proxy == source, trusted) {
            (true, true) => report.add_passed("external lane", format!("{source} is trusted as a proxy")),
            (true, false) => report.add_finding(
                &kind::PROXIES_MISSING,
                format!("{source} is not trusted as a proxy"),
                trust_exactly_remedy(source),
            ),
            // A gateway that still treats its own clients as local is one of the newer versions.
            (false, true) if is_first_loopback(proxy) && observation.local != Classification::Local => {
                report.add_finding(&kind::PROXIES_LOOPBACK, description, trust_exactly_remedy(source))
            }
            (false, true) => report.add_finding(&kind::PROXIES_WIDE, description, trust_exactly_remedy(source)),
            (false, false) => {}
        }
    }
}

/// Returns whether `ip` is 127.0.0.1 or ::1, from which local clients connect.
fn is_first_loopback(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.octets() == [127, 0, 0, 1]) || matches!(ip, IpAddr::V6(ip) if ip.is_loopback())
}

/// Adds the findings about the origins of web pages. The remedy keeps the origins that are allowed
/// already.
fn judge_origins(observation: &GatewayObservation, report: &mut Report) {
    let refused: Vec<&String> =
        observation.origins.iter().filter(|(_, allowed)| !allowed).map(|(origin, _)| origin).collect();
    if !refused.is_empty() {
        let wanted_origins: Vec<&String> = observation.allowed.iter().chain(refused.iter().copied()).collect();
        let remedy = Remedy::OpenClaw { key: "gateway.controlUi.allowedOrigins", value: json!(wanted_origins) };
        let refused_list = refused.iter().map(|origin| origin.as_str()).collect::<Vec<_>>().join(", ");
        report.add_finding(
            &kind::ORIGIN,
            format!(
                "a page from {refused_list} may not connect (leave out origins that no browser's address bar shows)"
            ),
            remedy,
        );
    }
    for (origin, _) in observation.origins.iter().filter(|(_, allowed)| *allowed) {
        report.add_passed("browsers", format!("{origin} may connect"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy_gateway() -> GatewayObservation {
        GatewayObservation {
            address: "127.0.0.1:18789".parse().unwrap(),
            external_source: "127.0.0.2".parse().unwrap(),
            server: Server::Modern(Some("2026.9.6".into())),
            exposed: Vec::new(),
            local: Classification::Local,
            external: Classification::Remote,
            trusts: vec![("127.0.0.1".parse().unwrap(), false), ("127.0.0.2".parse().unwrap(), true)],
            origins: vec![("https://gateway.example.com".into(), true)],
            allowed: vec!["https://old.example".into()],
        }
    }

    #[test]
    fn each_fault_is_found_with_its_remedy() {
        let trusts = |ip: &str| {
            let mut observation = healthy_gateway();
            observation.trusts.push((ip.parse().unwrap(), true));
            observation
        };
        let exact = Some(("gateway.trustedProxies", json!(["127.0.0.2"])));
        let table = [
            (healthy_gateway(), vec![], None),
            (
                GatewayObservation { server: Server::Unreachable("connection refused".into()), ..healthy_gateway() },
                vec!["gateway-down"],
                None,
            ),
            (
                GatewayObservation { server: Server::Tls, ..healthy_gateway() },
                vec!["gateway-tls"],
                Some(("gateway.tls.enabled", json!(false))),
            ),
            (GatewayObservation { server: Server::Starting, ..healthy_gateway() }, vec!["gateway-starting"], None),
            (
                GatewayObservation { server: Server::Other("SSH".into()), ..healthy_gateway() },
                vec!["gateway-unknown"],
                None,
            ),
            (
                GatewayObservation { exposed: vec![("172.18.0.2:18789".parse().unwrap(), false)], ..healthy_gateway() },
                vec!["gateway-exposed"],
                Some(("gateway.bind", json!("loopback"))),
            ),
            (
                GatewayObservation { address: "172.18.0.2:18789".parse().unwrap(), ..healthy_gateway() },
                vec!["gateway-remote"],
                None,
            ),
            (
                GatewayObservation { external: Classification::Local, ..healthy_gateway() },
                vec!["external-lane-local"],
                exact.clone(),
            ),
            (
                GatewayObservation { external: Classification::Refused, ..healthy_gateway() },
                vec!["trusted-proxies-missing"],
                exact.clone(),
            ),
            (
                GatewayObservation { external: Classification::Unclear("500".into()), ..healthy_gateway() },
                vec!["lanes-unknown"],
                None,
            ),
            (
                GatewayObservation { local: Classification::Remote, ..healthy_gateway() },
                vec!["trusted-proxies-loopback"],
                exact.clone(),
            ),
            (
                GatewayObservation { trusts: vec![("127.0.0.2".parse().unwrap(), false)], ..healthy_gateway() },
                vec!["trusted-proxies-missing"],
                exact.clone(),
            ),
            (trusts("127.0.0.1"), vec!["trusted-proxies-wide"], exact.clone()),
            (
                GatewayObservation { local: Classification::Unclear("200".into()), ..trusts("127.0.0.1") },
                vec!["trusted-proxies-loopback"],
                exact.clone(),
            ),
            (trusts("127.0.0.3"), vec!["trusted-proxies-wide"], exact.clone()),
            (trusts("172.18.0.2"), vec!["trusted-proxies-wide"], exact),
            (
                GatewayObservation { origins: vec![("https://gw.example".into(), false)], ..healthy_gateway() },
                vec!["origin-not-allowed"],
                Some(("gateway.controlUi.allowedOrigins", json!(["https://old.example", "https://gw.example"]))),
            ),
        ];
        for (observation, expected, remedy) in table {
            let mut report = Report::default();
            judge(&observation, &mut report);
            assert_eq!(report.ids(), expected, "{observation:?}");
            if let Some((key, value)) = remedy {
                assert_eq!(report.findings[0].remedy, Remedy::OpenClaw { key, value }, "{observation:?}");
            }
        }
    }

    #[test]
    fn a_refusal_and_a_disbelief_are_one_finding() {
        let mut report = Report::default();
        let trusts = vec![("127.0.0.2".parse().unwrap(), false)];
        judge(&GatewayObservation { external: Classification::Refused, trusts, ..healthy_gateway() }, &mut report);
        assert_eq!(report.ids(), ["trusted-proxies-missing"]);
        assert_eq!(report.findings[0].seen.len(), 2);
    }
}

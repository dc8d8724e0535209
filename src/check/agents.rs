//! Findings about agents, labelled containers that are not agents, and lists that trust clients by
//! their address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::json;

use super::catalogue as kind;
use super::finding::{Kind, Remedy, Report};
use crate::config::{Config, OwnAddresses};
use crate::discovery::{AgentKind, NamespaceState, View, WhyNotAgent};

/// Facts that make a source address a weak proof of identity, and that discovery does not know.
#[derive(Clone, Debug, Default)]
pub struct AddressRisks {
    /// The names of agents by address whose containers have NET_RAW, with which they can forge
    /// source addresses.
    pub net_raw: Vec<String>,
    /// Whether this process runs in a user namespace, as every container of a rootless engine does.
    pub user_namespace: bool,
}

/// The part of a container's configuration that determines its capabilities.
#[derive(Clone, Debug, Default)]
pub struct Capabilities {
    /// Whether the container is privileged.
    pub privileged: bool,
    /// Whether the engine's default capabilities include NET_RAW: Docker's do, Podman's do not.
    pub default_net_raw: bool,
    /// The capabilities that are added to the default ones.
    pub added: Vec<String>,
    /// The default capabilities that are dropped.
    pub dropped: Vec<String>,
}

impl Capabilities {
    /// Returns whether the container has NET_RAW. A capability that is both added and dropped is
    /// added.
    pub fn has_net_raw(&self) -> bool {
        let named =
            |list: &[String]| list.iter().any(|name| matches!(normalized_capability(name).as_str(), "ALL" | "NET_RAW"));
        self.privileged || named(&self.added) || (self.default_net_raw && !named(&self.dropped))
    }
}

/// Returns the name of a capability in upper case and without `CAP_`.
fn normalized_capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").map_or_else(|| name.clone(), Into::into)
}

/// Adds the findings about agents and address lists.
pub fn judge(view: &View, risks: &AddressRisks, config: &Config, report: &mut Report) {
    let names: BTreeSet<&str> = view.agents.values().map(|agent| agent.name.as_str()).collect();
    for name in names {
        let addresses_of_agent = || view.agents.iter().filter(|(_, agent)| agent.name == name);
        let addresses: Vec<String> = addresses_of_agent().map(|(ip, _)| ip.to_string()).collect();
        let proof = if addresses_of_agent().all(|(_, agent)| agent.kind == AgentKind::Attested) {
            "attested"
        } else {
            "by address"
        };
        report.add_passed("agents", format!("{name} ({}) is an agent, {proof}", addresses.join(", ")));
    }
    for (container, why) in &view.not_agents {
        let (kind, remedy) = kind_and_remedy(container, why);
        report.add_finding(kind, format!("{container}: {why}"), remedy);
    }
    for container in &risks.net_raw {
        let remedy = format!(
            "in the compose file give {container}, and whatever else is on its networks, cap_drop: [NET_RAW]; or label \
             it attested and let it run loopgate agent"
        );
        report.add_finding(
            &kind::AGENT_NET_RAW,
            format!("{container} is an agent by address, and has NET_RAW"),
            Remedy::in_words(remedy),
        );
    }
    if view.namespace != NamespaceState::Attached {
        let remedy = Remedy::in_words(
            "start the container that owns this network namespace, then restart the sidecar; `loopgate pause` as the \
             owner avoids this",
        );
        report.add_finding(&kind::NAMESPACE, "the interfaces of this network namespace are gone", remedy);
    }
    judge_own_addresses(risks, config, report);
    judge_trusted_bridge_addresses(view, config, report);
    judge_wide_networks(config, report);
    judge_plain_http(config, report);
}

/// Returns the kind of the finding for a labelled container that is not an agent, and the remedy.
fn kind_and_remedy(container: &str, why: &WhyNotAgent) -> (&'static Kind, Remedy) {
    match why {
        WhyNotAgent::UnknownLabelValue(_) => (
            &kind::AGENT_LABEL,
            Remedy::in_words(format!("label {container} loopgate.agent=attested, or =address, or take the label away")),
        ),
        WhyNotAgent::UnknownPodLabelValue(_) => (
            &kind::AGENT_LABEL,
            Remedy::in_words(format!(
                "label {container} loopgate.dev/agent=attested, or =address, or take the label away"
            )),
        ),
        WhyNotAgent::ImageLabel(_) => {
            let remedy = format!(
                "name the service of {container} in agents.services, or give it a label that its image does not have"
            );
            (&kind::AGENT_IMAGE, Remedy::in_words(remedy))
        }
        WhyNotAgent::ImageLabelsUnreadable(_) => (
            &kind::AGENT_IMAGE,
            Remedy::in_words("permit GET /images/{id}/json in the socket's filter, as docker/socket-filter does"),
        ),
        WhyNotAgent::HostNetwork => {
            let remedy = format!(
                "take {container} off hostNetwork, or give it a client certificate and list its URI in agents.uris"
            );
            (&kind::AGENT_HOST_NETWORK, Remedy::in_words(remedy))
        }
        WhyNotAgent::OwnerUnknown => {
            let remedy = "name by --container the container whose network namespace this is (the name or id of the \
                        gateway's, or of the pause container)";
            (&kind::AGENT_OWNER, Remedy::in_words(remedy))
        }
        WhyNotAgent::OwnNamespace => {
            (&kind::AGENT_NAMESPACE, Remedy::Loopgate { key: "listen.own_addresses", value: json!("agent") })
        }
        WhyNotAgent::SharesNamespace(_) => (
            &kind::AGENT_NAMESPACE,
            Remedy::in_words(format!("remove the label from {container}: --own-addresses decides its lane")),
        ),
        WhyNotAgent::OtherProject { .. } => {
            (&kind::AGENT_PROJECT, Remedy::Loopgate { key: "docker.any_project", value: json!(true) })
        }
        WhyNotAgent::NamespaceOwnerNotRunning => (
            &kind::AGENT_NAMESPACE,
            Remedy::in_words(format!(
                "start the container whose network namespace {container} shares, and restart {container}"
            )),
        ),
        WhyNotAgent::NoSharedNetwork => (
            &kind::AGENT_NETWORK,
            Remedy::in_words(format!(
                "put {container} on a network of the gateway's (docker network connect NETWORK {container})"
            )),
        ),
        WhyNotAgent::AmbiguousAddress(_) => (
            &kind::AGENT_DOUBT,
            Remedy::in_words(format!("recreate {container} on a network whose subnet no other network has")),
        ),
    }
}

/// Reports the lane of the namespace's own addresses: in a user namespace, such as a rootless
/// engine's, clients can have them too.
fn judge_own_addresses(risks: &AddressRisks, config: &Config, report: &mut Report) {
    let is_agent = config.listen.own_addresses == OwnAddresses::Agent;
    if risks.user_namespace && is_agent {
        let remedy = Remedy::Loopgate { key: "listen.own_addresses", value: json!("external") };
        let description =
            "this process is in a user namespace, as on a rootless engine, and listen.own_addresses is agent";
        report.add_finding(&kind::OWN_ADDRESSES, description, remedy);
    } else {
        let lane = if is_agent { "agent" } else { "external" };
        let engine = if risks.user_namespace { "the engine may be rootless" } else { "the engine is not rootless" };
        report.add_passed("own addresses", format!("they are on the {lane} lane; {engine}"));
    }
}

/// Adds a finding for each list that trusts a bridge's own address: `external.trusted_proxies` with
/// an entry that contains it, or `agents.cidrs` with an entry that is exactly it. The finding names
/// every such entry, and its remedy removes all of them.
fn judge_trusted_bridge_addresses(view: &View, config: &Config, report: &mut Report) {
    let lists: [(&'static str, &[IpNet]); 2] =
        [("external.trusted_proxies", &config.external.trusted_proxies), ("agents.cidrs", &config.agents.cidrs)];
    for (key, list) in lists {
        // A network in agents.cidrs does not make the bridge an agent, unless it is exactly the
        // bridge's address.
        let trusts_bridge = |net: &IpNet, ip: &IpAddr| {
            net.contains(ip) && (key != "agents.cidrs" || net.prefix_len() == net.max_prefix_len())
        };
        let trusts_any_bridge = |net: &IpNet| view.bridge_gateways.iter().any(|ip| trusts_bridge(net, ip));
        let remaining: Vec<String> =
            list.iter().filter(|net| !trusts_any_bridge(net)).map(ToString::to_string).collect();
        for ip in &view.bridge_gateways {
            for net in list.iter().filter(|net| trusts_bridge(net, ip)) {
                report.add_finding(
                    &kind::BRIDGE_TRUSTED,
                    format!("{key} has {net}, and {ip} is the bridge itself"),
                    Remedy::Loopgate { key, value: json!(remaining) },
                );
            }
        }
    }
}

/// Adds a finding for every wide network in a list of trusted addresses.
fn judge_wide_networks(config: &Config, report: &mut Report) {
    let lists: [(&'static Kind, &'static str, &[IpNet]); 2] = [
        (&kind::AGENTS_WIDE, "agents.cidrs", &config.agents.cidrs),
        (&kind::TRUSTED_WIDE, "external.trusted_proxies", &config.external.trusted_proxies),
    ];
    for (kind, key, list) in lists {
        for net in list.iter().filter(|net| is_wider_than_private(net)) {
            report.add_finding(
                kind,
                format!("{key} has {net}"),
                Remedy::in_words(format!("list in {key} only the networks that are meant")),
            );
        }
    }
}

/// Reports listeners for plain HTTP that can be reached from outside this host.
fn judge_plain_http(config: &Config, report: &mut Report) {
    for on in config.listen.plain.iter().filter(|on| on.exact_address().is_none_or(|ip| !ip.is_loopback())) {
        let remedy = Remedy::in_words(
            "let the proxy speak TLS to listen.on if it can; else give the two a network that no other container or \
             host is on",
        );
        report.add_finding(&kind::PLAIN_HTTP, format!("listen.plain has {on}"), remedy);
    }
}

/// Returns whether `net` is wider than any private network. A private network is at most a /8 in
/// IPv4. In IPv6 it is at most a /16, or a /7 within fc00::/7.
fn is_wider_than_private(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() < 8,
        IpNet::V6(net) => net.prefix_len() < 16 && !(net.prefix_len() >= 7 && net.addr().is_unique_local()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::finding::Finding;
    use super::*;
    use crate::discovery::Agent;

    #[test]
    fn each_reason_against_an_agent_has_a_finding_with_a_remedy() {
        let table = [
            (WhyNotAgent::UnknownLabelValue("yes".into()), "agent-label"),
            (WhyNotAgent::UnknownPodLabelValue("yes".into()), "agent-label"),
            (WhyNotAgent::ImageLabel("true".into()), "agent-image-label"),
            (WhyNotAgent::ImageLabelsUnreadable("403".into()), "agent-image-label"),
            (WhyNotAgent::HostNetwork, "agent-host-network"),
            (WhyNotAgent::OwnerUnknown, "agent-owner-unknown"),
            (WhyNotAgent::OwnNamespace, "agent-shared-namespace"),
            (WhyNotAgent::OtherProject { project: None, owner_project: Some("demo".into()) }, "agent-other-project"),
            (WhyNotAgent::NamespaceOwnerNotRunning, "agent-shared-namespace"),
            (WhyNotAgent::NoSharedNetwork, "agent-no-network"),
            (WhyNotAgent::AmbiguousAddress("172.18.0.3".parse().unwrap()), "agent-in-doubt"),
            (WhyNotAgent::SharesNamespace("other".into()), "agent-shared-namespace"),
        ];
        for (why, expected) in table {
            let mut view = View::default();
            view.not_agents.insert("robot".into(), why);
            let mut report = Report::default();
            judge(&view, &AddressRisks::default(), &Config::default(), &mut report);
            assert_eq!(report.ids(), [expected]);
            assert!(report.findings[0].seen[0].starts_with("robot: "));
        }
    }

    #[test]
    fn lists_that_trust_the_bridge_are_found() {
        let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let mut view = View::default();
        view.bridge_gateways.insert("172.18.0.1".parse().unwrap());
        let table: [(&[&str], &[&str], &[&str]); 6] = [
            (&[], &[], &[]),
            (&["172.18.0.5/32"], &["172.18.0.0/16"], &[]),
            (&["172.18.0.1/32"], &[], &["bridge-gateway-trusted"]),
            (&["172.18.0.0/16"], &[], &["bridge-gateway-trusted"]),
            (&[], &["172.18.0.1/32"], &["bridge-gateway-trusted"]),
            (&["172.18.0.1/32"], &["172.18.0.1/32"], &["bridge-gateway-trusted", "bridge-gateway-trusted"]),
        ];
        for (proxies, cidrs, expected) in table {
            let mut config = Config::default();
            config.external.trusted_proxies = nets(proxies);
            config.agents.cidrs = nets(cidrs);
            let mut report = Report::default();
            judge(&view, &AddressRisks::default(), &config, &mut report);
            assert_eq!(report.ids(), expected, "{proxies:?} {cidrs:?}");
        }
    }

    #[test]
    fn one_remedy_removes_every_entry_that_trusts_a_bridge() {
        let mut view = View::default();
        view.bridge_gateways.extend(["172.18.0.1".parse::<IpAddr>().unwrap(), "172.19.0.1".parse().unwrap()]);
        let mut config = Config::default();
        config.external.trusted_proxies =
            ["172.18.0.0/16", "172.18.0.5/32", "172.16.0.0/12"].map(|net| net.parse().unwrap()).into();
        let mut report = Report::default();
        judge(&view, &AddressRisks::default(), &config, &mut report);
        assert_eq!(report.ids(), ["bridge-gateway-trusted"]);
        let Finding { seen, remedy, .. } = &report.findings[0];
        assert_eq!(*remedy, Remedy::Loopgate { key: "external.trusted_proxies", value: json!(["172.18.0.5/32"]) });
        for entry in ["172.18.0.0/16, and 172.18.0.1", "172.16.0.0/12, and 172.18.0.1", "172.16.0.0/12, and 172.19.0.1"]
        {
            assert!(seen.iter().any(|seen| seen.contains(entry)), "{entry}: {seen:?}");
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn networks_as_wide_as_the_internet_are_found() {
        for (nets, wide) in [
            (&["10.0.0.0/8", "172.16.0.0/12", "fd00::/8", "fc00::/7", "2001:db8::/32", "192.0.2.1/32"][..], 0),
            (&["0.0.0.0/1", "128.0.0.0/1"], 2),
            (&["0.0.0.0/0", "::/0"], 2),
            (&["10.0.0.0/7", "2000::/3", "f000::/4"], 3),
        ] {
            let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
            let mut config = Config::default();
            config.agents.cidrs = nets.clone();
            config.external.trusted_proxies = nets.clone();
            let mut report = Report::default();
            judge(&View::default(), &AddressRisks::default(), &config, &mut report);
            let count = |id: &str| {
                report.findings.iter().find(|finding| finding.id == id).map_or(0, |finding| finding.seen.len())
            };
            assert_eq!((count("agent-cidr-wide"), count("trusted-proxy-wide")), (wide, wide), "{nets:?}");
        }
    }

    #[test]
    fn plain_http_that_leaves_this_host_is_reported() {
        for (listen, found) in [(&[][..], 0), (&["127.0.0.1:8080"], 0), (&["bridge:8080", "127.0.0.1:1", "[::]:81"], 2)]
        {
            let mut config = Config::default();
            config.listen.plain = listen.iter().map(|on| crate::config::parse::listen_on(on).unwrap()).collect();
            let mut report = Report::default();
            judge(&View::default(), &AddressRisks::default(), &config, &mut report);
            let seen = report.findings.iter().find(|finding| finding.id == "plain-http");
            assert_eq!(seen.map_or(0, |finding| finding.seen.len()), found, "{listen:?}");
        }
    }

    #[test]
    fn surroundings_that_make_an_address_worth_little_are_found() {
        let mut view = View::default();
        let agent = Agent {
            id: "a".into(),
            name: "robot".into(),
            project: None,
            service: None,
            kind: AgentKind::Address,
            scopes: None,
        };
        view.agents.insert("172.18.0.3".parse().unwrap(), Arc::new(agent));
        let mut config = Config::default();
        config.listen.own_addresses = OwnAddresses::Agent;
        let mut report = Report::default();
        judge(&view, &AddressRisks { net_raw: vec!["robot".into()], user_namespace: true }, &config, &mut report);
        assert_eq!(report.ids(), ["agent-net-raw", "own-addresses-shared"]);
        view.namespace = NamespaceState::Orphaned;
        let mut report = Report::default();
        judge(&view, &AddressRisks::default(), &config, &mut report);
        assert_eq!(report.ids(), ["namespace-orphaned"]);
    }

    #[test]
    fn net_raw_is_usual_unless_dropped() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let table: [(bool, &[&str], &[&str], bool); 7] = [
            (false, &[], &[], true),
            (false, &[], &["ALL"], false),
            (false, &[], &["net_raw"], false),
            (false, &[], &["CAP_NET_RAW"], false),
            (false, &["CAP_NET_RAW"], &["ALL"], true),
            (false, &[], &["CHOWN"], true),
            (true, &[], &["ALL"], true),
        ];
        for (privileged, added, dropped, expected) in table {
            let capabilities =
                Capabilities { privileged, default_net_raw: true, added: list(added), dropped: list(dropped) };
            assert_eq!(capabilities.has_net_raw(), expected, "{capabilities:?}");
        }
        // Podman's default capabilities lack NET_RAW.
        let podman = Capabilities { default_net_raw: false, ..Capabilities::default() };
        assert!(!podman.has_net_raw());
        assert!(Capabilities { added: list(&["CAP_NET_RAW"]), ..podman }.has_net_raw());
    }
}

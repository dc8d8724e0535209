//! Tables of pods and the agents among them.

use crate::config::AgentSourceKind;
use crate::discovery::agent::AgentKind;
use crate::discovery::interface::Interface;
use crate::discovery::kubernetes::pod::Pod;
use crate::discovery::view::View;
use crate::discovery::why_not_agent::WhyNotAgent;

/// Returns a summary on one line: address, pod and kind of each agent, then the labelled pods that
/// are not agents, with the reasons.
fn summary(view: &View) -> String {
    let agents = view.agents.iter().map(|(ip, agent)| {
        format!("{ip}={} {}", agent.id, if agent.kind == AgentKind::Address { "address" } else { "attested" })
    });
    let others = view.not_agents.iter().map(|(name, why)| {
        let why = match why {
            WhyNotAgent::UnknownPodLabelValue(_) => "unreadable",
            WhyNotAgent::HostNetwork => "host network",
            WhyNotAgent::OwnNamespace => "own",
            WhyNotAgent::AmbiguousAddress(_) => "doubt",
            other => unreachable!("no pod has this reason: {other}"),
        };
        format!("not {name}: {why}")
    });
    agents.chain(others).collect::<Vec<_>>().join(", ")
}

fn pod(name: &str, label: &str, addresses: &[&str]) -> Pod {
    Pod {
        uid: format!("{name}-uid"),
        name: name.into(),
        namespace: "claws".into(),
        service_account: "builder".into(),
        agent: label.into(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        hosts: vec!["192.0.2.9".parse().unwrap()],
        ..Pod::default()
    }
}

#[test]
fn a_labelled_pod_with_an_address_of_its_own_is_an_agent() {
    let interfaces = [Interface { name: "eth0".into(), addresses: vec!["10.1.0.2/24".parse().unwrap()] }];
    let on_host = |label: &str| Pod { host_network: true, ..pod("a", label, &["192.0.2.9"]) };
    for (pods, expected) in [
        (vec![pod("a", "address", &["10.1.0.7", "fd00::7"])], "10.1.0.7=a-uid address, fd00::7=a-uid address"),
        (
            vec![pod("a", "true", &["10.1.0.7"]), pod("b", "attested", &["10.1.0.8"])],
            "10.1.0.7=a-uid attested, 10.1.0.8=b-uid attested",
        ),
        (vec![pod("a", "false", &["10.1.0.7"])], ""),
        (vec![pod("a", "maybe", &["10.1.0.7"])], "not a: unreadable"),
        (vec![on_host("address")], "not a: host network"),
        (vec![on_host("true")], "not a: host network"),
        // This is the address of another pod's node.
        (vec![pod("a", "address", &["192.0.2.9"])], "not a: doubt"),
        (vec![pod("a", "address", &["10.1.0.7"]), pod("b", "address", &["10.1.0.7"])], "not a: doubt, not b: doubt"),
        (vec![pod("a", "address", &["10.1.0.7"]), pod("b", "false", &["10.1.0.7"])], "not a: doubt"),
        (vec![pod("a", "address", &["10.1.0.2"])], "not a: own"),
    ] {
        let view = View::of_pods(&interfaces, &pods);
        assert_eq!(summary(&view), expected);
        assert_eq!((view.source, &view.last_known), (AgentSourceKind::Kubernetes, &view.agents));
    }
    let scoped = Pod { scopes: Some("operator.read, operator.write".into()), ..pod("a", "true", &["10.1.0.7"]) };
    let view = View::of_pods(&interfaces, &[scoped]);
    assert_eq!(view.agents.values().next().unwrap().scopes.as_ref().unwrap().len(), 2);
    let both = [("a", "true", "r,w"), ("b", "?", "w,x")]
        .map(|(name, label, scopes)| Pod { scopes: Some(scopes.into()), ..pod(name, label, &["10.1.0.7"]) });
    let view = View::of_pods(&interfaces, &both);
    assert_eq!(view.caps.values().map(|cap| cap.scopes.join(",")).collect::<Vec<_>>(), ["w"]);
}

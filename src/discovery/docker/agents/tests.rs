//! Tables of containers and the agents among them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::ContainerSources;
use crate::config::AgentService;
use crate::discovery::agent::AgentKind;
use crate::discovery::docker::container::{Container, NetworkEndpoint};
use crate::discovery::docker::images::LabelOrigin;
use crate::discovery::interface::Interface;
use crate::discovery::owner::OwnerHints;
use crate::discovery::view::{ADDRESS_GRACE, ATTESTED_GRACE, View};
use crate::discovery::why_not_agent::WhyNotAgent;

fn container(id: &str, label: Option<&str>, addresses: &[(&str, &str)]) -> Container {
    let endpoint = |(network, ip): &(&str, &str)| NetworkEndpoint {
        network: (*network).into(),
        addresses: vec![ip.parse().unwrap()],
        gateways: vec![if ip.contains(':') { "fd00::1" } else { "172.18.0.1" }.parse().unwrap()],
        podman_mac: None,
    };
    Container {
        id: id.into(),
        name: id.into(),
        agent: label.map(Into::into),
        project: Some("shop".into()),
        endpoints: addresses.iter().map(endpoint).collect(),
        ..Container::default()
    }
}

fn sharing(id: &str, label: Option<&str>, shares_namespace_of: &str) -> Container {
    Container { shares_namespace_of: Some(shares_namespace_of.into()), ..container(id, label, &[]) }
}

fn gateway() -> Container {
    Container {
        service: Some("gateway".into()),
        ..container("gw", None, &[("front", "172.18.0.2"), ("six", "fd00::2"), ("far", "10.9.0.2")])
    }
}

fn view_with(others: Vec<Container>, change: impl FnOnce(&mut ContainerSources<'_>)) -> View {
    let mut containers = others;
    containers.push(gateway());
    view_of(&containers, change)
}

fn view_of(containers: &[Container], change: impl FnOnce(&mut ContainerSources<'_>)) -> View {
    let interfaces = [Interface {
        name: "eth0".into(),
        addresses: ["172.18.0.2/16", "fd00::2/64"].map(|net| net.parse().unwrap()).to_vec(),
    }];
    let aliases = BTreeSet::from(["api".to_owned()]);
    let hints = OwnerHints::default();
    let mut sources = ContainerSources {
        interfaces: &interfaces,
        containers,
        hints: &hints,
        aliases: &aliases,
        any_project: false,
        services: &[],
    };
    change(&mut sources);
    View::of_containers(sources)
}

fn view(others: Vec<Container>) -> View {
    view_with(others, |_| {})
}

/// Returns a summary on one line: address, container and kind of each agent, then the labelled
/// containers that are not agents, with the reasons.
fn summary(view: &View) -> String {
    let agents = view.agents.iter().map(|(ip, agent)| {
        format!("{ip}={} {}", agent.id, if agent.kind == AgentKind::Address { "address" } else { "attested" })
    });
    let others = view.not_agents.iter().map(|(name, why)| {
        let why = match why {
            WhyNotAgent::UnknownLabelValue(_) => "unreadable",
            WhyNotAgent::ImageLabel(_) => "image",
            WhyNotAgent::ImageLabelsUnreadable(_) => "image unknown",
            WhyNotAgent::UnknownPodLabelValue(_) | WhyNotAgent::HostNetwork => {
                unreachable!("only pods have this reason")
            }
            WhyNotAgent::OwnerUnknown => "owner unknown",
            WhyNotAgent::OwnNamespace => "own",
            WhyNotAgent::OtherProject { .. } => "project",
            WhyNotAgent::NamespaceOwnerNotRunning => "namespace owner not running",
            WhyNotAgent::NoSharedNetwork => "network",
            WhyNotAgent::AmbiguousAddress(_) => "doubt",
            WhyNotAgent::SharesNamespace(_) => "shares",
        };
        format!("not {name}: {why}")
    });
    agents.chain(others).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_labelled_container_on_a_shared_network_is_an_agent() {
    let front = |ip| [("front", ip)];
    let foreign = |project: Option<&str>| Container {
        project: project.map(Into::into),
        ..container("a", Some("address"), &front("172.18.0.3"))
    };
    for (others, expected) in [
        (vec![container("a", None, &front("172.18.0.3"))], ""),
        (vec![container("a", Some("false"), &front("172.18.0.3"))], ""),
        (vec![container("a", Some("maybe"), &front("172.18.0.3"))], "not a: unreadable"),
        (vec![container("a", Some("address"), &front("172.18.0.3"))], "172.18.0.3=a address"),
        (
            vec![container("a", Some("true"), &[("front", "172.18.0.3"), ("six", "fd00::3")])],
            "172.18.0.3=a attested, fd00::3=a attested",
        ),
        (
            vec![container("a", Some("true"), &[("back", "172.19.0.3"), ("front", "172.18.0.3")])],
            "172.18.0.3=a attested",
        ),
        (vec![container("a", Some("true"), &[("back", "172.19.0.3")])], "not a: network"),
        // The engine reports that the gateway is on `far`, but this namespace has no address of
        // that network.
        (vec![container("a", Some("true"), &[("far", "10.9.0.3")])], "not a: network"),
        (vec![container("a", Some("true"), &[])], "not a: network"),
        (vec![foreign(Some("other"))], "not a: project"),
        (vec![foreign(None)], "not a: project"),
        (vec![container("a", Some("address"), &front("172.18.0.1"))], "not a: doubt"),
        (
            vec![container("a", Some("address"), &front("172.18.0.3")), container("b", None, &front("172.18.0.3"))],
            "not a: doubt",
        ),
        (vec![container("a", Some("address"), &front("172.18.0.2"))], "not a: doubt"),
        (vec![sharing("a", Some("address"), "gw")], "not a: own"),
        (vec![sharing("a", Some("address"), "gone")], "not a: namespace owner not running"),
        (vec![container("x", None, &front("172.18.0.3")), sharing("a", Some("address"), "x")], "172.18.0.3=a address"),
        (
            vec![container("x", Some("address"), &front("172.18.0.3")), sharing("a", Some("true"), "x")],
            "172.18.0.3=a attested, not x: shares",
        ),
        (
            vec![container("x", Some("true"), &front("172.18.0.3")), sharing("a", Some("true"), "x")],
            "172.18.0.3=x attested, not a: shares",
        ),
    ] {
        assert_eq!(summary(&view(others.clone())), expected, "{others:#?}");
    }
}

#[test]
fn without_an_owner_no_container_is_an_agent() {
    let others = vec![container("a", Some("address"), &[("front", "172.18.0.3")])];
    let without_owner = view_with(others, |sources| sources.interfaces = &[]);
    assert_eq!(summary(&without_owner), "not a: owner unknown");
    assert!(
        without_owner.bridge_gateways.is_empty() && without_owner.own_names.is_empty() && without_owner.owner.is_none()
    );
}

#[test]
fn any_project_counts_if_the_option_is_set_and_having_none_is_not_a_common_project() {
    let stranger = || Container { project: None, ..container("a", Some("address"), &[("front", "172.18.0.3")]) };
    assert_eq!(summary(&view_with(vec![stranger()], |sources| sources.any_project = true)), "172.18.0.3=a address");

    let plain = [Container { project: None, ..gateway() }, stranger()];
    let view = view_of(&plain, |_| {});
    assert_eq!(summary(&view), "not a: project");
    assert!(view.not_agents["a"].to_string().contains("neither it nor the gateway"), "{}", view.not_agents["a"]);
    assert_eq!(summary(&view_of(&plain, |sources| sources.any_project = true)), "172.18.0.3=a address");
}

#[test]
fn a_service_that_the_operator_names_is_an_agent_unless_its_label_is_false() {
    static SERVICES: LazyLock<[AgentService; 2]> = LazyLock::new(|| {
        [("builder", false), ("tester", true)].map(|(name, by_address)| AgentService { name: name.into(), by_address })
    });
    let container_of = |service: &str, label: Option<&str>, label_origin: LabelOrigin| Container {
        service: Some(service.into()),
        label_origin,
        ..container("a", label, &[("front", "172.18.0.3")])
    };
    let of_image = || LabelOrigin::Image("address".into());
    let unknown = || LabelOrigin::Unknown("403".into());
    for (container, expected) in [
        (container_of("builder", None, LabelOrigin::Operator), "172.18.0.3=a attested"),
        (container_of("tester", None, LabelOrigin::Operator), "172.18.0.3=a address"),
        (container_of("other", None, LabelOrigin::Operator), ""),
        (container_of("builder", Some("false"), LabelOrigin::Operator), ""),
        (container_of("tester", Some("true"), LabelOrigin::Operator), "172.18.0.3=a attested"),
        // A label of the image does not count, nor does one that can't be compared with the
        // image's.
        (container_of("other", None, of_image()), "not a: image"),
        (container_of("tester", None, LabelOrigin::Image("true".into())), "172.18.0.3=a attested"),
        (container_of("tester", None, of_image()), "172.18.0.3=a address"),
        (container_of("builder", None, of_image()), "172.18.0.3=a attested"),
        (container_of("other", Some("address"), unknown()), "not a: image unknown"),
        (container_of("builder", None, unknown()), "not a: image unknown"),
        (container_of("other", None, unknown()), ""),
        (container_of("builder", Some("false"), unknown()), ""),
    ] {
        assert_eq!(
            summary(&view_with(vec![container.clone()], |sources| sources.services = &*SERVICES)),
            expected,
            "{container:#?}"
        );
    }
    // The gateway's project does not count either if its image may have set it.
    let gateway = Container { label_origin: unknown(), ..gateway() };
    let all = [gateway, container("a", Some("address"), &[("front", "172.18.0.3")])];
    assert_eq!(summary(&view_of(&all, |_| {})), "not a: project");
}

#[test]
fn names_and_bridges_are_those_of_the_owner_on_shared_networks() {
    let view = view(Vec::new());
    assert_eq!(view.own_names, BTreeSet::from(["gw", "gateway", "api"].map(String::from)));
    assert_eq!(view.bridge_gateways, BTreeSet::from(["172.18.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap())));
    assert_eq!(view.owner.unwrap().project.as_deref(), Some("shop"));
}

#[test]
fn an_agent_has_the_scope_cap_of_its_label() {
    for (label, expected) in
        [(None, None), (Some(""), Some(vec![])), (Some("operator.read"), Some(vec!["operator.read".to_owned()]))]
    {
        let capped =
            Container { scopes: label.map(Into::into), ..container("a", Some("true"), &[("front", "172.18.0.3")]) };
        assert_eq!(view(vec![capped]).agents.first_key_value().unwrap().1.scopes, expected);
    }
}

#[test]
fn every_container_with_a_scope_label_caps_its_addresses_whatever_it_is() {
    let capped = |scopes: &str, of: Container| Container { scopes: Some(scopes.into()), ..of };
    let front = |label: Option<&str>| container("a", label, &[("front", "172.18.0.3")]);
    let maybe_from_image = |of: Container| Container { scopes_maybe_from_image: true, ..of };
    let joined = |scopes: &str| vec![front(Some("true")), capped(scopes, sharing("b", None, "a"))];
    for (containers, expected) in [
        (vec![capped("r,w", front(Some("true")))], "172.18.0.3 r,w"),
        (vec![capped("r", front(Some("?")))], "172.18.0.3 r"),
        (vec![capped("r", front(None))], "172.18.0.3 r"),
        (vec![capped("", front(Some("false")))], "172.18.0.3 "),
        (vec![capped("r", Container { project: None, ..front(Some("true")) })], "172.18.0.3 r"),
        (
            vec![capped("r", Container { label_origin: LabelOrigin::Unknown("403".into()), ..front(Some("true")) })],
            "172.18.0.3 r",
        ),
        (vec![maybe_from_image(capped("r", front(Some("true"))))], "172.18.0.3 r in doubt"),
        (joined("r"), "172.18.0.3 r"),
        (vec![capped("r,w", front(None)), capped("w,x", Container { id: "b".into(), ..front(None) })], "172.18.0.3 w"),
        (vec![front(Some("true"))], ""),
    ] {
        let view = view(containers);
        let caps = view.caps.iter().map(|(ip, cap)| {
            format!("{ip} {}{}", cap.scopes.join(","), if cap.maybe_from_image { " in doubt" } else { "" })
        });
        assert_eq!(caps.collect::<Vec<_>>().join("; "), expected);
    }
}

#[test]
fn a_lost_source_ends_admission_after_a_grace_and_leaves_established_connections() {
    let agent = |id: &str, label: &str, ip: &str| container(id, Some(label), &[("front", ip)]);
    let before = view(vec![agent("a", "address", "172.18.0.3"), agent("b", "true", "172.18.0.4")]);
    let instant = Duration::from_millis(1);
    for (lost, expected) in [
        (Duration::ZERO, "172.18.0.3=a address, 172.18.0.4=b attested"),
        (ADDRESS_GRACE - instant, "172.18.0.3=a address, 172.18.0.4=b attested"),
        (ADDRESS_GRACE, "172.18.0.4=b attested"),
        (ATTESTED_GRACE, ""),
    ] {
        let mut later = before.clone();
        later.expire_agents(lost);
        assert_eq!(summary(&later), expected, "{lost:?}");
        assert_eq!(Arc::new(later).for_established().agents, before.agents, "{lost:?}");
    }
}

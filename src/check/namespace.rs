//! Findings about other programs that accept connections in the gateway's network namespace, such
//! as the proxy of a service mesh. They could forward outside clients to the gateway.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::addr::parse_kernel_address;
use crate::admin::status::Status;
use crate::config::{AgentSourceKind, Config, OwnAddresses};
use crate::discovery::View;

/// The state of a listening socket: `TCP_LISTEN` in the kernel's `include/net/tcp_states.h`.
const LISTENING: &str = "0A";

/// The ports on which proxies of service meshes listen in a pod's network namespace. Netfilter
/// rules redirect connections to them. The rules themselves can't be read without `NET_ADMIN`.
const MESHES: &[(u16, &str)] = &[
    (15001, "Istio, Kuma or Consul"),
    (15006, "Istio or Kuma"),
    (15008, "Istio (ambient)"),
    (4140, "Linkerd"),
    (4143, "Linkerd"),
];

/// The listeners in this network namespace.
#[derive(Clone, Debug, Default)]
pub struct NamespaceObservation {
    /// The addresses on which any program accepts TCP connections.
    pub listeners: BTreeSet<SocketAddr>,
    /// The ports on which loopgate and the gateway listen.
    pub expected: BTreeSet<u16>,
    /// Whether the namespace belongs to a container or a pod, and not to a host.
    pub is_container: bool,
    /// Whether `listen.own_addresses` is `agent`.
    pub own_addresses_are_agents: bool,
}

/// Reads the listeners of this network namespace. `status` is the status of the sidecar in it, if
/// one runs.
pub fn observe(config: &Config, view: &View, status: Option<&Status>) -> NamespaceObservation {
    let listeners = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .into_iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|text| text.lines().filter_map(parse_listener).collect::<Vec<_>>())
        .collect();
    let listen = &config.listen;
    let configured = listen.on.iter().chain(&listen.plain).map(|on| on.port);
    let running = status.into_iter().flat_map(|status| status.listening.iter().chain(&status.listening_plain));
    let expected = configured
        .chain(listen.forward.iter().map(|forward| forward.port))
        .chain(config.admin.map(|admin| admin.port()))
        .chain(running.filter_map(|address| address.parse::<SocketAddr>().ok()).map(|address| address.port()))
        .chain([config.gateway.address.port()])
        .collect();
    NamespaceObservation {
        listeners,
        expected,
        is_container: view.owner.is_some() || config.discovery == AgentSourceKind::Kubernetes,
        own_addresses_are_agents: listen.own_addresses == OwnAddresses::Agent,
    }
}

/// Adds the findings about other listeners: those on a port of a mesh, and those that are not on
/// loopback. On a host the latter are reported only if its own addresses are agents.
pub fn judge(observation: &NamespaceObservation, report: &mut Report) {
    let mesh = |port: u16| MESHES.iter().find(|(of_mesh, _)| *of_mesh == port).map(|(_, name)| *name);
    for listener in &observation.listeners {
        if let Some(name) = mesh(listener.port()).filter(|_| !observation.expected.contains(&listener.port())) {
            let remedy = Remedy::in_words(
                "leave the gateway's pod out of the mesh (labels sidecar.istio.io/inject: \"false\" and \
                 istio.io/dataplane-mode: none, annotation linkerd.io/inject: disabled, as the chart sets them), and \
                 keep listen.own_addresses = \"external\"",
            );
            report.add_finding(&kind::MESH_PROXY, format!("{listener} is a port of {name}"), remedy);
        }
    }
    let other_listeners = observation.listeners.iter().filter(|listener| {
        !listener.ip().is_loopback()
            && !observation.expected.contains(&listener.port())
            && mesh(listener.port()).is_none()
    });
    for listener in other_listeners {
        let description = format!("a program other than loopgate and the gateway listens on {listener}");
        if observation.own_addresses_are_agents {
            let remedy = Remedy::Loopgate { key: "listen.own_addresses", value: "external".into() };
            report.add_finding(&kind::OWN_ADDRESSES, description, remedy);
        } else if observation.is_container {
            let remedy = Remedy::in_words(
                "if it forwards connections, or sends requests for its clients, move it out of the gateway's network \
                 namespace: whatever it connects to on 127.0.0.1 takes it for a local client",
            );
            report.add_finding(&kind::OTHER_LISTENER, description, remedy);
        }
    }
}

/// Parses a line of `/proc/net/tcp` or `/proc/net/tcp6` (proc_pid_net(5)), whose fields are number,
/// local address, remote address, state and others. Returns the local address if the socket
/// listens.
fn parse_listener(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    let (address, port) = local.split_once(':').filter(|_| state == LISTENING)?;
    Some(SocketAddr::new(parse_kernel_address(address)?, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn listening_sockets_are_read() {
        for (line, expected) in [
            ("  sl  local_address rem_address   st tx_queue rx_queue", None),
            ("   0: 0100007F:4965 00000000:0000 0A 00000000:00000000 00:00000000", Some("127.0.0.1:18789")),
            ("   1: 00000000:3A9E 00000000:0000 0A 00000000:00000000", Some("0.0.0.0:15006")),
            ("   2: 020012AC:480B 030012AC:C001 01 00000000:00000000", None),
            ("   3: 00000000000000000000000000000000:0050 00:0000 0A 0", Some("[::]:80")),
            ("   4: 0000000000000000FFFF0000020012AC:0050 00:0000 0A 0", Some("172.18.0.2:80")),
            ("   5: 000080FE00000000FF08A4FE0B76BCFE:0050 00:0000 0A 0", Some("[fe80::fea4:8ff:febc:760b]:80")),
            ("   6: 0100:0050 00:0000 0A", None),
            ("   7: zzzzzzzz:0050 00:0000 0A", None),
        ] {
            assert_eq!(parse_listener(line), expected.map(|address| address.parse().unwrap()), "{line}");
        }
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let observation = observe(&Config::default(), &View::default(), None);
        assert!(observation.listeners.contains(&socket.local_addr().unwrap()), "{observation:?}");
        assert!([18443, 18789, 9180].iter().all(|port| observation.expected.contains(port)), "{observation:?}");
    }

    #[test]
    fn meshes_and_other_listeners_are_found() {
        let observation = |listeners: &[&str], is_container, own_addresses_are_agents| NamespaceObservation {
            listeners: listeners.iter().map(|address| address.parse().unwrap()).collect(),
            expected: [18443, 18789, 9180].into(),
            is_container,
            own_addresses_are_agents,
        };
        for (observation, expected) in [
            (
                observation(&["172.18.0.2:18443", "127.0.0.1:18789", "0.0.0.0:9180", "127.0.0.1:18791"], true, true),
                vec![],
            ),
            (observation(&["0.0.0.0:15006", "0.0.0.0:15001"], false, false), vec!["mesh-proxy"]),
            (observation(&["127.0.0.1:4140"], true, false), vec!["mesh-proxy"]),
            (observation(&["0.0.0.0:8080"], true, false), vec!["other-listener"]),
            (observation(&["0.0.0.0:22"], false, false), vec![]),
            (observation(&["[::]:8080", "0.0.0.0:4143"], true, true), vec!["mesh-proxy", "own-addresses-shared"]),
        ] {
            let mut report = Report::default();
            judge(&observation, &mut report);
            assert_eq!(report.ids(), expected, "{observation:?}");
        }
    }
}

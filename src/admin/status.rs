//! The status of the sidecar, as `/status`, the page and `loopgate status` show it. The field names
//! are those of the JSON.

use serde::{Deserialize, Serialize};

/// A snapshot of the running sidecar. Times are RFC 3339 in UTC, ages are whole seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of loopgate that runs.
    pub version: String,
    /// The time at which the sidecar started.
    pub started: String,
    /// The number of seconds since the start.
    pub uptime_seconds: u64,
    /// Whether the sidecar is ready.
    pub ready: bool,
    /// The reasons why the sidecar is not ready; empty if it is.
    pub not_ready: Vec<String>,
    /// The addresses on which the sidecar listens for TLS.
    pub listening: Vec<String>,
    /// The addresses on which the sidecar listens for plain HTTP of trusted proxies.
    #[serde(default)]
    pub listening_plain: Vec<String>,
    /// The values of `listen.on` and `listen.plain` that no local address matches.
    #[serde(default)]
    pub not_listening: Vec<String>,
    /// The gateway.
    pub gateway: GatewayStatus,
    /// Further ports of the gateway that the sidecar forwards to.
    #[serde(default)]
    pub forwards: Vec<PortForwardStatus>,
    /// Why the last reload was rejected; `None` if it was not.
    pub config_problem: Option<String>,
    /// The certificate that is served.
    pub certificate: CertificateStatus,
    /// The state of discovery.
    pub discovery: DiscoveryStatus,
    /// The containers or pods that are agents, sorted by name.
    pub agents: Vec<AgentStatus>,
    /// The containers or pods that have an agent's label but are not agents, sorted by name.
    pub not_agents: Vec<NotAgent>,
    /// The number of connections on each lane.
    pub lanes: Lanes,
    /// The open connections, oldest first. Only the first [`MAX_LISTED_CONNECTIONS`] are listed.
    pub connections: Vec<ConnectionStatus>,
    /// The restrictions of the sidecar's process; `None` if the sidecar is of a version that does
    /// not report them.
    #[serde(default)]
    pub sandbox: Option<SandboxStatus>,
}

/// The largest number of connections that `connections` lists.
pub const MAX_LISTED_CONNECTIONS: usize = 1000;

/// The state of the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// The gateway's address.
    pub address: String,
    /// Whether the gateway accepts connections without TLS.
    pub reachable: bool,
    /// Why the gateway is not reachable; `None` if it is.
    pub error: Option<String>,
}

/// The restrictions that the sidecar has put on its own process (`sandbox`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Whether seccomp refuses the system calls that the sidecar never needs.
    pub seccomp: bool,
    /// Whether Landlock limits writes to the sidecar's directories.
    pub landlock: bool,
    /// Why one of the two is not in force; `None` if both are, or the sandbox is turned off.
    pub problem: Option<String>,
}

impl SandboxStatus {
    /// Returns the restrictions that are in force, and why the others are not, as text.
    pub fn text(&self) -> String {
        let in_force: Vec<_> = [("seccomp", self.seccomp), ("landlock", self.landlock)]
            .into_iter()
            .filter_map(|(name, is_in_force)| is_in_force.then_some(name))
            .collect();
        let in_force = if in_force.is_empty() { "off".to_owned() } else { in_force.join(", ") };
        let problem = self.problem.as_ref().map(|problem| format!(" ({problem})"));
        format!("{in_force}{}", problem.unwrap_or_default())
    }
}

/// A further port of the gateway that the sidecar forwards to (`listen.forward`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortForwardStatus {
    /// The addresses on which the sidecar listens for this port.
    pub listening: Vec<String>,
    /// The gateway's address with this port.
    pub target: String,
    /// Whether the target accepts connections.
    pub reachable: bool,
    /// Why the target is not reachable; `None` if it is.
    pub error: Option<String>,
}

/// The certificate that is served to clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The DNS names and IP addresses in the certificate.
    pub names: Vec<String>,
    /// The time from which the certificate is valid.
    pub not_before: String,
    /// The time until which the certificate is valid.
    pub not_after: String,
    /// The number of seconds until the certificate expires; negative if it has expired.
    pub expires_in_seconds: i64,
    /// The SHA-256 fingerprint of the leaf as `AA:BB:..`, the form that OpenClaw pins.
    pub fingerprint: String,
    /// The SHA-256 digest of the leaf's public key in base64, the form that `curl --pinnedpubkey
    /// sha256//` takes.
    pub public_key: String,
    /// The SHA-256 fingerprint of loopgate's own CA; `None` if the operator provides the
    /// certificate and there is no CA in the state directory.
    pub ca_fingerprint: Option<String>,
    /// Why a newer certificate could not be loaded or made; `None` if there is no such problem.
    pub problem: Option<String>,
}

/// The state of discovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiscoveryStatus {
    /// The state of the connection to Docker: `off`, `connecting`, `live` or `disconnected`.
    pub docker: String,
    /// The state of the connection to the Kubernetes API server, in the same words.
    #[serde(default = "off_by_default")]
    pub kubernetes: String,
    /// The number of seconds for which the connection has been live or disconnected.
    pub for_seconds: Option<u64>,
    /// Why Docker or the API server can't be reached; `None` if it can.
    pub error: Option<String>,
    /// The name of the container that owns this network namespace, if it is known.
    pub owner: Option<String>,
    /// The compose project of the owner.
    pub project: Option<String>,
    /// Whether the owner runs in this namespace: `attached` if it does, `orphaned` if it does not
    /// run, `left` if it runs in another one.
    pub namespace: String,
    /// The addresses of this network namespace, without loopback and link-local ones.
    pub own_addresses: Vec<String>,
    /// The names of this network namespace on the networks that it shares with other containers.
    pub own_names: Vec<String>,
}

impl DiscoveryStatus {
    /// Returns the name of the source of agents, Docker or Kubernetes, and the state of the
    /// connection to it.
    pub fn source(&self) -> (&'static str, &str) {
        if self.kubernetes == "off" { ("Docker", &self.docker) } else { ("Kubernetes", &self.kubernetes) }
    }
}

fn off_by_default() -> String {
    "off".into()
}

/// A container or a pod that is an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The name of the container or pod.
    pub container: String,
    /// The container's full id, or the pod's uid.
    pub id: String,
    /// The container's compose service, or the pod's service account.
    pub service: Option<String>,
    /// The addresses from which the agent connects.
    pub addresses: Vec<String>,
    /// How the agent proves its identity: `attested` or `address`.
    pub proof: String,
    /// The scope cap in the agent's label; `None` if the label has none.
    pub scopes: Option<Vec<String>>,
    /// The number of the agent's connections on the agent lane.
    pub connections: usize,
}

/// A container or a pod that has an agent's label but is not an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotAgent {
    /// The name of the container or pod.
    pub container: String,
    /// Why it is not an agent.
    pub why: String,
}

/// The number of connections on each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lanes {
    /// The number on the agent lane.
    pub agent: usize,
    /// The number on the external lane.
    pub external: usize,
}

/// One open connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// The number of the connection, which the log also has.
    pub number: u64,
    /// The peer's address and port.
    pub peer: String,
    /// The lane: `agent` or `external`.
    pub lane: String,
    /// What makes the client an agent: `own-address`, `cidr`, `address`, `attested` or
    /// `certificate`; `None` on the external lane. The JSON and the audit log call it `admitted`:
    /// the proof on which the client was admitted to the agent lane.
    #[serde(rename = "admitted")]
    pub basis: Option<String>,
    /// The agent's container or certificate URI, or the external user's name in the certificate.
    pub who: Option<String>,
    /// The loopback address from which the gateway sees the agent; `None` on the external lane.
    pub source: Option<String>,
    /// The protocol that the client speaks: `http/1.1` or `h2`.
    pub protocol: String,
    /// The time at which the connection got its lane.
    pub since: String,
    /// The number of seconds since that time.
    pub for_seconds: u64,
    /// Why the client is not an agent. `None` if it is one, or has nothing in common with one.
    pub why_not_agent: Option<String>,
}

/// Formats a number of seconds in its two largest units, as in `2h 5m`.
pub fn format_seconds(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut remaining = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units {
        if remaining >= size {
            parts.push(format!("{}{unit}", remaining / size));
            remaining %= size;
        } else if !parts.is_empty() {
            parts.push(String::new());
        }
        if parts.len() == 2 {
            break;
        }
    }
    parts.retain(|part| !part.is_empty());
    if parts.is_empty() { "0s".into() } else { parts.join(" ") }
}

/// Returns a status that has at least one element in each list that can have some.
#[cfg(test)]
pub fn example() -> Status {
    let connection = |number, lane: &str| ConnectionStatus {
        number,
        peer: format!("172.18.0.3:4000{number}"),
        lane: lane.into(),
        basis: (lane == "agent").then(|| "attested".into()),
        who: (lane == "agent").then(|| "demo-agent-1".into()),
        source: (lane == "agent").then(|| "127.77.1.2".into()),
        protocol: "http/1.1".into(),
        since: "2026-01-01T00:00:00Z".into(),
        for_seconds: 60,
        why_not_agent: (lane == "external").then(|| "demo-agent-1 must show a certificate".into()),
    };
    Status {
        version: "0.1.0".into(),
        started: "2026-01-01T00:00:00Z".into(),
        uptime_seconds: 3725,
        ready: true,
        not_ready: Vec::new(),
        listening: vec!["172.18.0.2:18789".into()],
        listening_plain: vec!["172.18.0.2:8080".into()],
        not_listening: Vec::new(),
        gateway: GatewayStatus { address: "127.0.0.1:18789".into(), reachable: true, error: None },
        forwards: vec![PortForwardStatus {
            listening: vec!["172.18.0.2:18793".into()],
            target: "127.0.0.1:18793".into(),
            reachable: false,
            error: Some("connection refused".into()),
        }],
        config_problem: None,
        certificate: CertificateStatus {
            names: vec!["localhost".into(), "gateway".into(), "172.18.0.2".into()],
            not_before: "2026-01-01T00:00:00Z".into(),
            not_after: "2026-04-01T00:00:00Z".into(),
            expires_in_seconds: 90 * 86_400,
            fingerprint: ["AB"; 32].join(":"),
            public_key: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649=".into(),
            ca_fingerprint: Some(["CD"; 32].join(":")),
            problem: None,
        },
        discovery: DiscoveryStatus {
            docker: "live".into(),
            kubernetes: "off".into(),
            for_seconds: Some(3720),
            error: None,
            owner: Some("demo-pause-1".into()),
            project: Some("demo".into()),
            namespace: "attached".into(),
            own_addresses: vec!["172.18.0.2".into()],
            own_names: vec!["gateway".into()],
        },
        agents: vec![AgentStatus {
            container: "demo-agent-1".into(),
            id: "f00d".repeat(16),
            service: Some("agent".into()),
            addresses: vec!["172.18.0.3".into()],
            proof: "attested".into(),
            scopes: Some(vec!["operator.read".into()]),
            connections: 1,
        }],
        not_agents: vec![NotAgent { container: "other-agent-1".into(), why: "it is in project \"other\"".into() }],
        lanes: Lanes { agent: 1, external: 1 },
        connections: vec![connection(1, "agent"), connection(2, "external")],
        sandbox: Some(SandboxStatus { seccomp: true, landlock: true, problem: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_two_units() {
        let table = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m 1s"),
            (3600, "1h"),
            (3601, "1h"),
            (3725, "1h 2m"),
            (90_061, "1d 1h"),
        ];
        for (seconds, expected) in table {
            assert_eq!(format_seconds(seconds), expected);
        }
    }

    #[test]
    fn the_sandbox_is_described_by_what_is_in_force() {
        let problem = || Some("landlock: not in this kernel".to_owned());
        for (seccomp, landlock, problem, expected) in [
            (true, true, None, "seccomp, landlock"),
            (true, false, problem(), "seccomp (landlock: not in this kernel)"),
            (false, false, problem(), "off (landlock: not in this kernel)"),
            (false, false, None, "off"),
        ] {
            assert_eq!(SandboxStatus { seccomp, landlock, problem }.text(), expected);
        }
    }

    #[test]
    fn a_status_is_the_same_after_serialization() {
        let json = serde_json::to_string(&example()).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), example());
    }
}

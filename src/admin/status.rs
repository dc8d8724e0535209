//! What `/status`, the page and `loopgate status` show.

use serde::{Deserialize, Serialize};

/// A snapshot of the running sidecar. Times are RFC 3339 in UTC, ages are whole seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version that runs.
    pub version: String,
    /// Since when.
    pub started: String,
    /// Seconds since then.
    pub uptime_seconds: u64,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not ready; empty if it is.
    pub not_ready: Vec<String>,
    /// The addresses listened on with TLS.
    pub listening: Vec<String>,
    /// The addresses that listen for plain HTTP of trusted proxies.
    #[serde(default)]
    pub listening_plain: Vec<String>,
    /// The values of `listen.on` and `listen.plain` that no local address matches.
    #[serde(default)]
    pub not_listening: Vec<String>,
    /// The gateway.
    pub gateway: Gateway,
    /// Other ports of the gateway that are carried.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// Why the last reload was rejected.
    pub config_problem: Option<String>,
    /// The certificate that is served.
    pub certificate: Certificate,
    /// The state of discovery.
    pub discovery: DiscoveryStatus,
    /// Containers that are agents, by name.
    pub agents: Vec<Agent>,
    /// Labelled containers that are not agents, by name.
    pub not_agents: Vec<NotAgent>,
    /// How many connections each lane has.
    pub lanes: Lanes,
    /// Open connections, the longest first; no more than [`MOST_CONNECTIONS`] of them.
    pub connections: Vec<Connection>,
    /// The restrictions of its process; none if it is a version that does not report them.
    #[serde(default)]
    pub sandbox: Option<SandboxStatus>,
}

/// How many connections are listed one by one.
pub const MOST_CONNECTIONS: usize = 1000;

/// The gateway as the sidecar sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gateway {
    /// Its address.
    pub address: String,
    /// Whether it accepts connections, and expects no TLS on them.
    pub reachable: bool,
    /// Why not.
    pub error: Option<String>,
}

/// The restrictions that the sidecar has put on its own process (`sandbox`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Whether system calls that it never needs are refused.
    pub seccomp: bool,
    /// Whether it can write only beneath its directories.
    pub landlock: bool,
    /// Why one of them is not in force, unless both are turned off.
    pub problem: Option<String>,
}

impl SandboxStatus {
    /// Returns the restrictions of the process that are in force, and why the others are not.
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

/// Another port of the gateway that is carried (`listen.forward`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// The addresses listened on for it.
    pub listening: Vec<String>,
    /// The address that it leads to.
    pub target: String,
    /// Whether that accepts connections.
    pub reachable: bool,
    /// Why not.
    pub error: Option<String>,
}

/// The certificate that clients are shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// The DNS names and addresses in it.
    pub names: Vec<String>,
    /// From when it is valid.
    pub not_before: String,
    /// Until when it is valid.
    pub not_after: String,
    /// Seconds until then; negative afterwards.
    pub expires_in_seconds: i64,
    /// SHA-256 of the leaf, `AA:BB:..`, as OpenClaw pins it.
    pub fingerprint: String,
    /// SHA-256 of its public key, base64, as `curl --pinnedpubkey sha256//` takes it.
    pub public_key: String,
    /// SHA-256 of loopgate's own CA; none beside an operator's pair without a state directory.
    pub ca_fingerprint: Option<String>,
    /// Why a newer certificate is not served.
    pub problem: Option<String>,
}

/// The state of discovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiscoveryStatus {
    /// `off`, `connecting`, `live` or `disconnected`.
    pub docker: String,
    /// The state of the connection to the Kubernetes API server, by the same words.
    #[serde(default = "off")]
    pub kubernetes: String,
    /// How long it has been live or disconnected.
    pub for_seconds: Option<u64>,
    /// Why Docker, or the API server, can't be reached.
    pub error: Option<String>,
    /// The container that owns this network namespace.
    pub owner: Option<String>,
    /// Its compose project.
    pub project: Option<String>,
    /// `attached`, `orphaned` or `left`.
    pub namespace: String,
    /// The addresses of this network namespace, loopback and link-local ones excluded.
    pub own_addresses: Vec<String>,
    /// Its names on shared networks.
    pub own_names: Vec<String>,
}

impl DiscoveryStatus {
    /// Returns the name of the source of agents, and its state.
    pub fn source(&self) -> (&'static str, &str) {
        if self.kubernetes == "off" { ("Docker", &self.docker) } else { ("Kubernetes", &self.kubernetes) }
    }
}

fn off() -> String {
    "off".into()
}

/// A container that is an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Its name.
    pub container: String,
    /// Its full id.
    pub id: String,
    /// Its compose service.
    pub service: Option<String>,
    /// Its addresses on shared networks.
    pub addresses: Vec<String>,
    /// `attested` or `address`: how it proves that a connection is its own.
    pub proof: String,
    /// The scope cap of its label, if it has one.
    pub scopes: Option<Vec<String>>,
    /// How many connections it has on the agent lane.
    pub connections: usize,
}

/// A labelled container that is not an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotAgent {
    /// Its name.
    pub container: String,
    /// Why not.
    pub why: String,
}

/// Connections by lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lanes {
    /// On the agent lane.
    pub agent: usize,
    /// On the external lane.
    pub external: usize,
}

/// One open connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its number, as in the log.
    pub number: u64,
    /// The peer, address and port.
    pub peer: String,
    /// `agent` or `external`.
    pub lane: String,
    /// What makes the client an agent: `own-address`, `cidr`, `address`, `attested` or `certificate`.
    #[serde(rename = "admitted")]
    pub basis: Option<String>,
    /// The container, or the identity in the certificate.
    pub who: Option<String>,
    /// The loopback address that the gateway sees an agent come from.
    pub source: Option<String>,
    /// `http/1.1` or `h2`.
    pub protocol: String,
    /// Since when.
    pub since: String,
    /// Seconds since then.
    pub for_seconds: u64,
    /// Why it is not an agent, where one might expect it to be.
    pub why_not_agent: Option<String>,
}

/// Formats an age by its two largest units, as in `2h 5m`.
pub fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units {
        if left >= size {
            parts.push(format!("{}{unit}", left / size));
            left %= size;
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

/// A status with one of everything.
#[cfg(test)]
pub fn example() -> Status {
    let connection = |number, lane: &str| Connection {
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
        gateway: Gateway { address: "127.0.0.1:18789".into(), reachable: true, error: None },
        forwards: vec![Forward {
            listening: vec!["172.18.0.2:18793".into()],
            target: "127.0.0.1:18793".into(),
            reachable: false,
            error: Some("connection refused".into()),
        }],
        config_problem: None,
        certificate: Certificate {
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
        agents: vec![Agent {
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
            assert_eq!(span(seconds), expected);
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
    fn a_status_survives_the_way_to_the_command() {
        let json = serde_json::to_string(&example()).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), example());
    }
}

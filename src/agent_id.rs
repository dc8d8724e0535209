//! The identity in an attested agent's certificate.

use std::fmt;
use std::str::FromStr;

/// `spiffe://<trust-domain>/docker/<project>/<service>/<container-id>`, or `spiffe://<trust-domain>/k8s/<namespace>/<service account>/<pod
/// uid>`: the SAN URI of the certificates that enrolment signs.
///
/// The id is what counts; the two fields before it are there for people. Fields are percent-encoded where they hold anything but
/// letters, digits, `-`, `_` and `.`; an absent field is `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgentId {
    /// The SPIFFE trust domain.
    pub trust_domain: String,
    /// What it is the identity of.
    pub kind: Kind,
    /// The compose project, if any; a pod's namespace.
    pub project: Option<String>,
    /// The compose service, if any; a pod's service account.
    pub service: Option<String>,
    /// The full container id; a pod's uid.
    pub container: String,
}

/// What an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A container of a Docker Engine.
    Container,
    /// A pod.
    Pod,
}

impl Kind {
    /// Its segment of the path.
    fn segment(self) -> &'static str {
        match self {
            Self::Container => "docker",
            Self::Pod => "k8s",
        }
    }
}

/// What was given is not the identity of an attested agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the identity of an attested agent (spiffe://<trust-domain>/docker/<project>/<service>/<container-id>, or k8s/<namespace>/<service account>/<pod uid>)"
)]
pub struct ParseError;

const ABSENT: &str = "-";

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional = |field: &Option<String>| field.as_deref().filter(|s| !s.is_empty()).map_or(ABSENT.into(), encode);
        let (project, service) = (optional(&self.project), optional(&self.service));
        write!(f, "spiffe://{}/{}/{project}/{service}/{}", self.trust_domain, self.kind.segment(), encode(&self.container))
    }
}

impl FromStr for AgentId {
    type Err = ParseError;

    /// Takes exactly what [`fmt::Display`] prints; no other spelling of it.
    fn from_str(uri: &str) -> Result<Self, ParseError> {
        let fields: Vec<&str> = uri.strip_prefix("spiffe://").ok_or(ParseError)?.split('/').collect();
        let [trust_domain, kind, project, service, container] = fields[..] else { return Err(ParseError) };
        let kind = [Kind::Container, Kind::Pod].into_iter().find(|known| known.segment() == kind).ok_or(ParseError)?;
        let optional = |field: &str| if field == ABSENT { Ok(None) } else { decode(field).map(Some) };
        let id = Self {
            trust_domain: trust_domain.to_owned(),
            kind,
            project: optional(project)?,
            service: optional(service)?,
            container: decode(container)?,
        };
        let empty = id.trust_domain.is_empty() || id.container.is_empty();
        // One identity has one spelling, so that comparing texts and comparing identities can't differ.
        if empty || id.to_string() != uri { Err(ParseError) } else { Ok(id) }
    }
}

fn encode(field: &str) -> String {
    // A lone "-" means absence, and "." and ".." are no path segments (SPIFFE-ID section 2.2).
    let reserved = matches!(field, ABSENT | "." | "..");
    let plain = |b: u8| !reserved && (b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    field.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn decode(field: &str) -> Result<String, ParseError> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('%') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let digits = rest.get(at + 1..at + 3).ok_or(ParseError)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| ParseError)?);
        rest = &rest[at + 3..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).map_err(|_| ParseError)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(project: Option<&str>, service: Option<&str>) -> AgentId {
        AgentId {
            trust_domain: "loopgate.local".into(),
            kind: Kind::Container,
            project: project.map(Into::into),
            service: service.map(Into::into),
            container: "0f".repeat(32),
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let table = [
            (None, None, "-/-"),
            (Some("shop"), Some("agent_1.x"), "shop/agent_1.x"),
            (Some("-"), Some(".."), "%2D/%2E%2E"),
            (Some("a/b"), Some("50%"), "a%2Fb/50%25"),
            (Some("größe"), None, "gr%C3%B6%C3%9Fe/-"),
        ];
        for (project, service, path) in table {
            let id = id(project, service);
            let uri = id.to_string();
            assert_eq!(uri, format!("spiffe://loopgate.local/docker/{path}/{}", id.container));
            assert_eq!(uri.parse(), Ok(id));
        }
    }

    #[test]
    fn a_pods_identity_is_another_than_a_containers() {
        let pod = AgentId { kind: Kind::Pod, ..id(Some("claws"), Some("builder")) };
        let uri = format!("spiffe://loopgate.local/k8s/claws/builder/{}", pod.container);
        assert_eq!((pod.to_string(), uri.parse()), (uri, Ok(pod)));
    }

    #[test]
    fn every_other_spelling_is_refused() {
        for uri in [
            "",
            "spiffe://loopgate.local/docker/-/-/",
            "spiffe:///docker/-/-/abc",
            "spiffe://loopgate.local/docker/-/abc",
            "spiffe://loopgate.local/docker/-/-/abc/",
            "spiffe://loopgate.local/docker/-/-/ab%63",
            "spiffe://loopgate.local/docker/-/-/ab%6",
            "spiffe://loopgate.local/docker/%2d/-/abc",
            "spiffe://loopgate.local/docker//-/abc",
            "spiffe://loopgate.local/kubernetes/-/-/abc",
            "SPIFFE://loopgate.local/docker/-/-/abc",
            "https://loopgate.local/docker/-/-/abc",
        ] {
            assert_eq!(uri.parse::<AgentId>(), Err(ParseError), "{uri}");
        }
    }
}

//! The identity in an attested agent's certificate.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// `spiffe://<trust-domain>/docker/<project>/<service>/<container-id>`, or
/// `spiffe://<trust-domain>/k8s/<namespace>/<service account>/<pod uid>`: the SAN URI of the
/// certificates that enrolment signs.
///
/// The lane decision uses the trust domain, the kind and the container id or pod uid. The project
/// and the service are for people who read the certificate. Characters of a field other than
/// letters, digits, `-`, `_` and `.` are percent-encoded; an absent field is `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgentId {
    /// The SPIFFE trust domain.
    pub trust_domain: String,
    /// Whether the agent is a container or a pod.
    pub kind: WorkloadKind,
    /// The container's compose project, if any, or the pod's namespace.
    pub project: Option<String>,
    /// The container's compose service, if any, or the pod's service account.
    pub service: Option<String>,
    /// The container's full id, or the pod's uid.
    pub workload: String,
}

/// What an attested agent runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A container of a Docker Engine.
    Container,
    /// A pod of Kubernetes.
    Pod,
}

impl WorkloadKind {
    /// Returns the name of this kind in the path of a SPIFFE id.
    fn path_segment(self) -> &'static str {
        match self {
            Self::Container => "docker",
            Self::Pod => "k8s",
        }
    }
}

/// The error of a URI that is not the identity of an attested agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the identity of an attested agent (spiffe://<trust-domain>/docker/<project>/<service>/<container-id>, or \
     k8s/<namespace>/<service account>/<pod uid>)"
)]
pub struct ParseError;

/// The text of a field that is absent.
const ABSENT: &str = "-";
/// The characters that are percent-encoded in a field.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional =
            |field: &Option<String>| field.as_deref().filter(|s| !s.is_empty()).map_or(ABSENT.into(), encode_field);
        let (project, service) = (optional(&self.project), optional(&self.service));
        write!(
            f,
            "spiffe://{}/{}/{project}/{service}/{}",
            self.trust_domain,
            self.kind.path_segment(),
            encode_field(&self.workload)
        )
    }
}

impl FromStr for AgentId {
    type Err = ParseError;

    /// Accepts only the spelling that [`fmt::Display`] writes.
    fn from_str(uri: &str) -> Result<Self, ParseError> {
        let fields: Vec<&str> = uri.strip_prefix("spiffe://").ok_or(ParseError)?.split('/').collect();
        let [trust_domain, kind, project, service, workload] = fields[..] else { return Err(ParseError) };
        let kind = [WorkloadKind::Container, WorkloadKind::Pod]
            .into_iter()
            .find(|known| known.path_segment() == kind)
            .ok_or(ParseError)?;
        let optional = |field: &str| if field == ABSENT { Ok(None) } else { decode_field(field).map(Some) };
        let id = Self {
            trust_domain: trust_domain.to_owned(),
            kind,
            project: optional(project)?,
            service: optional(service)?,
            workload: decode_field(workload)?,
        };
        let empty = id.trust_domain.is_empty() || id.workload.is_empty();
        // One identity has one spelling, so that identities are equal if and only if their texts
        // are.
        if empty || id.to_string() != uri { Err(ParseError) } else { Ok(id) }
    }
}

fn encode_field(field: &str) -> String {
    // A field "-" would mean an absent one, and "." and ".." are not allowed as path segments
    // (SPIFFE-ID section 2.2).
    let reserved = matches!(field, ABSENT | "." | "..");
    utf8_percent_encode(field, if reserved { NON_ALPHANUMERIC } else { ENCODED }).to_string()
}

/// Decodes `field`. A malformed escape such as `%6` is left as it is: [`AgentId::from_str`]
/// refuses such a field, because it accepts only the spelling that [`encode_field`] writes.
fn decode_field(field: &str) -> Result<String, ParseError> {
    percent_decode_str(field).decode_utf8().map(Cow::into_owned).map_err(|_| ParseError)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(project: Option<&str>, service: Option<&str>) -> AgentId {
        AgentId {
            trust_domain: "loopgate.local".into(),
            kind: WorkloadKind::Container,
            project: project.map(Into::into),
            service: service.map(Into::into),
            workload: "0f".repeat(32),
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
            assert_eq!(uri, format!("spiffe://loopgate.local/docker/{path}/{}", id.workload));
            assert_eq!(uri.parse(), Ok(id));
        }
    }

    #[test]
    fn a_pods_identity_differs_from_a_containers() {
        let pod = AgentId { kind: WorkloadKind::Pod, ..id(Some("claws"), Some("builder")) };
        let uri = format!("spiffe://loopgate.local/k8s/claws/builder/{}", pod.workload);
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

//! Types for the objects of the Kubernetes API, with only the fields that loopgate reads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::pod::Pod;
use crate::addr::canonical;
use crate::discovery::agent_labels::{POD_AGENT, POD_SCOPES};
use crate::secret::Secret;

/// A page of a list of pods.
#[derive(Debug, Deserialize)]
pub struct PodList {
    pub metadata: ListMeta,
    #[serde(default)]
    pub items: Option<Vec<PodObject>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMeta {
    pub resource_version: String,
    pub r#continue: String,
}

/// An event of a watch: a change of a pod, or a bookmark.
#[derive(Debug, Deserialize)]
pub struct Event {
    pub r#type: EventType,
    pub object: PodObject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
}

/// A pod as the API server reports it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodObject {
    pub metadata: ObjectMeta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    pub name: String,
    pub uid: String,
    namespace: String,
    pub resource_version: String,
    deletion_timestamp: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    host_network: Option<bool>,
    service_account_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Ip>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<Ip>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ip {
    ip: String,
}

impl PodObject {
    /// Converts the object; `None` if the pod has ended or is being deleted, or has no address or
    /// no label `loopgate.dev/agent`. A pending pod counts as running once it has an address, since
    /// its init containers may run.
    pub fn into_running_pod(self) -> Option<Pod> {
        let Self { metadata, spec, status } = self;
        // The addresses of a pod that has ended or is being deleted may be given to another pod.
        let runs =
            matches!(status.phase.as_deref(), Some("Pending" | "Running")) && metadata.deletion_timestamp.is_none();
        let agent = metadata.labels.unwrap_or_default().remove(POD_AGENT)?;
        let addresses = pod_addresses(status.pod_ip, status.pod_ips);
        if !runs || addresses.is_empty() || metadata.uid.is_empty() || metadata.name.is_empty() {
            return None;
        }
        let hosts = parse_addresses(status.host_ip, status.host_ips);
        Some(Pod {
            host_network: spec.host_network == Some(true) || addresses.iter().any(|ip| hosts.contains(ip)),
            uid: metadata.uid,
            name: metadata.name,
            namespace: metadata.namespace,
            service_account: spec.service_account_name.unwrap_or_default(),
            agent,
            scopes: metadata.annotations.unwrap_or_default().remove(POD_SCOPES),
            addresses,
            hosts,
        })
    }
}

/// Returns the addresses in `first` and `all`, without duplicates and unspecified ones.
fn pod_addresses(first: Option<String>, all: Option<Vec<Ip>>) -> Vec<IpAddr> {
    parse_addresses(first, all).into_iter().filter(|ip| !ip.is_unspecified()).collect()
}

/// Parses the addresses in `first` and `all`, without duplicates. Text that is no address is
/// skipped.
fn parse_addresses(first: Option<String>, all: Option<Vec<Ip>>) -> Vec<IpAddr> {
    let texts = first.into_iter().chain(all.unwrap_or_default().into_iter().map(|ip| ip.ip));
    let mut addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).map(canonical).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The body of an error response, and the object of an error event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub message: String,
    pub code: u16,
}

/// The body of a request that asks for a token review.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenReviewRequest<'a> {
    api_version: &'static str,
    kind: &'static str,
    spec: TokenReviewSpec<'a>,
}

#[derive(Serialize)]
struct TokenReviewSpec<'a> {
    token: &'a Secret,
    audiences: [&'a str; 1],
}

impl<'a> TokenReviewRequest<'a> {
    /// Returns a request to review `token`, which must be for `audience`.
    pub fn new(token: &'a Secret, audience: &'a str) -> Self {
        Self {
            api_version: "authentication.k8s.io/v1",
            kind: "TokenReview",
            spec: TokenReviewSpec { token, audiences: [audience] },
        }
    }
}

/// The owner of a token, as the API server states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOwner {
    /// The user name: `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// The name of the pod that the token is bound to.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
}

/// The response to a token review. It repeats the token, which is not kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TokenReview {
    pub status: ReviewStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReviewStatus {
    authenticated: bool,
    audiences: Option<Vec<String>>,
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: Option<BTreeMap<String, Vec<String>>>,
}

impl ReviewStatus {
    /// Returns the owner of the token; `None` unless it is authenticated, for `audience`, and bound
    /// to a pod.
    pub fn into_token_owner(self, audience: &str) -> Option<TokenOwner> {
        // An API server that does not support audiences names none, and has not checked them, so
        // the token is refused.
        let has_audience = self.audiences.unwrap_or_default().iter().any(|named| named == audience);
        let mut extra = self.user.extra.unwrap_or_default();
        let mut sole_value = |key: &str| match extra.remove(key)?.as_slice() {
            [value] if !value.is_empty() => Some(value.clone()),
            _ => None,
        };
        let (pod, uid) =
            (sole_value("authentication.kubernetes.io/pod-name")?, sole_value("authentication.kubernetes.io/pod-uid")?);
        (self.authenticated && has_audience).then_some(TokenOwner { user: self.user.username, pod, uid })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(change: impl FnOnce(&mut Value)) -> Option<Pod> {
        let mut pod = json!({
            "metadata": {"name": "builder-0", "namespace": "claws", "uid": "u1", "resourceVersion": "7",
                "labels": {"loopgate.dev/agent": "address", "app": "x"},
                "annotations": {"loopgate.dev/scopes": "operator.read"}},
            "spec": {"serviceAccountName": "builder", "hostNetwork": false, "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.1.0.7", "podIPs": [{"ip": "10.1.0.7"}, {"ip": "fd00::7"}],
                "hostIP": "192.0.2.9", "hostIPs": [{"ip": "192.0.2.9"}]},
        });
        change(&mut pod);
        serde_json::from_value::<PodObject>(pod).unwrap().into_running_pod()
    }

    #[test]
    fn a_pod_has_all_its_addresses() {
        let pod = read(|_| {}).unwrap();
        assert_eq!(pod.addresses, ["10.1.0.7", "fd00::7"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(
            (pod.agent.as_str(), pod.scopes.as_deref(), pod.host_network),
            ("address", Some("operator.read"), false)
        );
        assert_eq!(
            (pod.uid.as_str(), pod.service_account.as_str(), pod.namespace.as_str()),
            ("u1", "builder", "claws")
        );
    }

    #[test]
    fn a_pod_that_has_ended_or_will_or_has_no_address_is_not_read() {
        for phase in ["Succeeded", "Failed", "Unknown", ""] {
            assert_eq!(read(|pod| pod["status"]["phase"] = phase.into()), None, "{phase}");
        }
        assert!(read(|pod| pod["status"]["phase"] = "Pending".into()).is_some());
        assert_eq!(read(|pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()), None);
        assert_eq!(read(|pod| pod["status"] = json!({"phase": "Running"})), None);
        assert_eq!(read(|pod| pod["metadata"]["labels"] = json!({})), None);
        assert_eq!(read(|pod| pod["metadata"]["labels"] = Value::Null), None);
    }

    #[test]
    fn a_pod_with_its_nodes_address_is_on_its_nodes_network_whatever_it_says() {
        assert!(read(|pod| pod["spec"]["hostNetwork"] = true.into()).unwrap().host_network);
        assert!(
            read(|pod| pod["status"]["hostIPs"] = json!([{"ip": "192.0.2.9"}, {"ip": "fd00::7"}]))
                .unwrap()
                .host_network
        );
    }

    #[test]
    fn a_token_is_accepted_only_if_all_of_its_fields_are_right() {
        let reviewed = |change: &dyn Fn(&mut Value)| {
            let mut status = json!({"authenticated": true, "audiences": ["loopgate"],
                "user": {"username": "system:serviceaccount:claws:builder",
                "extra": {"authentication.kubernetes.io/pod-name": ["builder-0"],
                    "authentication.kubernetes.io/pod-uid": ["u1"]}}});
            change(&mut status);
            serde_json::from_value::<ReviewStatus>(status).unwrap().into_token_owner("loopgate")
        };
        assert_eq!(reviewed(&|_| {}).unwrap().uid, "u1");
        let wrong: [&dyn Fn(&mut Value); 6] = [
            &|status| status["authenticated"] = false.into(),
            &|status| status["audiences"] = json!(["https://kubernetes.default.svc"]),
            &|status| status["audiences"] = Value::Null,
            &|status| status["user"]["extra"] = Value::Null,
            &|status| status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] = json!(["u1", "u2"]),
            &|status| status["user"]["extra"]["authentication.kubernetes.io/pod-name"] = json!([""]),
        ];
        for (number, wrong) in wrong.into_iter().enumerate() {
            assert_eq!(reviewed(wrong), None, "{number}");
        }
    }
}

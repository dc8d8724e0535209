//! Pods: their objects, the status that a kubelet would write, and the tokens it would mount.

use std::path::Path;

use serde_json::{Value, json};

use crate::cluster::Cluster;

/// The namespace of the release and of every pod.
pub const NAMESPACE: &str = "claws";

/// The API path of a kind in this namespace (`pods`) or of an object (`pods/builder`).
pub fn path(what: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/{what}")
}

/// A pod like the one in docs/kubernetes.md, with this value of the label `loopgate.dev/agent`, if
/// any.
pub fn pod(name: &str, label: Option<&str>) -> Value {
    let labels = label.map_or_else(|| json!({"app": "x"}), |label| json!({"app": "x", "loopgate.dev/agent": label}));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "serviceAccountName": "builder",
            "automountServiceAccountToken": false,
            "containers": [{"name": "agent", "image": "x", "volumeMounts": [{"name": "loopgate-token",
                "mountPath": "/run/loopgate"}]}],
            "volumes": [{"name": "loopgate-token", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "audience": "loopgate", "expirationSeconds": 3600}},
            ]}}],
        },
    })
}

impl Cluster {
    /// Creates a service account.
    pub async fn create_account(&self, name: &str) {
        self.create(&path("serviceaccounts"), &json!({"metadata": {"name": name}})).await;
    }

    /// Creates a pod and sets it running at `address`; returns the API server's object.
    pub async fn run_pod(&self, pod: &Value, address: &str) -> Value {
        let created = self.create(&path("pods"), pod).await;
        self.set_address(name(&created), address).await
    }

    /// Writes the status of a running pod with this address, as a kubelet does.
    pub async fn set_address(&self, name: &str, address: &str) -> Value {
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "192.0.2.99"});
        self.patch(&path(&format!("pods/{name}/status")), &json!({"status": status})).await
    }

    /// A token of `account`, bound to `pod` if given, for `audience` or else for the API server
    /// itself.
    pub async fn token(&self, account: &str, pod: Option<&Value>, audience: Option<&str>) -> String {
        self.request_token(account, pod, audience, 3600).await.1["status"]["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    /// Requests a token that is valid for `seconds`; returns the API server's status code and body.
    pub async fn request_token(
        &self,
        account: &str,
        pod: Option<&Value>,
        audience: Option<&str>,
        seconds: u64,
    ) -> (u16, Value) {
        let mut spec = json!({"audiences": audience.into_iter().collect::<Vec<_>>(), "expirationSeconds": seconds});
        if let Some(pod) = pod {
            spec["boundObjectRef"] =
                json!({"kind": "Pod", "apiVersion": "v1", "name": name(pod), "uid": pod["metadata"]["uid"]});
        }
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        self.request(crate::cluster::ADMIN, "POST", &path(&format!("serviceaccounts/{account}/token")), Some(&request))
            .await
    }

    /// Writes the files of `pod`'s projected volume `volume` into `directory`, each one atomically.
    pub async fn write_projected_volume(&self, pod: &Value, volume: &str, directory: &Path) {
        let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
        let volume = volumes.iter().find(|other| other["name"] == volume).expect("the volume");
        let write = |path: &Value, text: &str| {
            let path = directory.join(path.as_str().expect("a path"));
            let aside = path.with_extension("new");
            std::fs::write(&aside, text).unwrap();
            std::fs::rename(aside, path).unwrap();
        };
        for source in volume["projected"]["sources"].as_array().expect("sources") {
            if let Some(token) = source.get("serviceAccountToken") {
                let account = pod["spec"]["serviceAccountName"].as_str().expect("an account");
                let seconds = token["expirationSeconds"].as_u64().expect("a life");
                let (_, response) = self.request_token(account, Some(pod), token["audience"].as_str(), seconds).await;
                write(
                    &token["path"],
                    response["status"]["token"].as_str().unwrap_or_else(|| panic!("no token: {response:#}")),
                );
            } else if let Some(map) = source.get("configMap") {
                // In a full cluster a controller creates this map, with the cluster's CA, in every
                // namespace.
                assert_eq!(map["name"], "kube-root-ca.crt");
                assert_eq!(map["items"][0]["key"], "ca.crt");
                write(&map["items"][0]["path"], &std::fs::read_to_string(self.file("ca.crt")).unwrap());
            } else {
                let item = &source["downwardAPI"]["items"][0];
                assert_eq!(item["fieldRef"]["fieldPath"], "metadata.namespace", "{source}");
                write(&item["path"], NAMESPACE);
            }
        }
    }
}

/// The name of an object.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}

//! Pods, as those who create them, the kubelet that runs them, and the tokens that it brings them.

use std::path::Path;

use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Where all of it is.
pub const NAMESPACE: &str = "claws";

/// The path of what this namespace has of a kind, such as `pods`, or of one of them, such as `pods/builder`.
pub fn path(what: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/{what}")
}

/// A pod as docs/kubernetes.md has it, with this value of the label, if any.
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
    /// Makes a service account.
    pub async fn account(&self, name: &str) {
        self.create(&path("serviceaccounts"), &json!({"metadata": {"name": name}})).await;
    }

    /// Creates a pod, and has it run at `address`; returns what the API server has of it then.
    pub async fn run(&self, pod: &Value, address: &str) -> Value {
        let created = self.create(&path("pods"), pod).await;
        self.moves(name(&created), address).await
    }

    /// The kubelet tells of another address.
    pub async fn moves(&self, name: &str, address: &str) -> Value {
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "192.0.2.99"});
        self.patch(&path(&format!("pods/{name}/status")), &json!({"status": status})).await
    }

    /// A token of `account`, bound to `pod` if there is one, for `audience` or else for the API server itself.
    pub async fn token(&self, account: &str, pod: Option<&Value>, audience: Option<&str>) -> String {
        self.asks_for_token(account, pod, audience, 3600).await.1["status"]["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    /// The same, and whatever the API server says to it.
    pub async fn asks_for_token(
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
        self.answers(crate::cluster::ADMIN, "POST", &path(&format!("serviceaccounts/{account}/token")), Some(&request))
            .await
    }

    /// Puts what the volume `volume` of `pod` projects into `directory`, whole, over what is there.
    pub async fn project(&self, pod: &Value, volume: &str, directory: &Path) {
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
                let (_, made) = self.asks_for_token(account, Some(pod), token["audience"].as_str(), seconds).await;
                write(&token["path"], made["status"]["token"].as_str().unwrap_or_else(|| panic!("no token: {made:#}")));
            } else if let Some(map) = source.get("configMap") {
                // A controller puts the cluster's CA under this name into every namespace.
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

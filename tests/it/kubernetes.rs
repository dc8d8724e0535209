//! Agents that are pods: they prove who they are by a token that the API server reviews, and lose everything with their pod.

use std::sync::Arc;
use std::time::Duration;

use loopgate::agent::Credentials;
use loopgate::agent::enrol::{Error, converse_by_token};
use loopgate::attest::{ALPN, Reason};
use loopgate::config::Discovery;
use serde_json::json;
use tokio::time::timeout;

use crate::fake_kubernetes::{FakeKubernetes, pod};
use crate::house::{BOTH, Door, House, STRANGER, UNKNOWN, request};
use crate::lanes::{assert_agents, assert_external};
use crate::process::Process;

/// The address of the pod `builder`.
const BUILDER: &str = "127.0.0.21";
/// The address of another labelled pod.
const OTHER: &str = "127.0.0.22";
/// An address that is no labelled pod's.
const NOBODY: &str = "127.0.0.23";
/// The audience that counts.
const AUDIENCE: &str = "loopgate";

/// How a pod comes to its end as an agent.
type End = (&'static str, fn(&FakeKubernetes));

async fn house(kubernetes: &FakeKubernetes) -> House {
    kubernetes.put(pod("builder", Some("true"), &[BUILDER]));
    kubernetes.put(pod("other", Some("attested"), &[OTHER]));
    kubernetes.token("builders-token", "builder", AUDIENCE);
    kubernetes.token("others-token", "other", AUDIENCE);
    kubernetes.token("for-the-api", "builder", "https://kubernetes.default.svc");
    House::with(|config| {
        config.discovery = Discovery::Kubernetes;
        config.kubernetes.api = Some(kubernetes.address());
        config.kubernetes.credentials = kubernetes.credentials();
    })
    .await
}

/// Enrols from `source` with `token`.
async fn enrol(door: &Door, source: &str, token: &str) -> Result<Arc<Credentials>, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), token).unwrap();
    let stream = door.handshake(door.tcp(source).await, std::str::from_utf8(ALPN).unwrap()).await.unwrap();
    converse_by_token(stream, file.path()).await.map(|(credentials, _)| credentials)
}

async fn refusal(door: &Door, source: &str, token: &str) -> Reason {
    match enrol(door, source, token).await {
        Err(Error::Refused(refused)) => refused.error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pod_that_proves_itself_is_an_agent_and_nobody_else_is() {
    let kubernetes = FakeKubernetes::start();
    let house = house(&kubernetes).await;
    let credentials = enrol(&house, BUILDER, "builders-token").await.unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&credentials.certified_key.cert[0]).unwrap();
    let names = format!("{:?}", leaf.subject_alternative_name().unwrap().unwrap().value.general_names);
    assert!(names.contains("spiffe://loopgate.local/k8s/claws/builder/uid-of-builder"), "{names}");
    let builder = house.shown_by(credentials.certified_key.clone());
    for protocol in BOTH {
        builder.ask(protocol, BUILDER, "GET /", &[]).await;
        assert_agents(&house.gateway.heard().pop().unwrap(), &house);
        // Its certificate is worth nothing elsewhere, not even at another agent's address.
        for source in [OTHER, NOBODY] {
            builder.ask(protocol, source, "GET /", &[]).await;
            assert_external(&house.gateway.heard().pop().unwrap(), UNKNOWN);
        }
        // And its address nothing without.
        for source in [BUILDER, STRANGER] {
            house.ask(protocol, source, "GET /", &[]).await;
            assert_external(&house.gateway.heard().pop().unwrap(), UNKNOWN);
        }
    }
}

#[tokio::test]
async fn what_is_not_the_token_of_the_pod_at_that_address_proves_nothing() {
    let kubernetes = FakeKubernetes::start();
    let house = house(&kubernetes).await;
    for (source, token, expected) in [
        (BUILDER, "forged", Reason::BadToken),
        (BUILDER, "others-token", Reason::BadToken),
        (BUILDER, "for-the-api", Reason::BadToken),
        (OTHER, "builders-token", Reason::BadToken),
        (NOBODY, "builders-token", Reason::NotAnAgent),
    ] {
        assert_eq!(refusal(&house, source, token).await, expected, "{token} from {source}");
    }
    // One of the same name is another pod, and so is one that runs as another service account.
    kubernetes.delete("builder");
    let mut namesake = pod("builder", Some("true"), &[BUILDER]);
    namesake["metadata"]["uid"] = "another".into();
    kubernetes.put(namesake);
    assert_eq!(refusal(&house, BUILDER, "builders-token").await, Reason::BadToken);
    kubernetes.change("other", |pod| pod["spec"]["serviceAccountName"] = "someone".into());
    house.ask(BOTH[0], OTHER, "GET /", &[]).await;
    assert_eq!(refusal(&house, OTHER, "others-token").await, Reason::BadToken);
    // One that is admitted by its address gets no certificate.
    kubernetes.change("other", |pod| pod["metadata"]["labels"] = json!({"loopgate.dev/agent": "address"}));
    let refused = async { while refusal(&house, OTHER, "others-token").await != Reason::AddressAgent {} };
    timeout(Duration::from_secs(10), refused).await.unwrap();
    // Nor does anybody while reviews are forbidden.
    kubernetes.put(pod("third", Some("true"), &[NOBODY]));
    kubernetes.token("thirds-token", "third", AUDIENCE);
    kubernetes.forbid("create tokenreviews");
    assert_eq!(refusal(&house, NOBODY, "thirds-token").await, Reason::Kubernetes);
    kubernetes.permit("create tokenreviews");
    enrol(&house, NOBODY, "thirds-token").await.unwrap();
}

#[tokio::test]
async fn a_pods_open_connections_end_with_it() {
    let ends: [End; 5] = [
        ("deleted", |kubernetes| kubernetes.delete("builder")),
        ("without the label", |kubernetes| kubernetes.change("builder", |pod| pod["metadata"]["labels"] = json!({}))),
        ("terminating", |kubernetes| {
            kubernetes.change("builder", |pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
        }),
        ("failed", |kubernetes| kubernetes.change("builder", |pod| pod["status"]["phase"] = "Failed".into())),
        ("with another address", |kubernetes| {
            kubernetes.change("builder", |pod| pod["status"]["podIPs"] = json!([{"ip": "127.0.0.29"}]));
            kubernetes.change("builder", |pod| pod["status"]["podIP"] = "127.0.0.29".into());
        }),
    ];
    for (how, end) in ends {
        let kubernetes = FakeKubernetes::start();
        let house = house(&kubernetes).await;
        let credentials = enrol(&house, BUILDER, "builders-token").await.unwrap();
        let builder = house.shown_by(credentials.certified_key.clone());
        let mut wire = builder.h1(BUILDER).await;
        wire.ask(request("GET /", "")).await;
        assert_agents(&house.gateway.heard().pop().unwrap(), &house);
        end(&kubernetes);
        timeout(Duration::from_secs(1), wire.until_end()).await.unwrap_or_else(|_| panic!("still open: {how}"));
        builder.ask(BOTH[0], BUILDER, "GET /", &[]).await;
        assert_external(&house.gateway.heard().pop().unwrap(), UNKNOWN);
    }
}

#[tokio::test]
async fn while_the_api_server_is_away_who_is_inside_stays_and_nobody_enrols() {
    let mut kubernetes = FakeKubernetes::start();
    let house = house(&kubernetes).await;
    let credentials = enrol(&house, BUILDER, "builders-token").await.unwrap();
    let mut wire = house.shown_by(credentials.certified_key.clone()).h1(BUILDER).await;
    kubernetes.down().await;
    assert_eq!(refusal(&house, OTHER, "others-token").await, Reason::Kubernetes);
    wire.ask(request("GET /", "")).await;
    assert_agents(&house.gateway.heard().pop().unwrap(), &house);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_ever_logged() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.put(pod("builder", Some("true"), &[BUILDER]));
    kubernetes.token("builders-token", "builder", AUDIENCE);
    let (api, credentials) = (kubernetes.address(), kubernetes.credentials());
    let credentials = format!("--kubernetes-credentials={}", credentials.display());
    let flags = ["--discovery=kubernetes", &format!("--kubernetes-api={api}"), &credentials, "--log-level=trace"];
    let process = Process::start(&flags, "").await;
    enrol(&process, BUILDER, "builders-token").await.unwrap();
    assert_eq!(refusal(&process, BUILDER, "forged-token").await, Reason::BadToken);
    process.says("bad_token").await;
    let log = process.log().join("\n");
    assert!(log.contains("enrolled") && log.contains("bad_token"), "{log}");
    for token in ["builders-token", "forged-token", "own-token-1"] {
        assert!(!log.contains(token), "{token}");
    }
}

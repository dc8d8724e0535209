//! Agents that are pods: a pod proves its identity with a token that the API server reviews, and
//! its connections are closed when it is removed.

use std::time::Duration;

use loopgate::config::AgentSourceKind;
use loopgate::enrolment_protocol::RefusalReason;
use serde_json::json;
use tokio::time::timeout;

use crate::harness::{
    Harness, OUTSIDER, PROTOCOLS, UNKNOWN_CLIENT, enrol, enrolment_refusal, request_text, start_process,
};
use crate::lanes::{assert_external, assert_is_agents_request};
use loopgate_test_support::agent_process::Pod;
use loopgate_test_support::fake_kubernetes::{FakeKubernetes, pod};
use loopgate_test_support::namespace::in_namespace;

/// The address of the pod `builder`.
const BUILDER: &str = "127.0.0.21";
/// The address of another labelled pod.
const OTHER: &str = "127.0.0.22";
/// An address that is no labelled pod's.
const UNLABELLED: &str = "127.0.0.23";
/// The audience that a token must have.
const AUDIENCE: &str = "loopgate";

/// A change after which the pod `builder` is no agent: its name, and a function that makes it.
type End = (&'static str, fn(&FakeKubernetes));

async fn harness(kubernetes: &FakeKubernetes) -> Harness {
    kubernetes.put_pod(pod("builder", Some("true"), &[BUILDER]));
    kubernetes.put_pod(pod("other", Some("attested"), &[OTHER]));
    kubernetes.add_token("builders-token", "builder", AUDIENCE);
    kubernetes.add_token("others-token", "other", AUDIENCE);
    kubernetes.add_token("for-the-api", "builder", "https://kubernetes.default.svc");
    Harness::start_with(|config| {
        config.discovery = AgentSourceKind::Kubernetes;
        config.kubernetes.api = Some(kubernetes.address());
        config.kubernetes.credentials = kubernetes.credentials();
    })
    .await
}

#[tokio::test]
async fn only_a_pod_that_proves_itself_is_an_agent() {
    let kubernetes = FakeKubernetes::start();
    let harness = harness(&kubernetes).await;
    let credentials = enrol(&harness, BUILDER, "builders-token").await.unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&credentials.certified_key.cert[0]).unwrap();
    let names = format!("{:?}", leaf.subject_alternative_name().unwrap().unwrap().value.general_names);
    assert!(names.contains("spiffe://loopgate.local/k8s/claws/builder/uid-of-builder"), "{names}");
    let builder = harness.with_certified_key(credentials.certified_key.clone());
    for protocol in PROTOCOLS {
        builder.send_request(protocol, BUILDER, "GET /", &[]).await;
        assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
        // The pod's certificate is not accepted from another address, not even from another
        // agent's.
        for source in [OTHER, UNLABELLED] {
            builder.send_request(protocol, source, "GET /", &[]).await;
            assert_external(&harness.gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
        }
        // The pod's address does not make a client an agent without the certificate.
        for source in [BUILDER, OUTSIDER] {
            harness.send_request(protocol, source, "GET /", &[]).await;
            assert_external(&harness.gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
        }
    }
}

#[tokio::test]
async fn only_the_token_of_the_pod_at_that_address_proves_an_agent() {
    let kubernetes = FakeKubernetes::start();
    let harness = harness(&kubernetes).await;
    for (source, token, expected) in [
        (BUILDER, "forged", RefusalReason::BadToken),
        (BUILDER, "others-token", RefusalReason::BadToken),
        (BUILDER, "for-the-api", RefusalReason::BadToken),
        (OTHER, "builders-token", RefusalReason::BadToken),
        (UNLABELLED, "builders-token", RefusalReason::NotAnAgent),
    ] {
        assert_eq!(enrolment_refusal(&harness, source, token).await, expected, "{token} from {source}");
    }
    // A pod of the same name with another UID is another pod, and so is one with another service
    // account.
    kubernetes.delete_pod("builder");
    let mut namesake = pod("builder", Some("true"), &[BUILDER]);
    namesake["metadata"]["uid"] = "another".into();
    kubernetes.put_pod(namesake);
    assert_eq!(enrolment_refusal(&harness, BUILDER, "builders-token").await, RefusalReason::BadToken);
    kubernetes.change_pod("other", |pod| pod["spec"]["serviceAccountName"] = "someone".into());
    harness.send_request(PROTOCOLS[0], OTHER, "GET /", &[]).await;
    assert_eq!(enrolment_refusal(&harness, OTHER, "others-token").await, RefusalReason::BadToken);
    // A pod that is admitted by its address gets no certificate.
    kubernetes.change_pod("other", |pod| pod["metadata"]["labels"] = json!({"loopgate.dev/agent": "address"}));
    let refused =
        async { while enrolment_refusal(&harness, OTHER, "others-token").await != RefusalReason::AddressAgent {} };
    timeout(Duration::from_secs(10), refused).await.unwrap();
    // Enrolment is also refused while loopgate may not create token reviews.
    kubernetes.put_pod(pod("third", Some("true"), &[UNLABELLED]));
    kubernetes.add_token("thirds-token", "third", AUDIENCE);
    kubernetes.forbid("create tokenreviews");
    assert_eq!(enrolment_refusal(&harness, UNLABELLED, "thirds-token").await, RefusalReason::Kubernetes);
    kubernetes.permit("create tokenreviews");
    enrol(&harness, UNLABELLED, "thirds-token").await.unwrap();
}

#[tokio::test]
async fn a_pods_open_connections_end_with_the_pod() {
    let ends: [End; 5] = [
        ("deleted", |kubernetes| kubernetes.delete_pod("builder")),
        ("without the label", |kubernetes| {
            kubernetes.change_pod("builder", |pod| pod["metadata"]["labels"] = json!({}))
        }),
        ("terminating", |kubernetes| {
            kubernetes
                .change_pod("builder", |pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
        }),
        ("failed", |kubernetes| kubernetes.change_pod("builder", |pod| pod["status"]["phase"] = "Failed".into())),
        ("with another address", |kubernetes| {
            kubernetes.change_pod("builder", |pod| pod["status"]["podIPs"] = json!([{"ip": "127.0.0.29"}]));
            kubernetes.change_pod("builder", |pod| pod["status"]["podIP"] = "127.0.0.29".into());
        }),
    ];
    for (how, end) in ends {
        let kubernetes = FakeKubernetes::start();
        let harness = harness(&kubernetes).await;
        let credentials = enrol(&harness, BUILDER, "builders-token").await.unwrap();
        let builder = harness.with_certified_key(credentials.certified_key.clone());
        let mut wire = builder.connect_h1(BUILDER).await;
        wire.send_request(request_text("GET /", "")).await;
        assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
        end(&kubernetes);
        timeout(Duration::from_secs(1), wire.until_end()).await.unwrap_or_else(|_| panic!("still open: {how}"));
        builder.send_request(PROTOCOLS[0], BUILDER, "GET /", &[]).await;
        assert_external(&harness.gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
    }
}

#[tokio::test]
async fn a_pod_that_ends_during_the_drain_loses_its_lane() {
    let kubernetes = FakeKubernetes::start();
    let harness = harness(&kubernetes).await;
    let credentials = enrol(&harness, BUILDER, "builders-token").await.unwrap();
    let mut builder = harness.with_certified_key(credentials.certified_key.clone()).connect_h1(BUILDER).await;
    let mut outsider = harness.connect_h1(OUTSIDER).await;
    for client in [&mut builder, &mut outsider] {
        client.send(request_text("GET /held", "")).await.unwrap();
    }
    let requests = harness.gateway.wait_for_requests(2).await;
    assert!(requests.iter().any(|request| request.field("x-forwarded-for").is_none()), "one is an agent's");

    let meanwhile = async {
        assert!(harness.sidecar.is_stopping());
        kubernetes.delete_pod("builder");
        timeout(Duration::from_secs(2), builder.until_end()).await.expect("still open");
        harness.gateway.release_held(2);
        assert_eq!(outsider.read_response().await.unwrap().text(), "held");
    };
    tokio::join!(harness.sidecar.stop(), meanwhile);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_process_is_admitted_by_its_pods_token_while_the_pod_lives() {
    let kubernetes = FakeKubernetes::start();
    let harness = harness(&kubernetes).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "builders-token\n").unwrap();
    let builder_pod =
        Pod { client: &harness, source: BUILDER, ca: harness.state.path().join("ca.pem"), token: file.path() };
    let agent = builder_pod.start_agent().await;
    let mut wire = agent.connect_h1().await;
    assert_eq!(wire.send_request(request_text("GET /work", "")).await.text(), "hello");
    let received = harness.gateway.requests().pop().unwrap();
    assert_is_agents_request(&received, &harness);
    assert_eq!(received.start_line(), "GET /work HTTP/1.1");

    let output = builder_pod.exec("echo \"at $OPENCLAW_GATEWAY_PORT\"").await;
    assert!(output.status.success() && output.stdout.starts_with(b"at "), "{output:?}");
    let probe = harness.gateway.requests().pop().unwrap();
    assert_is_agents_request(&probe, &harness);
    assert_eq!(probe.start_line(), "GET /startupz HTTP/1.1");

    kubernetes.delete_pod("builder");
    timeout(Duration::from_secs(1), wire.until_end()).await.expect("its connection ends with the pod");
    let received = harness.gateway.requests().len();
    let refused = builder_pod.exec("echo unreachable").await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("no running pod with the label loopgate.dev/agent has the address 127.0.0.21"), "{text}");
    assert_eq!(
        (refused.status.code(), refused.stdout.as_slice(), harness.gateway.requests().len()),
        (Some(1), &b""[..], received),
        "{text}"
    );
    for messages in [agent.process.log_lines().join("\n"), text] {
        assert!(messages.contains("enrol") && !messages.contains("builders-token"), "{messages}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_process_logs_why_its_token_is_refused() {
    let kubernetes = FakeKubernetes::start();
    let harness = harness(&kubernetes).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let builder_pod =
        Pod { client: &harness, source: BUILDER, ca: harness.state.path().join("ca.pem"), token: file.path() };
    for (token, why) in [
        ("forged", "the API server does not accept the token as a pod's for this audience"),
        ("for-the-api", "the API server does not accept the token as a pod's for this audience"),
        ("others-token", "the token is not that of the pod that has this address"),
    ] {
        std::fs::write(file.path(), token).unwrap();
        let output = builder_pod.exec("echo unreachable").await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{text}");
        assert!(text.contains(why), "{token}: {text}");
    }
    assert_eq!(harness.gateway.connections(), 0);
}

#[test]
fn a_pod_admitted_by_address_is_an_agent_without_a_certificate_until_it_ends() {
    in_namespace(async || {
        let kubernetes = FakeKubernetes::start();
        kubernetes.put_pod(pod("scout", Some("address"), &["198.51.100.4"]));
        kubernetes.put_pod(pod("attested", Some("true"), &["198.51.100.5"]));
        kubernetes.put_pod(pod("unlabelled", None, &["198.51.100.6"]));
        kubernetes.put_pod(pod("never", Some("false"), &["198.51.100.7"]));
        let harness = harness(&kubernetes).await;
        // An enrolment waits until the sidecar has listed the pod, so all pods are known after it.
        enrol(&harness, BUILDER, "builders-token").await.unwrap();
        for protocol in PROTOCOLS {
            assert_eq!(
                harness.send_request(protocol, "198.51.100.4", "GET /", &[("x-forwarded-for", "127.0.0.1")]).await,
                (200, "hello".into())
            );
            assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
            for source in ["198.51.100.5", "198.51.100.6", "198.51.100.7", "198.51.100.8"] {
                harness.send_request(protocol, source, "GET /", &[]).await;
                assert_external(&harness.gateway.requests().pop().unwrap(), source);
            }
        }
        let mut wire = harness.connect_h1("198.51.100.4").await;
        wire.send_request(request_text("GET /", "")).await;
        // A page that runs in the pod is not the pod.
        wire.send_request(request_text("GET /", "Origin: http://evil.example\r\n")).await;
        let received = harness.gateway.requests();
        assert_is_agents_request(&received[received.len() - 2], &harness);
        assert_external(&received[received.len() - 1], "198.51.100.4");
        kubernetes.change_pod("scout", |pod| pod["metadata"]["labels"]["loopgate.dev/agent"] = "false".into());
        timeout(Duration::from_secs(1), wire.until_end()).await.expect("its connection ends with the label");
        harness.send_request(PROTOCOLS[0], "198.51.100.4", "GET /", &[]).await;
        assert_external(&harness.gateway.requests().pop().unwrap(), "198.51.100.4");
    });
}

#[tokio::test]
async fn without_the_api_server_connections_stay_and_enrolment_is_refused() {
    let mut kubernetes = FakeKubernetes::start();
    let harness = harness(&kubernetes).await;
    let credentials = enrol(&harness, BUILDER, "builders-token").await.unwrap();
    let mut wire = harness.with_certified_key(credentials.certified_key.clone()).connect_h1(BUILDER).await;
    kubernetes.stop().await;
    assert_eq!(enrolment_refusal(&harness, OTHER, "others-token").await, RefusalReason::Kubernetes);
    wire.send_request(request_text("GET /", "")).await;
    assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_ever_logged() {
    let kubernetes = FakeKubernetes::start();
    kubernetes.put_pod(pod("builder", Some("true"), &[BUILDER]));
    kubernetes.add_token("builders-token", "builder", AUDIENCE);
    let (api, credentials) = (kubernetes.address(), kubernetes.credentials());
    let credentials = format!("--kubernetes-credentials={}", credentials.display());
    let flags = ["--discovery=kubernetes", &format!("--kubernetes-api={api}"), &credentials, "--log-level=trace"];
    let sidecar = start_process(&flags, "").await;
    enrol(&sidecar, BUILDER, "builders-token").await.unwrap();
    assert_eq!(enrolment_refusal(&sidecar, BUILDER, "forged-token").await, RefusalReason::BadToken);
    sidecar.process().wait_for_log("bad_token").await;
    let log = sidecar.process().log_lines().join("\n");
    assert!(log.contains("enrolled") && log.contains("bad_token"), "{log}");
    for token in ["builders-token", "forged-token", "own-token-1"] {
        assert!(!log.contains(token), "{token}");
    }
}

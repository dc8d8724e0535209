//! Client certificates: which ones make a client an agent, which ones name a user, and which ones
//! have no effect.

use std::time::Duration;

use loopgate::config::Config;
use loopgate::pki::offline;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, string::Ia5String,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::harness::{
    EXTERNAL_SOURCE, Harness, OUTSIDER, PROTOCOLS, Protocol, TRUSTED_PROXY, TlsClient, UNKNOWN_CLIENT, request_text,
};
use crate::lanes::{assert_external, assert_is_agents_request};
use loopgate_test_support::raw_http::RawHttp;

/// The only entry of `agents.uris` in these tests.
const ROBOT: &str = "spiffe://corp.example/robot";

/// A CA that is not loopgate's.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A client of `harness` with a certificate of this CA for these names.
    fn client(&self, harness: &Harness, names: Vec<SanType>) -> TlsClient {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        harness.with_certificate(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

fn uri(uri: &str) -> SanType {
    SanType::URI(Ia5String::try_from(uri).unwrap())
}

/// Starts a sidecar that trusts `authority` for users and for one agent.
async fn start_trusting(authority: &Authority) -> Harness {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clients.pem");
    std::fs::write(&file, &authority.pem).unwrap();
    Harness::start_with(|config| {
        config.tls.client_ca = Some(file);
        config.agents.uris = vec![ROBOT.into()];
    })
    .await
}

/// Has the sidecar ask outsiders for a certificate.
fn ask_outsiders_for_certificates(config: &mut Config) {
    config.agents.certificate_from = vec![format!("{OUTSIDER}/32").parse().unwrap()];
}

/// A client with a certificate from `loopgate cert issue`.
fn client_with_issued_certificate(harness: &Harness) -> TlsClient {
    let out = tempfile::tempdir().unwrap();
    let agent = offline::Agent { trust_domain: "loopgate.local", name: "robot", life: Duration::from_secs(3600) };
    offline::issue(harness.state.path(), &agent, out.path()).unwrap();
    let chain = CertificateDer::pem_file_iter(out.path().join("agent.pem")).unwrap().collect::<Result<_, _>>().unwrap();
    harness.with_certificate(chain, PrivateKeyDer::from_pem_file(out.path().join("agent.key")).unwrap())
}

#[tokio::test]
async fn a_certificate_from_cert_issue_admits_an_agent() {
    let harness = Harness::start_with(ask_outsiders_for_certificates).await;
    let agent = client_with_issued_certificate(&harness);
    for protocol in PROTOCOLS {
        agent.send_request(protocol, OUTSIDER, "GET /", &[]).await;
        assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
        agent.send_request(protocol, OUTSIDER, "GET /", &[("origin", "https://page.example")]).await;
        assert_external(&harness.gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
        agent.send_request(protocol, OUTSIDER, "GET /", &[("sec-fetch-site", "same-origin")]).await;
        assert_external(&harness.gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
        // A trusted proxy is never an agent, whatever certificate it has.
        agent.send_request(protocol, TRUSTED_PROXY, "GET /", &[("x-forwarded-for", "203.0.113.9")]).await;
        assert_external(&harness.gateway.requests().pop().unwrap(), "203.0.113.9");
        // Without the certificate, a client at the same address is external.
        harness.send_request(protocol, OUTSIDER, "GET /", &[]).await;
        assert_external(&harness.gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
    }
    // A web page can send a request without `Origin` if the browser does not regard the host as
    // loopback: the page's own domain name, resolved to the agent's listener (DNS rebinding), or an
    // unusual form of the loopback address.
    for host in ["page.example:18789", "[::ffff:7f00:1]:18789", "localhost4:18789"] {
        agent.connect_h1(OUTSIDER).await.send_request(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let received = harness.gateway.requests().pop().unwrap();
        assert_eq!((received.source(), received.field("x-forwarded-host")), (EXTERNAL_SOURCE, Some(host)));
    }
}

#[tokio::test]
async fn agents_inherit_a_changed_token_after_a_reload() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let harness = Harness::start_with(|config| {
        ask_outsiders_for_certificates(config);
        config.gateway.token_file = Some(file.clone());
        config.agents.inherit_token = true;
    })
    .await;
    let agent = client_with_issued_certificate(&harness);
    let reload = || harness.sidecar.reload(Ok((*harness.sidecar.config()).clone()), |_| {});
    for (content, inherited) in
        [(Some("first"), "Bearer first"), (Some("second"), "Bearer second"), (None, "Bearer second")]
    {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        reload();
        agent.send_request(PROTOCOLS[0], OUTSIDER, "GET /", &[]).await;
        assert_eq!(harness.gateway.requests().pop().unwrap().field("authorization"), Some(inherited));
    }
}

#[tokio::test]
async fn an_operators_ca_admits_listed_agents_and_names_users_to_the_gateway() {
    let authority = Authority::new();
    let harness = start_trusting(&authority).await;
    let robot = authority.client(&harness, vec![uri(ROBOT)]);
    let mail = SanType::Rfc822Name(Ia5String::try_from("ann@corp.example").unwrap());
    let ann = authority.client(&harness, vec![uri("spiffe://corp.example/ann"), mail]);
    // A URI of loopgate's own trust domain makes an agent only in a certificate of loopgate's own
    // CA.
    let agent_uri = "spiffe://loopgate.local/agent/robot";
    let pretender = authority.client(&harness, vec![uri(agent_uri)]);
    for protocol in PROTOCOLS {
        robot.send_request(protocol, OUTSIDER, "GET /", &[]).await;
        assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
        for (client, user) in [(&ann, "ann@corp.example"), (&pretender, agent_uri)] {
            client.send_request(protocol, OUTSIDER, "GET /", &[("x-forwarded-user", "root")]).await;
            let received = harness.gateway.requests().pop().unwrap();
            assert_eq!((received.source(), received.field("x-forwarded-for")), (EXTERNAL_SOURCE, Some(UNKNOWN_CLIENT)));
            assert_eq!(received.field("x-forwarded-user"), Some(user));
            // The certificate of a proxy does not name the user of its clients.
            client.send_request(protocol, TRUSTED_PROXY, "GET /", &[("x-forwarded-for", "203.0.113.9")]).await;
            let received = harness.gateway.requests().pop().unwrap();
            assert_eq!(
                (received.field("x-forwarded-for"), received.field("x-forwarded-user")),
                (Some("203.0.113.9"), None)
            );
        }
    }
    // A certificate of loopgate's own CA makes its client an agent as well.
    client_with_issued_certificate(&harness).send_request(PROTOCOLS[0], OUTSIDER, "GET /", &[]).await;
    assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
}

#[tokio::test]
async fn a_certificate_of_an_unknown_ca_gets_no_answer() {
    let harness = start_trusting(&Authority::new()).await;
    let client = Authority::new().client(&harness, vec![uri(ROBOT)]);
    assert!(is_refused(&harness, &client).await);
    harness.send_request(PROTOCOLS[0], OUTSIDER, "GET /", &[]).await;
    assert_external(&harness.gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
}

/// Sends a request as `client`; returns the user that the gateway sees in it.
async fn user_at_gateway(harness: &Harness, client: &TlsClient, protocol: Protocol) -> Option<String> {
    assert_eq!(client.send_request(protocol, OUTSIDER, "GET /", &[]).await.0, 200);
    let received = harness.gateway.requests().pop().unwrap();
    assert_eq!(received.source(), EXTERNAL_SOURCE);
    received.field("x-forwarded-user").map(str::to_owned)
}

/// Returns whether `client` is refused at its handshake. In TLS 1.3 it learns that only when it
/// reads, so this sends a request, and looks whether the gateway receives it.
async fn is_refused(harness: &Harness, client: &TlsClient) -> bool {
    let before = harness.gateway.requests().len();
    if let Ok(stream) = client.handshake(client.connect_tcp(OUTSIDER).await, "http/1.1").await {
        let mut wire = RawHttp::new(stream);
        let _ = wire.send(request_text("GET /", "")).await;
        wire.until_end().await;
    }
    harness.gateway.requests().len() == before
}

/// The bundle first gets another CA, and then the option is removed.
#[tokio::test]
async fn replacing_the_client_ca_closes_connections_of_the_former_one() {
    let (former, latter) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clients.pem");
    std::fs::write(&file, &former.pem).unwrap();
    let harness = Harness::start_with(|config| {
        config.tls.client_ca = Some(file.clone());
        config.agents.uris = vec![ROBOT.into()];
    })
    .await;
    let reload = |config: Config| harness.sidecar.reload(Ok(config), |_| {});
    let user = |authority: &Authority, name: &str| {
        authority.client(&harness, vec![SanType::Rfc822Name(Ia5String::try_from(name).unwrap())])
    };
    let (ann, bob) = (user(&former, "ann@corp.example"), user(&latter, "bob@corp.example"));
    let (robot, mut other) = (former.client(&harness, vec![uri(ROBOT)]), harness.connect_h1(OUTSIDER).await);
    assert_eq!(other.send_request(request_text("GET /", "")).await.status(), 200);
    for protocol in PROTOCOLS {
        assert_eq!(user_at_gateway(&harness, &ann, protocol).await.as_deref(), Some("ann@corp.example"));
    }
    // A resumed session still names its user.
    let resumed = ann.handshake(ann.connect_tcp(OUTSIDER).await, "http/1.1").await.unwrap();
    assert_eq!(resumed.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    assert_eq!(RawHttp::new(resumed).send_request(request_text("GET /", "")).await.status(), 200);
    assert_eq!(harness.gateway.requests().pop().unwrap().field("x-forwarded-user"), Some("ann@corp.example"));
    assert!(is_refused(&harness, &bob).await);

    let mut open = ann.connect_h1(OUTSIDER).await;
    let mut websocket = robot.open_websocket(Protocol::H2, OUTSIDER, "/ws").await;
    assert_eq!(open.send_request(request_text("GET /", "")).await.status(), 200);
    std::fs::write(&file, &latter.pem).unwrap();
    reload((*harness.sidecar.config()).clone());
    assert!(open.read_rest().await.is_empty());
    let end =
        tokio::time::timeout(Duration::from_secs(10), futures_util::StreamExt::next(&mut websocket)).await.unwrap();
    // The WebSocket ends with a close frame or an error, without another message.
    assert!(matches!(end, None | Some(Err(_) | Ok(tokio_tungstenite::tungstenite::Message::Close(_)))), "{end:?}");
    // The session tickets of these clients are no longer accepted.
    assert!(is_refused(&harness, &ann).await && is_refused(&harness, &robot).await);
    assert_eq!(user_at_gateway(&harness, &bob, Protocol::H1).await.as_deref(), Some("bob@corp.example"));
    assert_eq!(other.send_request(request_text("GET /", "")).await.status(), 200, "on the same connection");

    let mut open = bob.connect_h1(OUTSIDER).await;
    assert_eq!(open.send_request(request_text("GET /", "")).await.status(), 200);
    let mut config = (*harness.sidecar.config()).clone();
    config.tls.client_ca = None;
    config.agents.uris.clear();
    reload(config);
    assert!(open.read_rest().await.is_empty());
    assert_eq!(
        user_at_gateway(&harness, &bob, Protocol::H1).await,
        None,
        "no client is asked for a certificate any more"
    );
    assert_eq!(user_at_gateway(&harness, &harness, Protocol::H1).await, None);
    assert_eq!(other.send_request(request_text("GET /", "")).await.status(), 200, "on the same connection");
}

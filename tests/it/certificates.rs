//! What a client's certificate makes of it: an agent, a user with a name, or nobody.

use std::time::Duration;

use loopgate::config::Config;
use loopgate::pki::offline;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, string::Ia5String};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::house::{BOTH, Door, EXTERNAL, House, PROXY, Protocol, STRANGER, UNKNOWN, request};
use crate::lanes::{assert_agents, assert_external};
use crate::wire::Wire;

/// What `agents.uris` lists in these stories.
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

    /// The door of `house` to those who show a certificate of this CA, with these names.
    fn door(&self, house: &House, names: Vec<SanType>) -> Door {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        house.shown(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

fn uri(uri: &str) -> SanType {
    SanType::URI(Ia5String::try_from(uri).unwrap())
}

/// A house that believes `authority` about users, and about one robot.
async fn believing(authority: &Authority) -> House {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clients.pem");
    std::fs::write(&file, &authority.pem).unwrap();
    House::with(|config| {
        config.tls.client_ca = Some(file);
        config.agents.uris = vec![ROBOT.into()];
    })
    .await
}

/// The door to an agent whose certificate was made by `loopgate cert issue`.
fn issued(house: &House) -> Door {
    let out = tempfile::tempdir().unwrap();
    let agent = offline::Agent { trust_domain: "loopgate.local", name: "robot", life: Duration::from_secs(3600) };
    offline::issue(house.state.path(), &agent, out.path()).unwrap();
    let chain = CertificateDer::pem_file_iter(out.path().join("agent.pem")).unwrap().collect::<Result<_, _>>().unwrap();
    house.shown(chain, PrivateKeyDer::from_pem_file(out.path().join("agent.key")).unwrap())
}

#[tokio::test]
async fn a_certificate_that_loopgate_issued_by_hand_is_an_agents() {
    let house = House::open().await;
    let agent = issued(&house);
    for protocol in BOTH {
        agent.ask(protocol, STRANGER, "GET /", &[]).await;
        assert_agents(&house.gateway.heard().pop().unwrap(), &house);
        agent.ask(protocol, STRANGER, "GET /", &[("origin", "https://page.example")]).await;
        assert_external(&house.gateway.heard().pop().unwrap(), UNKNOWN);
        agent.ask(protocol, STRANGER, "GET /", &[("sec-fetch-site", "same-origin")]).await;
        assert_external(&house.gateway.heard().pop().unwrap(), UNKNOWN);
        // Whoever speaks for others is none, whatever it shows.
        agent.ask(protocol, PROXY, "GET /", &[("x-forwarded-for", "203.0.113.9")]).await;
        assert_external(&house.gateway.heard().pop().unwrap(), "203.0.113.9");
        // The same address without the certificate.
        house.ask(protocol, STRANGER, "GET /", &[]).await;
        assert_external(&house.gateway.heard().pop().unwrap(), UNKNOWN);
    }
    // A page's own name leads to the agent's listener, and the browser believes that it is the page's.
    // Or it is an address of this machine's that browsers take for another's.
    for host in ["page.example:18789", "[::ffff:7f00:1]:18789", "localhost4:18789"] {
        agent.h1(STRANGER).await.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let heard = house.gateway.heard().pop().unwrap();
        assert_eq!((heard.source(), heard.field("x-forwarded-host")), (EXTERNAL, Some(host)));
    }
}

#[tokio::test]
async fn a_token_that_was_changed_is_inherited_after_a_reload() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let house = House::with(|config| {
        config.gateway.token_file = Some(file.clone());
        config.agents.inherit_token = true;
    })
    .await;
    let agent = issued(&house);
    let reload = || house.sidecar.reload(Ok((*house.sidecar.config()).clone()), |_| {});
    for (content, inherited) in [(Some("first"), "Bearer first"), (Some("second"), "Bearer second"), (None, "Bearer second")] {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        reload();
        agent.ask(BOTH[0], STRANGER, "GET /", &[]).await;
        assert_eq!(house.gateway.heard().pop().unwrap().field("authorization"), Some(inherited));
    }
}

#[tokio::test]
async fn an_operators_ca_admits_the_agents_that_are_listed_and_names_users_to_the_gateway() {
    let authority = Authority::new();
    let house = believing(&authority).await;
    let robot = authority.door(&house, vec![uri(ROBOT)]);
    let mail = SanType::Rfc822Name(Ia5String::try_from("ann@corp.example").unwrap());
    let ann = authority.door(&house, vec![uri("spiffe://corp.example/ann"), mail]);
    // It may not speak for loopgate's own CA.
    let pretended = "spiffe://loopgate.local/agent/robot";
    let pretender = authority.door(&house, vec![uri(pretended)]);
    for protocol in BOTH {
        robot.ask(protocol, STRANGER, "GET /", &[]).await;
        assert_agents(&house.gateway.heard().pop().unwrap(), &house);
        for (door, user) in [(&ann, "ann@corp.example"), (&pretender, pretended)] {
            door.ask(protocol, STRANGER, "GET /", &[("x-forwarded-user", "root")]).await;
            let heard = house.gateway.heard().pop().unwrap();
            assert_eq!((heard.source(), heard.field("x-forwarded-for")), (EXTERNAL, Some(UNKNOWN)));
            assert_eq!(heard.field("x-forwarded-user"), Some(user));
            // A proxy that shows a certificate is not the user of whom it brings.
            door.ask(protocol, PROXY, "GET /", &[("x-forwarded-for", "203.0.113.9")]).await;
            let heard = house.gateway.heard().pop().unwrap();
            assert_eq!((heard.field("x-forwarded-for"), heard.field("x-forwarded-user")), (Some("203.0.113.9"), None));
        }
    }
    // loopgate's own agents are believed beside those.
    issued(&house).ask(BOTH[0], STRANGER, "GET /", &[]).await;
    assert_agents(&house.gateway.heard().pop().unwrap(), &house);
}

#[tokio::test]
async fn a_certificate_of_a_stranger_to_us_gets_no_answer() {
    let house = believing(&Authority::new()).await;
    let door = Authority::new().door(&house, vec![uri(ROBOT)]);
    assert!(is_turned_away(&house, &door).await);
    house.ask(BOTH[0], STRANGER, "GET /", &[]).await;
    assert_external(&house.gateway.heard().pop().unwrap(), UNKNOWN);
}

/// What the gateway hears of the user who shows the certificate of `door`.
async fn named(house: &House, door: &Door, protocol: Protocol) -> Option<String> {
    assert_eq!(door.ask(protocol, STRANGER, "GET /", &[]).await.0, 200);
    let heard = house.gateway.heard().pop().unwrap();
    assert_eq!(heard.source(), EXTERNAL);
    heard.field("x-forwarded-user").map(str::to_owned)
}

/// Whether a client gets no further than its handshake; in TLS 1.3 it hears of a refusal only when it reads.
async fn is_turned_away(house: &House, door: &Door) -> bool {
    let before = house.gateway.heard().len();
    if let Ok(stream) = door.handshake(door.tcp(STRANGER).await, "http/1.1").await {
        let mut wire = Wire::new(stream);
        let _ = wire.send(request("GET /", "")).await;
        wire.until_end().await;
    }
    house.gateway.heard().len() == before
}

/// The same bundle with other contents, and then no bundle at all.
#[tokio::test]
async fn another_ca_of_the_operators_sends_away_whom_the_one_before_vouched_for() {
    let (former, latter) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clients.pem");
    std::fs::write(&file, &former.pem).unwrap();
    let house = House::with(|config| {
        config.tls.client_ca = Some(file.clone());
        config.agents.uris = vec![ROBOT.into()];
    })
    .await;
    let reload = |config: Config| house.sidecar.reload(Ok(config), |_| {});
    let user = |authority: &Authority, name: &str| authority.door(&house, vec![SanType::Rfc822Name(Ia5String::try_from(name).unwrap())]);
    let (ann, bob) = (user(&former, "ann@corp.example"), user(&latter, "bob@corp.example"));
    let (robot, mut nobody) = (former.door(&house, vec![uri(ROBOT)]), house.h1(STRANGER).await);
    assert_eq!(nobody.ask(request("GET /", "")).await.status(), 200);
    for protocol in BOTH {
        assert_eq!(named(&house, &ann, protocol).await.as_deref(), Some("ann@corp.example"));
    }
    // What is resumed is the same user's.
    let resumed = ann.handshake(ann.tcp(STRANGER).await, "http/1.1").await.unwrap();
    assert_eq!(resumed.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    assert_eq!(Wire::new(resumed).ask(request("GET /", "")).await.status(), 200);
    assert_eq!(house.gateway.heard().pop().unwrap().field("x-forwarded-user"), Some("ann@corp.example"));
    assert!(is_turned_away(&house, &bob).await);

    let mut open = ann.h1(STRANGER).await;
    let mut carried = robot.websocket(Protocol::H2, STRANGER, "/ws").await;
    assert_eq!(open.ask(request("GET /", "")).await.status(), 200);
    std::fs::write(&file, &latter.pem).unwrap();
    reload((*house.sidecar.config()).clone());
    assert!(open.rest().await.is_empty());
    let end = tokio::time::timeout(Duration::from_secs(10), futures_util::StreamExt::next(&mut carried)).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    // They have tickets, which open nothing any more.
    assert!(is_turned_away(&house, &ann).await && is_turned_away(&house, &robot).await);
    assert_eq!(named(&house, &bob, Protocol::H1).await.as_deref(), Some("bob@corp.example"));
    assert_eq!(nobody.ask(request("GET /", "")).await.status(), 200, "on the same connection");

    let mut open = bob.h1(STRANGER).await;
    assert_eq!(open.ask(request("GET /", "")).await.status(), 200);
    let mut config = (*house.sidecar.config()).clone();
    config.tls.client_ca = None;
    config.agents.uris.clear();
    reload(config);
    assert!(open.rest().await.is_empty());
    assert!(is_turned_away(&house, &bob).await);
    assert_eq!(named(&house, &house, Protocol::H1).await, None);
    assert_eq!(nobody.ask(request("GET /", "")).await.status(), 200, "on the same connection");
}

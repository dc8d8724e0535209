//! What a client's certificate makes of it: an agent, a user with a name, or nobody.

use std::time::Duration;

use loopgate::pki::offline;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, string::Ia5String};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::house::{BOTH, Door, EXTERNAL, House, PROXY, STRANGER, UNKNOWN, request};
use crate::lanes::{assert_agents, assert_external};

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
        // Whoever speaks for others is none, whatever it shows.
        agent.ask(protocol, PROXY, "GET /", &[("x-forwarded-for", "203.0.113.9")]).await;
        assert_external(&house.gateway.heard().pop().unwrap(), "203.0.113.9");
        // The same address without the certificate.
        house.ask(protocol, STRANGER, "GET /", &[]).await;
        assert_external(&house.gateway.heard().pop().unwrap(), UNKNOWN);
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
    // In TLS 1.3 a client hears of it only when it reads.
    if let Ok(stream) = door.handshake(door.tcp(STRANGER).await, "http/1.1").await {
        let mut wire = crate::wire::Wire::new(stream);
        let _ = wire.send(request("GET /", "")).await;
        wire.until_end().await;
    }
    assert_eq!(house.gateway.heard().len(), 0);
    house.ask(BOTH[0], STRANGER, "GET /", &[]).await;
    assert_external(&house.gateway.heard().pop().unwrap(), UNKNOWN);
}

//! A fake engine with a container that starts and stops. A client of the soak sends requests from
//! the container's address with the container's certificate, which is valid only while the
//! container runs.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use loopgate_test_support::fake_docker::{FakeDocker, container};

/// The container's address while it runs.
pub const ADDRESS: &str = "127.0.7.1";
/// The time within which a start or stop takes effect. It should take a second; busy machines get
/// more.
const EFFECT_TIME: Duration = Duration::from_secs(3);

/// The number of the container's starts and stops, and the time of the last one.
#[derive(Debug)]
pub struct Life(Mutex<(u64, Instant)>);

impl Life {
    /// The number of starts and stops so far; odd while the container runs.
    pub fn changes(&self) -> u64 {
        self.0.lock().unwrap().0
    }

    fn record_change(&self) {
        let mut life = self.0.lock().unwrap();
        *life = (life.0 + 1, Instant::now());
    }

    /// Returns whether a request from the container's address may arrive on the agent lane.
    pub fn may_be_agent(&self) -> bool {
        let (changes, since) = *self.0.lock().unwrap();
        !changes.is_multiple_of(2) || changes > 0 && since.elapsed() < EFFECT_TIME
    }

    /// Returns whether a request on a connection opened at `opened` may arrive on the external
    /// lane. A connection that began on the external lane stays there.
    pub fn may_be_external(&self, opened: Instant) -> bool {
        let (changes, since) = *self.0.lock().unwrap();
        changes.is_multiple_of(2) || opened < since + EFFECT_TIME
    }
}

/// A certificate and key like those of an enrolment, signed with the CA in the state directory.
pub fn certificate(state: &Path) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let read = |name: &str| fs::read_to_string(state.join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://loopgate.local/docker/p/s/agent".try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    (vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

/// The fake engine, and the state of its container.
pub struct Docker {
    engine: FakeDocker,
    pub life: Arc<Life>,
}

impl Docker {
    /// Starts an engine with the container that owns this network namespace. Returns `None` if the
    /// namespace has no address besides loopback.
    pub fn start() -> Option<Self> {
        let interfaces = nix::ifaddrs::getifaddrs().unwrap();
        let mut addresses = interfaces.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
        let own: Ipv4Addr = addresses.find(|ip| !ip.is_loopback())?;
        let engine = FakeDocker::start();
        engine.add_silently(container("gateway", json!({}), &[("front", &own.to_string())]));
        Some(Self { engine, life: Arc::new(Life(Mutex::new((0, Instant::now())))) })
    }

    /// The flags for a sidecar that uses this engine.
    pub fn flags(&self) -> [String; 2] {
        [format!("--docker=unix://{}", self.engine.socket().display()), "--container=gateway".into()]
    }

    /// Starts or stops the container. Two of four times no event is sent, and the stream of events
    /// ends, so that the sidecar has to list the containers.
    pub fn start_or_stop(&self) {
        let changes = self.life.changes();
        let silent = changes % 4 > 1;
        if changes.is_multiple_of(2) {
            self.life.record_change();
            let agent = container("agent", json!({"loopgate.agent": "attested"}), &[("front", ADDRESS)]);
            if silent { drop(self.engine.add_silently(agent)) } else { self.engine.run_container(agent) }
        } else {
            if silent {
                self.engine.remove_silently("agent")
            } else {
                self.engine.stop_container("agent")
            }
            self.life.record_change();
        }
        if silent {
            self.engine.cut_events();
        }
    }
}

//! An engine on which a container comes and goes, at an address from which a client of the soak
//! asks. It has a certificate that names it all the time, which is worth something only while it
//! lives.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use loopgate_test_support::fake_docker::{FakeDocker, container};

/// Where the container is, while it is.
pub const ADDRESS: &str = "127.0.7.1";
/// A change counts within a second, and so does what was under way; the rest is for a machine that is busy.
const SOON: Duration = Duration::from_secs(3);

/// Whether the container lives, and since when that is so.
#[derive(Debug)]
pub struct Life(Mutex<(u64, Instant)>);

impl Life {
    /// How often it changed; odd while the container lives.
    pub fn turns(&self) -> u64 {
        self.0.lock().unwrap().0
    }

    fn turn(&self) {
        let mut life = self.0.lock().unwrap();
        *life = (life.0 + 1, Instant::now());
    }

    /// Whether a request from there may come by the agent lane.
    pub fn may_be_agent(&self) -> bool {
        let (turns, since) = *self.0.lock().unwrap();
        !turns.is_multiple_of(2) || turns > 0 && since.elapsed() < SOON
    }

    /// Whether a request on a connection opened at `begun` may come by the external lane: a connection keeps its lane.
    pub fn may_be_external(&self, begun: Instant) -> bool {
        let (turns, since) = *self.0.lock().unwrap();
        turns.is_multiple_of(2) || begun < since + SOON
    }
}

/// What enrolment would give the container, made with the authority in the state directory.
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

pub struct Docker {
    engine: FakeDocker,
    pub life: Arc<Life>,
}

impl Docker {
    /// An engine that knows the container which owns this namespace; `None` where that has no
    /// address that an engine could give it.
    pub fn start() -> Option<Self> {
        let interfaces = nix::ifaddrs::getifaddrs().unwrap();
        let mut addresses = interfaces.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
        let own: Ipv4Addr = addresses.find(|ip| !ip.is_loopback())?;
        let engine = FakeDocker::start();
        engine.put(container("gateway", json!({}), &[("front", &own.to_string())]));
        Some(Self { engine, life: Arc::new(Life(Mutex::new((0, Instant::now())))) })
    }

    /// The flags for a sidecar that uses it.
    pub fn flags(&self) -> [String; 2] {
        [format!("--docker=unix://{}", self.engine.socket().display()), "--container=gateway".into()]
    }

    /// Lets the container come or go, and says so or only ends the stream of events, so that the
    /// engine has to be asked.
    pub fn turn(&self) {
        let turns = self.life.turns();
        let silent = turns % 4 > 1;
        if turns.is_multiple_of(2) {
            self.life.turn();
            let agent = container("agent", json!({"loopgate.agent": "attested"}), &[("front", ADDRESS)]);
            if silent { drop(self.engine.put(agent)) } else { self.engine.run(agent) }
        } else {
            if silent {
                self.engine.take("agent")
            } else {
                self.engine.stop("agent")
            }
            self.life.turn();
        }
        if silent {
            self.engine.cut_events();
        }
    }
}

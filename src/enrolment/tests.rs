//! Tests of enrolment over streams in memory, with fake containers.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::agent::enrol::{self, enrol_by_proof};
use crate::agent::show::ProofMethod;
use crate::enrolment_protocol::{PROOF_MODE, PROOF_MTIME};
use crate::shutdown::Shutdown;

mod file_proof;

const ADDRESS: &str = "172.18.0.3:4711";

/// Fake containers. Tests set their processes. The files of one container are those of the test
/// machine.
#[derive(Default)]
struct Containers {
    /// The command lines in each running container, by its id.
    processes: Mutex<HashMap<String, Vec<String>>>,
    /// The id of the container that has the files of the test machine.
    container_with_files: Option<String>,
    mounts: Vec<PathBuf>,
    shares_processes: bool,
    fails: bool,
}

impl ProofReader for Arc<Containers> {
    async fn read_environment(&self, id: &str, _kind: ProofKind) -> Result<Option<ProofEnvironment>, ReadError> {
        if self.fails {
            return Err(ReadError { endpoint: "/containers/json", source: "no socket".into() });
        }
        let runs = self.processes.lock().unwrap().contains_key(id);
        Ok(runs.then(|| ProofEnvironment { mounts: self.mounts.clone(), shares_processes: self.shares_processes }))
    }

    async fn read_command_lines(&self, id: &str) -> Result<Vec<String>, ReadError> {
        Ok(self.processes.lock().unwrap()[id].clone())
    }

    async fn stat(&self, id: &str, path: &Path) -> Result<Option<Entry>, ReadError> {
        if self.container_with_files.as_deref() != Some(id) {
            return Ok(None);
        }
        Ok(std::fs::symlink_metadata(path).ok().map(|metadata| match metadata.file_type() {
            kind if kind.is_file() => Entry::File(FileStat {
                size: metadata.len() as i64,
                mode: metadata.mode() & 0o7777,
                mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
            }),
            kind if kind.is_dir() => Entry::Directory,
            _ => Entry::Other,
        }))
    }
}

impl Containers {
    fn running(ids: &[&str]) -> Self {
        let processes = ids.iter().map(|id| ((*id).to_owned(), vec!["sleep infinity".to_owned()])).collect();
        Self { processes: Mutex::new(processes), ..Self::default() }
    }

    fn show(&self, id: &str, proof: &str) {
        self.processes.lock().unwrap().get_mut(id).unwrap().push(format!("loopgate attest-proof {proof}"));
    }
}

/// A running enrolment with fake containers.
struct Harness {
    enrolment: Arc<Enrolment<Arc<Containers>>>,
    containers: Arc<Containers>,
    view: watch::Sender<Arc<View>>,
    authority: Arc<CertificateAuthority>,
    shutdown: Shutdown,
    _state_dir: tempfile::TempDir,
}

fn agent(id: &str, kind: AgentKind) -> Arc<Agent> {
    Arc::new(Agent { id: id.into(), name: id.into(), project: Some("shop".into()), service: None, kind, scopes: None })
}

fn view(agents: &[(&str, Arc<Agent>)]) -> Arc<View> {
    let agents: BTreeMap<IpAddr, _> =
        agents.iter().map(|(ip, agent)| (ip.parse().unwrap(), Arc::clone(agent))).collect();
    Arc::new(View { agents, ..View::default() })
}

impl Harness {
    /// Starts with the agents `a`, attested at 172.18.0.3, and `b`, by address at 172.18.0.4.
    /// `a-sibling` shares the network namespace of `a`, and `c` has no label.
    fn new(containers: Containers, configure: impl Fn(&mut Config)) -> Self {
        let mut config = Config::default();
        configure(&mut config);
        let agents = [("172.18.0.3", agent("a", AgentKind::Attested)), ("172.18.0.4", agent("b", AgentKind::Address))];
        let (view_sender, view) = watch::channel(view(&agents));
        let state_dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(CertificateAuthority::load_or_create(state_dir.path()).unwrap());
        let containers = Arc::new(containers);
        let enrolment = Arc::new(Enrolment::new(&config, view, Some(authority.clone()), Some(containers.clone())));
        Self { enrolment, containers, view: view_sender, authority, shutdown: Shutdown::new(), _state_dir: state_dir }
    }

    /// Like [`Self::new`], with proofs shown as files in `directory`.
    fn with_file_proofs(containers: Containers, directory: &Path, configure: impl Fn(&mut Config)) -> Self {
        let mut harness = Self::new(containers, |config| {
            config.agents.proofs = vec![ProofKind::File];
            configure(config);
        });
        Arc::get_mut(&mut harness.enrolment).unwrap().proof_directory = directory.to_owned();
        harness
    }

    fn with_four_containers() -> Self {
        Self::new(Containers::running(&["a", "a-sibling", "b", "c"]), |_| {})
    }

    fn connect(&self, from: &str) -> JsonLines<DuplexStream> {
        JsonLines::new(self.connection(from))
    }

    fn connection(&self, from: &str) -> DuplexStream {
        let (ours, theirs) = duplex(64 * 1024);
        let (enrolment, peer) = (self.enrolment.clone(), PeerAddr::new(from.parse::<SocketAddr>().unwrap()));
        self.shutdown.spawn(async move { enrolment.serve(theirs, peer).await });
        ours
    }

    fn refused_count(&self, reason: &'static str) -> u64 {
        self.enrolment.metrics().attempts_refused.get_or_create(&crate::metrics::traffic::ReasonLabels { reason }).get()
    }
}

/// A key, and certificate requests signed by it.
struct Csr {
    key: KeyPair,
}

impl Csr {
    fn new() -> Self {
        Self { key: KeyPair::generate().unwrap() }
    }

    fn pem(&self) -> String {
        CertificateParams::default().serialize_request(&self.key).unwrap().pem().unwrap()
    }

    /// Sends the request, and returns the proof that the sidecar demands.
    async fn request(&self, lines: &mut JsonLines<DuplexStream>) -> String {
        lines.send(&EnrolmentRequest { csr: self.pem(), token: None }).await.unwrap();
        match lines.receive().await.unwrap() {
            Reply::Next(Challenge { nonce, .. }) => {
                enrolment_protocol::proof_for_key(&nonce, &self.key.subject_public_key_info())
            }
            Reply::Refused(refused) => panic!("{refused:?}"),
        }
    }
}

/// Reports that the proof is shown by a process, and returns the sidecar's reply.
async fn report_shown(lines: &mut JsonLines<DuplexStream>) -> Result<Enrolled, RefusalReason> {
    lines.send(&ProofShown::Process).await.unwrap();
    match lines.receive().await.unwrap() {
        Reply::Next(enrolled) => Ok(enrolled),
        Reply::Refused(refused) => Err(refused.error),
    }
}

async fn refusal(lines: &mut JsonLines<DuplexStream>) -> RefusalReason {
    match lines.receive::<Reply<Challenge>>().await.unwrap() {
        Reply::Refused(refused) => refused.error,
        Reply::Next(challenge) => panic!("{challenge:?}"),
    }
}

#[tokio::test]
async fn a_proof_shown_in_the_container_itself_gets_a_certificate() {
    let harness = Harness::with_four_containers();
    for container in ["a"; 2] {
        let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
        let proof = csr.request(&mut lines).await;
        harness.containers.show(container, &proof);
        let enrolled = report_shown(&mut lines).await.unwrap();
        assert!(enrolled.token.is_none());

        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(enrolled.certificate.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(&chain[1], harness.authority.certificate());
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert_eq!(leaf.public_key().raw, csr.key.subject_public_key_info());
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        let uri = "spiffe://loopgate.local/docker/shop/-/a";
        assert_eq!(names.value.general_names, [x509_parser::extensions::GeneralName::URI(uri)]);
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        let life = leaf.validity().not_after.timestamp() - time::OffsetDateTime::now_utc().unix_timestamp();
        assert!((3590..=3600).contains(&life), "{life}");
    }
    assert_eq!(harness.enrolment.metrics().certificates_issued.get(), 2);
}

#[tokio::test]
async fn a_proof_shown_anywhere_else_is_not_found() {
    let harness = Harness::with_four_containers();
    // The sibling shares the agent's network namespace, and so its address, without a label.
    for container in ["a-sibling", "b", "c"] {
        let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
        let proof = csr.request(&mut lines).await;
        harness.containers.show(container, &proof);
        assert_eq!(report_shown(&mut lines).await.unwrap_err(), RefusalReason::ProofNotFound, "{container}");
    }
    assert_eq!(harness.refused_count("proof_not_found"), 3);
}

#[tokio::test]
async fn no_process_is_a_proof_if_the_engine_also_lists_processes_of_other_containers() {
    let harness = Harness::new(Containers { shares_processes: true, ..Containers::running(&["a"]) }, |_| {});
    let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
    let proof = csr.request(&mut lines).await;
    harness.containers.show("a", &proof);
    assert_eq!(report_shown(&mut lines).await.unwrap_err(), RefusalReason::ProofMisplaced);
}

#[tokio::test]
async fn a_replayed_nonce_and_another_key_get_no_certificate() {
    let harness = Harness::with_four_containers();
    let (csr, mut first) = (Csr::new(), harness.connect(ADDRESS));
    let proof = csr.request(&mut first).await;
    harness.containers.show("a", &proof);
    report_shown(&mut first).await.unwrap();
    // The first proof is still visible. The same key on another connection gets another nonce, and
    // so needs another proof.
    let mut second = harness.connect(ADDRESS);
    assert_ne!(csr.request(&mut second).await, proof);
    assert_eq!(report_shown(&mut second).await.unwrap_err(), RefusalReason::ProofNotFound);
    // A neighbour that forges the address while the agent enrols has another nonce and another key,
    // for which the agent's proof is not valid.
    let (mut third, mut forger) = (harness.connect(ADDRESS), harness.connect(ADDRESS));
    let proof = csr.request(&mut third).await;
    Csr::new().request(&mut forger).await;
    harness.containers.show("a", &proof);
    assert_eq!(report_shown(&mut forger).await.unwrap_err(), RefusalReason::ProofNotFound);
    report_shown(&mut third).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_discovered_a_moment_later_is_waited_for() {
    let harness = Harness::with_four_containers();
    harness.view.send_replace(view(&[]));
    let mut lines = harness.connect(ADDRESS);
    let (csr, view_sender) = (Csr::new(), harness.view.clone());
    harness.shutdown.spawn(async move {
        tokio::time::sleep(DISCOVERY_DELAY / 2).await;
        view_sender.send_replace(view(&[("172.18.0.3", agent("a", AgentKind::Attested))]));
    });
    csr.request(&mut lines).await;
}

#[tokio::test(start_paused = true)]
async fn only_an_attested_agents_address_is_given_a_nonce() {
    let harness = Harness::with_four_containers();
    for (from, reason) in [
        ("172.18.0.9:1", RefusalReason::NotAnAgent),
        ("127.0.0.1:1", RefusalReason::NotAnAgent),
        ("172.18.0.4:1", RefusalReason::AddressAgent),
    ] {
        assert_eq!(refusal(&mut harness.connect(from)).await, reason, "{from}");
    }
    harness.view.send_replace(view(&[]));
    assert_eq!(refusal(&mut harness.connect(ADDRESS)).await, RefusalReason::NotAnAgent);
}

#[tokio::test]
async fn an_agent_that_stops_before_its_proof_is_read_gets_no_certificate() {
    let another = [("172.18.0.3", agent("c", AgentKind::Attested))];
    let unlabelled_later = [("172.18.0.3", agent("a", AgentKind::Address))];
    for agents in [&[] as &[_], &another, &unlabelled_later] {
        let harness = Harness::with_four_containers();
        let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
        let proof = csr.request(&mut lines).await;
        harness.containers.show("a", &proof);
        harness.view.send_replace(view(agents));
        assert_eq!(report_shown(&mut lines).await.unwrap_err(), RefusalReason::AgentGone, "{agents:?}");
    }
    let harness = Harness::new(Containers::running(&["b"]), |_| {});
    let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
    csr.request(&mut lines).await;
    assert_eq!(report_shown(&mut lines).await.unwrap_err(), RefusalReason::AgentGone, "the container has stopped");
}

#[tokio::test(start_paused = true)]
async fn a_nonce_expires() {
    let harness = Harness::with_four_containers();
    let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
    let proof = csr.request(&mut lines).await;
    tokio::time::advance(ENROLMENT_TIMEOUT).await;
    assert_eq!(refusal(&mut lines).await, RefusalReason::Expired);
    harness.containers.show("a", &proof);
    assert!(lines.receive::<Reply<Enrolled>>().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn attempts_from_one_address_are_limited() {
    let harness = Harness::with_four_containers();
    for _ in 0..10 {
        Csr::new().request(&mut harness.connect(ADDRESS)).await;
    }
    assert_eq!(refusal(&mut harness.connect(ADDRESS)).await, RefusalReason::TooMany);
    assert_eq!(harness.refused_count("too_many"), 1);
    // The limit also applies to clients that are not agents, before discovery is awaited.
    let mut strangers: Vec<_> = (0..11).map(|_| harness.connect("172.18.0.9:1")).collect();
    let refusals = futures_util::future::join_all(strangers.iter_mut().map(refusal)).await;
    assert_eq!(refusals.iter().filter(|reason| **reason == RefusalReason::NotAnAgent).count(), 10);
    assert!(refusals.contains(&RefusalReason::TooMany));
}

#[tokio::test]
async fn silent_agents_do_not_keep_others_from_enrolling() {
    let harness = Harness::with_four_containers();
    let ids: Vec<String> = (0..8).map(|number| format!("silent-{number}")).collect();
    let addresses: Vec<String> = (0..8).map(|number| format!("172.18.1.{number}")).collect();
    let silent = addresses.iter().zip(&ids).map(|(ip, id)| (ip.as_str(), agent(id, AgentKind::Attested)));
    harness
        .view
        .send_replace(view(&silent.chain([("172.18.0.3", agent("a", AgentKind::Attested))]).collect::<Vec<_>>()));
    let mut silent = Vec::new();
    for ip in &addresses {
        for _ in 0..10 {
            let mut lines = harness.connect(&format!("{ip}:1"));
            Csr::new().request(&mut lines).await;
            silent.push(lines);
        }
    }
    let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
    let proof = csr.request(&mut lines).await;
    harness.containers.show("a", &proof);
    report_shown(&mut lines).await.unwrap();
    drop(silent);
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let harness = Harness::with_four_containers();
    let mut lines = harness.connect(ADDRESS);
    lines
        .send(&EnrolmentRequest {
            csr: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".into(),
            token: None,
        })
        .await
        .unwrap();
    assert_eq!(refusal(&mut lines).await, RefusalReason::BadRequest);
    let mut stream = harness.connection(ADDRESS);
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert_eq!(refusal(&mut JsonLines::new(stream)).await, RefusalReason::Malformed);

    // This request has the agent's public key, but is signed by another key.
    let (csr, another, mut lines) = (Csr::new(), Csr::new(), harness.connect(ADDRESS));
    let genuine = CertificateParams::default().serialize_request(&csr.key).unwrap();
    let der = genuine.der();
    let mut forged = der.to_vec();
    let signature = CertificateParams::default().serialize_request(&another.key).unwrap().der().to_vec();
    let tail = 16;
    let (from, to) = (signature.len() - tail, forged.len() - tail);
    forged[to..].copy_from_slice(&signature[from..]);
    let forged = {
        use base64::Engine as _;
        let base64 = base64::prelude::BASE64_STANDARD.encode(forged);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{base64}\n-----END CERTIFICATE REQUEST-----\n")
    };
    lines.send(&EnrolmentRequest { csr: forged, token: None }).await.unwrap();
    let Reply::Next(Challenge { nonce, .. }) = lines.receive().await.unwrap() else { panic!("refused") };
    harness.containers.show("a", &enrolment_protocol::proof_for_key(&nonce, &csr.key.subject_public_key_info()));
    assert_eq!(report_shown(&mut lines).await.unwrap_err(), RefusalReason::BadRequest);
}

#[tokio::test]
async fn without_docker_no_agent_enrols() {
    let harness = Harness::new(Containers { fails: true, ..Containers::running(&["a"]) }, |_| {});
    let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
    csr.request(&mut lines).await;
    assert_eq!(report_shown(&mut lines).await.unwrap_err(), RefusalReason::Docker);
    assert_eq!(harness.refused_count("docker"), 1);
}

//! A harness: the sidecar in this process, a fake gateway behind it, and clients.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use loopgate::agent::Credentials;
use loopgate::agent::enrol::{Error, enrol_by_token};
use loopgate::app::Sidecar;
use loopgate::config::{Config, Engine, ListenAddresses, ListenOn};
use loopgate::enrolment_protocol::{ALPN, RefusalReason};
use loopgate_test_support::fake_gateway::FakeGateway;
use loopgate_test_support::raw_http::RawHttp;
use loopgate_test_support::sidecar::{Launch, SidecarWithGateway};
use tempfile::TempDir;

pub use loopgate_test_support::lanes::EXTERNAL_SOURCE;
pub use loopgate_test_support::sidecar::AGENT;
pub use loopgate_test_support::tls_client::{
    PROTOCOLS, Protocol, Tls, TlsClient, h2_request, read_whole_body, request_text,
};

/// An external client.
pub const OUTSIDER: &str = "127.0.0.3";
/// A peer in `external.trusted_proxies`.
pub const TRUSTED_PROXY: &str = "127.0.0.7";
/// The address that the gateway gets in place of one that it must not get
/// (`external.unknown_client`).
pub const UNKNOWN_CLIENT: &str = "192.0.2.1";

/// A sidecar in this process and the gateway behind it; as a [`TlsClient`], a client of the
/// sidecar.
pub struct Harness {
    pub gateway: FakeGateway,
    pub sidecar: Sidecar,
    /// The sidecar's state directory.
    pub state: TempDir,
    client: TlsClient,
}

impl std::ops::Deref for Harness {
    type Target = TlsClient;

    fn deref(&self) -> &TlsClient {
        &self.client
    }
}

impl Harness {
    /// Starts a sidecar with the configuration that most tests use.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts a sidecar with a configuration that `change` has changed.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let gateway = FakeGateway::start().await;
        let state = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.gateway.address = gateway.address;
        config.listen.on =
            vec![ListenOn { addresses: ListenAddresses::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: 0 }];
        config.state_dir = state.path().to_owned();
        config.docker.engine = Engine::Off;
        config.agents.cidrs = vec![format!("{AGENT}/32").parse().unwrap()];
        config.external.trusted_proxies = vec![format!("{TRUSTED_PROXY}/32").parse().unwrap()];
        config.tls.names = vec!["gateway.example".into()];
        config.admin = None;
        change(&mut config);
        let sidecar = Sidecar::start(config).await.unwrap();
        let client = TlsClient::new(sidecar.tls_addresses()[0], sidecar.identity().ca.clone().unwrap());
        Self { gateway, sidecar, state, client }
    }
}

/// Returns a client that sends and reads raw bytes over `stream`.
pub fn raw_http(stream: Tls) -> RawHttp<Tls> {
    RawHttp::new(stream)
}

/// Starts `loopgate run` as a process before a fake gateway, with these flags and with `config` as
/// its configuration file.
pub async fn start_process(flags: &[&str], config: &str) -> SidecarWithGateway {
    Launch::new().flags(flags).config(config).start_with_gateway().await
}

/// Enrols from `source` with `token`.
pub async fn enrol(client: &TlsClient, source: &str, token: &str) -> Result<Arc<Credentials>, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), token).unwrap();
    let stream = client.handshake(client.connect_tcp(source).await, std::str::from_utf8(ALPN).unwrap()).await.unwrap();
    enrol_by_token(stream, file.path()).await.map(|(credentials, _)| credentials)
}

/// Enrols from `source` with `token`; returns why the sidecar refuses it.
pub async fn enrolment_refusal(client: &TlsClient, source: &str, token: &str) -> RefusalReason {
    match enrol(client, source, token).await {
        Err(Error::Refused(refused)) => refused.error,
        other => panic!("{other:?}"),
    }
}

//! The agent forwards local connections to the sidecar.

use std::net::SocketAddr;
use std::time::Duration;

use loopgate::agent::{self, Agent, CredentialSource, Endpoint, ServerTrust, Settings};
use loopgate::config::CertificateFiles;
use loopgate::fingerprint::Fingerprint;
use loopgate::shutdown::Shutdown;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::sidecar::{Sidecar, TestCa, fingerprint_of};

/// An address for a listener, whose port the kernel chooses.
const ANY_PORT: &str = "127.0.0.1:0";

fn settings(authority: &TestCa, sidecar: SocketAddr, trust: ServerTrust) -> Settings {
    let (chain, key) = authority.write_client_certificate("agent");
    Settings {
        listen: ANY_PORT.parse().unwrap(),
        unsafe_listen: false,
        sidecar: Endpoint { host: sidecar.ip().to_string(), port: sidecar.port() },
        server_name: Some("localhost".into()),
        trust,
        credential_source: CredentialSource::Files(CertificateFiles { chain, key }),
        token_out: None,
        wait_limit: Duration::from_secs(10),
    }
}

/// Sends `sent` through the agent and ends the stream; returns everything that is received.
async fn send_and_read_all(agent: &Agent, sent: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(agent.address).await?;
    stream.write_all(sent).await?;
    stream.shutdown().await?;
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await?;
    Ok(received)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_a_second_connection_resumes_the_session() {
    let (authority, shutdown) = (TestCa::new(), Shutdown::new());
    let sidecar = Sidecar::start(&authority, ANY_PORT.parse().unwrap(), &shutdown).await;
    let settings = settings(&authority, sidecar.address, ServerTrust::Ca(authority.ca()));
    let CredentialSource::Files(files) = settings.credential_source.clone() else {
        unreachable!("these settings have files")
    };
    let agent = agent::start(settings, &shutdown).await.unwrap();

    for _ in 0..2 {
        assert_eq!(send_and_read_all(&agent, b"hello").await.unwrap(), b"hello");
    }
    let handshakes = sidecar.handshakes.lock().unwrap().clone();
    assert!(
        handshakes.iter().all(|handshake| handshake.client == Some(fingerprint_of(&files.chain))),
        "{handshakes:?}"
    );
    assert_eq!(handshakes.iter().map(|handshake| handshake.resumed).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_client_waits_for_a_sidecar_that_starts_later() {
    let (authority, shutdown) = (TestCa::new(), Shutdown::new());
    let free = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let settings = settings(&authority, address, ServerTrust::Ca(authority.ca()));
    let agent = agent::start(settings, &shutdown).await.unwrap();

    let mut client = TcpStream::connect(agent.address).await.unwrap();
    client.write_all(b"early").await.unwrap();
    let _sidecar = Sidecar::start(&authority, address, &shutdown).await;
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"early");
}

#[tokio::test]
async fn only_a_sidecar_with_the_right_ca_and_name_or_fingerprint_is_trusted() {
    let (authority, shutdown) = (TestCa::new(), Shutdown::new());
    let sidecar = Sidecar::start(&authority, ANY_PORT.parse().unwrap(), &shutdown).await;
    let other = TestCa::new();
    let wrong_name =
        Settings { server_name: None, ..settings(&authority, sidecar.address, ServerTrust::Ca(authority.ca())) };
    let another: Fingerprint = "00".repeat(32).parse().unwrap();
    let table = [
        (settings(&authority, sidecar.address, ServerTrust::Fingerprint(sidecar.fingerprint)), true),
        (settings(&authority, sidecar.address, ServerTrust::Fingerprint(another)), false),
        (settings(&authority, sidecar.address, ServerTrust::Ca(other.ca())), false),
        (settings(&authority, sidecar.address, ServerTrust::Ca("/does/not/exist".into())), false),
        (wrong_name, false),
    ];
    for (settings, trusted) in table {
        let case = format!("{:?} {:?}", settings.trust, settings.server_name);
        let agent = agent::start(Settings { wait_limit: Duration::ZERO, ..settings }, &shutdown).await.unwrap();
        let mut state = agent.state.clone();
        state.wait_for(|state| state.credentials.is_some()).await.unwrap();
        let answer = send_and_read_all(&agent, b"hello").await;
        assert_eq!(answer.is_ok_and(|answer| answer == b"hello"), trusted, "{case}");
    }
}

#[tokio::test]
async fn a_replaced_certificate_is_used_for_new_connections_only() {
    let (authority, shutdown) = (TestCa::new(), Shutdown::new());
    let sidecar = Sidecar::start(&authority, ANY_PORT.parse().unwrap(), &shutdown).await;
    let settings = settings(&authority, sidecar.address, ServerTrust::Ca(authority.ca()));
    let agent = agent::start(settings, &shutdown).await.unwrap();
    let mut old = TcpStream::connect(agent.address).await.unwrap();
    old.write_all(b"before").await.unwrap();
    let mut bytes = [0; 6];
    old.read_exact(&mut bytes).await.unwrap();

    let mut state = agent.state.clone();
    state.mark_unchanged();
    let (chain, _) = authority.write_client_certificate("agent");
    // The chain and the key are replaced one after the other, so for a moment they may not match.
    state
        .wait_for(|state| state.credentials.as_ref().is_some_and(|c| c.certified_key.cert[0] == read_der(&chain)))
        .await
        .unwrap();
    assert_eq!(send_and_read_all(&agent, b"after").await.unwrap(), b"after");
    assert_eq!(sidecar.handshakes.lock().unwrap().last().unwrap().client, Some(fingerprint_of(&chain)));
    old.write_all(b"beyond").await.unwrap();
    old.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"beyond");
}

#[tokio::test]
async fn with_an_expired_certificate_a_client_waits_for_its_replacement() {
    let (authority, shutdown) = (TestCa::new(), Shutdown::new());
    let sidecar = Sidecar::start(&authority, ANY_PORT.parse().unwrap(), &shutdown).await;
    let settings = Settings {
        wait_limit: Duration::from_secs(30),
        ..settings(&authority, sidecar.address, ServerTrust::Ca(authority.ca()))
    };
    authority.write_client_certificate_until("agent", Some(OffsetDateTime::now_utc() - Duration::from_secs(60)));
    let agent = agent::start(settings, &shutdown).await.unwrap();
    agent.state.clone().wait_for(|state| state.credentials.is_some()).await.unwrap();
    let (answer, ()) = tokio::join!(send_and_read_all(&agent, b"hello"), async {
        authority.write_client_certificate("agent");
    });
    assert_eq!(answer.unwrap(), b"hello");
    assert_eq!(sidecar.handshakes.lock().unwrap().len(), 1, "the agent tried the expired certificate");
}

fn read_der(path: &std::path::Path) -> rustls_pki_types::CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::CertificateDer::from_pem_file(path).unwrap()
}

#[tokio::test]
async fn a_listen_address_beyond_loopback_is_refused() {
    let (authority, shutdown) = (TestCa::new(), Shutdown::new());
    let settings = settings(&authority, "127.0.0.1:1".parse().unwrap(), ServerTrust::Ca(authority.ca()));
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let settings = Settings { listen: address.parse().unwrap(), ..settings.clone() };
        assert!(matches!(agent::start(settings, &shutdown).await, Err(agent::Error::NotLoopback(_))), "{address}");
    }
}

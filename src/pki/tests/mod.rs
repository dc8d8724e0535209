//! Tests of the state directory, the operator's pair, and handshakes with the certificates.

mod authority;
mod crash;
mod damage;
mod managed;
mod provided;
mod rotation;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, ServerName};
use time::OffsetDateTime;

use super::loaded::LoadedIdentity;
use super::managed::Managed;
use super::{Error, ServerIdentity, SubjectName};
use crate::error_chain::error_chain;

/// A path for a state directory that does not exist yet, in a temporary directory.
struct Home {
    _temporary: tempfile::TempDir,
    state: PathBuf,
}

fn create_home() -> Home {
    let temporary = tempfile::tempdir().unwrap();
    let state = temporary.path().join("state");
    Home { _temporary: temporary, state }
}

fn names(text: &str) -> BTreeSet<SubjectName> {
    text.split_whitespace().map(|name| name.parse().unwrap()).collect()
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// Returns the certificate that the next start of a sidecar serves.
fn load_at_start(state: &Path, wanted: &str) -> Result<LoadedIdentity, Error> {
    Managed::open(state, now())?.load(&names(wanted), now())
}

/// Returns the files in the directory with their contents, except those whose names begin with a
/// dot.
fn read_files(state: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = state.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries
        .filter(|name| !name.starts_with('.'))
        .map(|name| (name.clone(), std::fs::read(state.join(&name)).unwrap_or_default()))
        .collect()
}

/// Performs a handshake in memory, with a client that trusts `ca` and connects to `name`.
fn handshake(identity: &ServerIdentity, ca: &CertificateDer<'static>, name: &str) -> Result<(), rustls::Error> {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from((*identity.certified_key).clone())));
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from(name.to_owned()).unwrap())?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    server.writer().write_all(b"hello").unwrap();
    let mut wire = Vec::new();
    server.write_tls(&mut wire).unwrap();
    client.read_tls(&mut wire.as_slice()).unwrap();
    client.process_new_packets()?;
    let mut received = [0; 5];
    client.reader().read_exact(&mut received).unwrap();
    assert_eq!(&received, b"hello");
    Ok(())
}

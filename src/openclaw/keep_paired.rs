//! Keeps the gateway's own device paired with the gateway, so that its sub-agents and tools may use
//! every scope.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::device::Device;
use super::{approve, device, files, pair, ready};
use crate::backoff::Backoff;
use crate::error_chain::error_chain;
use crate::secret::Secret;

/// The task that keeps the gateway's own device paired.
#[derive(Clone, Debug)]
pub struct KeepPaired {
    /// The gateway's address.
    pub gateway: SocketAddr,
    /// The gateway's state directory.
    pub state_dir: PathBuf,
    /// The file with the gateway's token.
    pub token_file: Option<PathBuf>,
}

/// The interval at which the identity is read again. After an operator deletes the gateway's state,
/// the identity is a new one.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The time to wait for the gateway before logging that it does not answer.
const READY_TIMEOUT: Duration = Duration::from_secs(300);

/// Why the device could not be paired this time.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the gateway is not ready")]
    Gateway(#[from] ready::Error),
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error("can't read the gateway's token from {path}")]
    Token { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Pair(#[from] pair::Error),
}

impl KeepPaired {
    /// Pairs the device, and again whenever the gateway has lost the pairing or the device is a new
    /// one. Returns only if this version of the gateway needs no pre-pairing.
    pub async fn keep_paired(self) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let (mut paired_device, mut logged_failure) = (None, None);
        loop {
            match self.pair_if_needed(paired_device.as_deref()).await {
                Ok(PairingOutcome::NotNeeded) => {
                    return debug!("this version of the gateway needs no pairing in advance");
                }
                Ok(PairingOutcome::Waiting) => {
                    backoff.reset();
                    sleep(POLL_INTERVAL).await;
                }
                Ok(PairingOutcome::Paired(device)) => {
                    info!(device, "the gateway's own device is paired for every scope");
                    let again = paired_device.as_ref() == Some(&device);
                    (paired_device, logged_failure) = (Some(device), None);
                    if again {
                        sleep(backoff.next_pause()).await;
                    }
                }
                Err(error) => {
                    let failure = error_chain(&error);
                    if logged_failure.as_ref() != Some(&failure) {
                        warn!(
                            error = failure,
                            "the gateway's own device is not paired, so its sub-agents may be refused; trying again"
                        );
                    }
                    logged_failure = Some(failure);
                    sleep(backoff.next_pause()).await;
                }
            }
        }
    }

    /// Pairs the device unless it is the one with the id `paired_device` and has all scopes.
    async fn pair_if_needed(&self, paired_device: Option<&str>) -> Result<PairingOutcome, Error> {
        if paired_device.is_some()
            && paired_device == self.read_identity(false).await?.map(|device| device.id()).as_deref()
        {
            if !self.has_lost_scopes().await {
                return Ok(PairingOutcome::Waiting);
            }
            warn!("the gateway has recorded fewer scopes for its own device than it granted; pairing it again");
        }
        if !ready::wait_until_ready(self.gateway, READY_TIMEOUT).await?.needs_prepairing {
            return Ok(PairingOutcome::NotNeeded);
        }
        let Some(device) = self.read_identity(true).await? else { return Ok(PairingOutcome::Waiting) };
        Ok(PairingOutcome::Paired(
            approve::pair_and_approve(self.gateway, &device, self.read_token().await?.as_ref()).await?.device,
        ))
    }

    /// Reads the gateway's identity, or creates it if `may_create` is true; see
    /// [`read_or_create_identity`].
    async fn read_identity(&self, may_create: bool) -> Result<Option<Device>, Error> {
        let state_dir = self.state_dir.clone();
        let identity = tokio::task::spawn_blocking(move || read_or_create_identity(&state_dir, may_create)).await;
        Ok(identity.expect("reading a file does not panic")?)
    }

    /// Returns whether the gateway's record of its device has fewer scopes than it was paired for.
    /// False if the record can't be read.
    ///
    /// OpenClaw 2026.2.19 reads, changes and writes this record for each request, without a lock.
    /// So the gateway's own request for one scope at the same moment overwrites the record.
    async fn has_lost_scopes(&self) -> bool {
        let state_dir = self.state_dir.clone();
        let recorded = tokio::task::spawn_blocking(move || files::gateway_device_scopes(&state_dir)).await;
        let recorded = recorded.expect("reading a file does not panic");
        recorded.is_some_and(|recorded| !pair::SCOPES.iter().all(|scope| recorded.iter().any(|has| has == scope)))
    }

    /// Returns the gateway's token from the environment or `token_file`, else from the gateway's
    /// configuration.
    async fn read_token(&self) -> Result<Option<Secret>, Error> {
        let (file, config) = (self.token_file.clone(), self.state_dir.join("openclaw.json"));
        let read = tokio::task::spawn_blocking(move || match Secret::read_gateway_token(file.as_deref())? {
            None => Ok(files::read_config(&config).ok().as_ref().and_then(files::configured_token)),
            token => Ok(token),
        });
        let read = read.await.map_err(io::Error::other).and_then(|read| read);
        read.map_err(|source| Error::Token { path: self.token_file.clone().unwrap_or_default(), source })
    }
}

enum PairingOutcome {
    /// There is no identity yet, or the device is paired already.
    Waiting,
    /// This version of the gateway needs no pre-pairing.
    NotNeeded,
    /// The device with this id is paired now.
    Paired(String),
}

/// Reads the gateway's identity, or creates it if `may_create` is true; `None` if there is none and
/// none was created. Blocks.
///
/// A new state directory has no identity, and the gateway would pair the one that it creates only
/// for the scopes of its first request. So the identity is created here, but only if this user owns
/// the directory: the gateway could not read a file of another owner.
fn read_or_create_identity(state_dir: &Path, may_create: bool) -> Result<Option<Device>, device::Error> {
    let path = state_dir.join("identity/device.json");
    if path.exists() {
        return Device::read(&path).map(Some);
    }
    let is_owned = |metadata: std::fs::Metadata| metadata.uid() == nix::unistd::geteuid().as_raw();
    let may_create = may_create && std::fs::metadata(state_dir).is_ok_and(is_owned);
    // A read-only directory is not an error: the gateway will create its identity later.
    Ok(may_create.then(|| Device::create(&path).ok()).flatten())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;
    use crate::openclaw::pair::tests::gateway_with_answers;
    use crate::shutdown::Shutdown;

    #[tokio::test]
    async fn the_gateways_device_is_paired_once() {
        let shutdown = Shutdown::new();
        let state_dir = tempfile::tempdir().unwrap();
        let hello = json!({"ok": true, "payload": {"type": "hello-ok"}});
        let gateway = gateway_with_answers(vec![hello], &shutdown).await;
        let keep = KeepPaired { gateway, state_dir: state_dir.path().to_owned(), token_file: None };
        let PairingOutcome::Paired(device) = keep.pair_if_needed(None).await.unwrap() else { panic!("not paired") };
        assert_eq!(Device::read(&state_dir.path().join("identity/device.json")).unwrap().id(), device);
        assert!(matches!(keep.pair_if_needed(Some(&device)).await, Ok(PairingOutcome::Waiting)));
    }

    #[tokio::test]
    async fn a_device_whose_scopes_the_gateway_has_overwritten_is_paired_again() {
        let shutdown = Shutdown::new();
        let state_dir = tempfile::tempdir().unwrap();
        let hello = json!({"ok": true, "payload": {"type": "hello-ok"}});
        let gateway = gateway_with_answers(vec![hello.clone(), hello], &shutdown).await;
        let keep = KeepPaired { gateway, state_dir: state_dir.path().to_owned(), token_file: None };
        let PairingOutcome::Paired(device) = keep.pair_if_needed(None).await.unwrap() else { panic!("not paired") };
        std::fs::create_dir(state_dir.path().join("devices")).unwrap();
        let record = |scopes: &[&str]| {
            let record = json!({ device.as_str(): {"scopes": scopes} }).to_string();
            std::fs::write(state_dir.path().join("devices/paired.json"), record).unwrap();
        };
        record(&pair::SCOPES);
        assert!(matches!(keep.pair_if_needed(Some(&device)).await, Ok(PairingOutcome::Waiting)));
        record(&["operator.admin"]);
        let PairingOutcome::Paired(again) = keep.pair_if_needed(Some(&device)).await.unwrap() else {
            panic!("not paired")
        };
        assert_eq!(again, device);
    }

    #[tokio::test]
    async fn a_gateway_that_needs_no_pairing_in_advance_gets_none() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let shutdown = Shutdown::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = listener.local_addr().unwrap();
        shutdown.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"ok\":true}").await.unwrap();
        });
        let state_dir = tempfile::tempdir().unwrap();
        let keep =
            KeepPaired { gateway, state_dir: state_dir.path().to_owned(), token_file: Some("/does/not/exist".into()) };
        timeout(Duration::from_secs(20), keep.keep_paired()).await.unwrap();
    }
}

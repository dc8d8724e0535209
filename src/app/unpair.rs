//! Removes the pairing of agents' devices at the gateway after their containers or pods were
//! removed (`agents.unpair`).

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::discovery::View;
use crate::discovery::docker;
use crate::discovery::docker::engine::Engine;
use crate::discovery::kubernetes::api::Api;
use crate::error_chain::error_chain;
use crate::openclaw::devices::Devices;
use crate::openclaw::{pair, unpair};
use crate::secret::Secret;

/// The shortest and the longest pause between two checks of the containers. The pauses start again
/// at the shortest when the agents change, because a container usually stops shortly before it is
/// removed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The source that knows whether a container or a pod was removed.
pub(super) enum Workloads {
    Docker(Engine),
    Kubernetes(Api),
}

impl Workloads {
    /// Returns the containers or pods of `ids` that were removed. If the source can't be asked,
    /// none counts as removed.
    async fn find_removed(&self, ids: BTreeSet<String>) -> BTreeSet<String> {
        let mut removed = BTreeSet::new();
        match self {
            Self::Docker(engine) => {
                for id in ids {
                    if is_removed(engine, &id).await {
                        removed.insert(id);
                    }
                }
            }
            Self::Kubernetes(_) if ids.is_empty() => {}
            // `list_uids` lists the pods with the agent's label. A pod that has lost the label
            // counts as removed: it is no agent any more.
            Self::Kubernetes(api) => match api.list_uids().await {
                Ok(present) => removed = ids.difference(&present).cloned().collect(),
                Err(error) => debug!(error = error_chain(&error), "can't find out which pods are removed"),
            },
        }
        removed
    }
}

/// Returns whether the engine says that `container` does not exist, not even as a stopped one.
/// Returns `false` if the engine can't be asked.
async fn is_removed(engine: &Engine, container: &str) -> bool {
    match engine.inspect_container(container).await {
        Err(docker::Error::NotFound { .. }) => true,
        Err(error) => {
            debug!(container, error = error_chain(&error), "can't find out whether the container is removed");
            false
        }
        Ok(_) => false,
    }
}

/// The task that removes pairings.
pub(super) struct UnpairRemoved {
    pub(super) workloads: Workloads,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) devices: Arc<Devices>,
    pub(super) gateway: SocketAddr,
    pub(super) token_file: Option<PathBuf>,
}

/// Why the pairings could not be removed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("can't read the gateway's token")]
    Token(#[source] io::Error),
    #[error(transparent)]
    Gateway(#[from] pair::Error),
    #[error("can't remove the containers that are gone from devices.json")]
    Devices(#[source] io::Error),
}

impl UnpairRemoved {
    /// Removes pairings until discovery ends. Failures are logged and tried again.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut logged = None;
        loop {
            match self.unpair_removed().await {
                Ok(()) => logged = None,
                Err(error) => {
                    let failure = error_chain(&error);
                    if logged.as_ref() != Some(&failure) {
                        warn!(error = failure, "can't unpair the devices of removed containers; trying again");
                    }
                    logged = Some(failure);
                }
            }
            // The pause collects changes, which come in bursts.
            sleep(FIRST_PAUSE).await;
            match timeout(backoff.next_pause(), self.view.changed()).await {
                Ok(Ok(())) => backoff.reset(),
                Ok(Err(_)) => return,
                Err(_) => {}
            }
        }
    }

    /// Removes the gateway's pairing of each device whose containers are all removed, and then
    /// forgets the removed containers. Does nothing while the source of agents is not live, since a
    /// container that is not listed may still run.
    async fn unpair_removed(&self) -> Result<(), Error> {
        let devices = Arc::clone(&self.devices);
        let used = spawn_blocking(move || devices.devices_with_containers()).await.unwrap_or_default();
        let running: BTreeSet<String> = {
            let view = self.view.borrow();
            if !view.source_state.is_live() {
                return Ok(());
            }
            view.agents.values().map(|agent| agent.id.clone()).collect()
        };
        let containers = used.iter().flat_map(|(_, containers)| containers);
        let gone = self.workloads.find_removed(containers.filter(|id| !running.contains(*id)).cloned().collect()).await;
        if gone.is_empty() {
            return Ok(());
        }
        let unused = unused_devices(&used, &gone);
        if !unused.is_empty() {
            let token_file = self.token_file.clone();
            let token = spawn_blocking(move || Secret::read_gateway_token(token_file.as_deref())).await;
            let token = token.map_err(io::Error::other).and_then(|token| token).map_err(Error::Token)?;
            unpair::unpair(self.gateway, &unused, token.as_ref()).await?;
        }
        let devices = Arc::clone(&self.devices);
        let forgotten = spawn_blocking(move || devices.forget_containers(&gone)).await;
        forgotten.map_err(io::Error::other).and_then(|forgotten| forgotten).map_err(Error::Devices)
    }
}

/// Returns the devices of `used` whose containers are all `gone`.
fn unused_devices(used: &[(String, Vec<String>)], gone: &BTreeSet<String>) -> Vec<String> {
    let all_gone = |containers: &[String]| containers.iter().all(|container| gone.contains(container));
    used.iter().filter(|(_, containers)| all_gone(containers)).map(|(device, _)| device.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kubernetes;
    use loopgate_test_support::fake_kubernetes::{FakeKubernetes, pod};

    #[tokio::test]
    async fn a_pod_is_removed_when_the_api_server_does_not_list_it_whatever_its_state() {
        let mut kubernetes = FakeKubernetes::start();
        let uid = |name: &str| format!("uid-of-{name}");
        for name in ["runs", "ends", "other"] {
            kubernetes.put_pod(pod(name, Some("true"), &["198.51.100.7"]));
        }
        kubernetes.put_pod(pod("without-address", Some("true"), &[]));
        kubernetes.set_page_size(1);
        let config = Kubernetes {
            api: Some(kubernetes.address()),
            credentials: kubernetes.credentials(),
            ..crate::config::Config::default().kubernetes
        };
        let workloads = Workloads::Kubernetes(Api::new(&config));
        let ids: BTreeSet<String> = ["runs", "ends", "without-address", "never"].map(uid).into();
        assert_eq!(workloads.find_removed(ids.clone()).await, [uid("never")].into());
        kubernetes.delete_pod("ends");
        assert_eq!(workloads.find_removed(ids.clone()).await, ["ends", "never"].map(uid).into());
        kubernetes.stop().await;
        assert_eq!(workloads.find_removed(ids).await, BTreeSet::new());
    }

    #[test]
    fn a_device_is_unused_when_all_its_containers_are_gone() {
        let of = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let used = [("a".to_owned(), of(&["1"])), ("b".to_owned(), of(&["1", "2"])), ("c".to_owned(), of(&["3"]))];
        for (gone, expected) in
            [(vec![], vec![]), (vec!["1"], vec!["a"]), (vec!["2"], vec![]), (vec!["1", "2", "3"], vec!["a", "b", "c"])]
        {
            let gone: BTreeSet<String> = gone.into_iter().map(str::to_owned).collect();
            assert_eq!(unused_devices(&used, &gone), of(&expected), "{gone:?}");
        }
    }
}

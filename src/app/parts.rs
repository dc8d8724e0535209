//! Functions that create parts of the sidecar from its configuration, or start them in the
//! background.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::warn;

use super::error::Error;
use super::unpair::{UnpairRemoved, Workloads};
use crate::config::{AgentSourceKind, BindDevices, Config, OwnAddresses};
use crate::discovery::docker::engine::Engine;
use crate::discovery::kubernetes::api::Api;
use crate::discovery::{self, View};
use crate::enrolment::{DockerProofs, Enrolment};
use crate::openclaw::devices::Devices;
use crate::openclaw::files::{self, UnreadableFile};
use crate::openclaw::keep_paired::KeepPaired;
use crate::pki::{self, Pki};
use crate::proxy::Enrol;
use crate::shutdown::Shutdown;
use crate::tls::{self, ClientAuthorities};

/// Logs a warning for each configured file of the gateway that can't be read yet.
pub(super) fn warn_of_unreadable_files(config: &Config) {
    for UnreadableFile { key, path, error } in files::find_unreadable_files(&config.gateway) {
        warn!(key, path = %path.display(), error, "a configured gateway file can't be read yet");
    }
}

/// Warns if outside clients may be on the agent lane, because they arrive from addresses of this
/// namespace.
pub(super) fn warn_of_shared_own_addresses(config: &Config) {
    if config.listen.own_addresses == OwnAddresses::Agent && discovery::is_in_user_namespace() {
        warn!(
            "listen.own_addresses is agent in a user namespace, as on a rootless engine. Such an engine gives outside \
             clients an address of this namespace, so they become agents; set listen.own_addresses to external"
        );
    }
}

/// Verifies that `tls.client_ca` can be used. This happens before loopgate creates its own CA, so
/// that a wrong path does not leave files behind. The path of loopgate's own CA is not read:
/// opening that CA verifies it.
pub(super) fn verify_client_ca(config: &Config) -> Result<(), Error> {
    let foreign = config.tls.client_ca.as_deref().filter(|file| !pki::is_ca_certificate_file(file, &config.state_dir));
    ClientAuthorities::new(None, foreign, Arc::default()).map_err(tls::Error::from)?;
    Ok(())
}

/// Opens the list of devices that agents have used. Returns `None` if `agents.bind_devices` is off.
pub(super) fn open_devices(config: &Config) -> Result<Option<Arc<Devices>>, Error> {
    if config.agents.bind_devices == BindDevices::Off {
        return Ok(None);
    }
    match Devices::open(&config.state_dir, config.gateway.state_dir.as_deref()) {
        Ok(devices) => Ok(Some(Arc::new(devices))),
        Err(source) => Err(Error::Io { doing: "reading devices.json in the state directory", source }),
    }
}

/// Returns the function with which the proxy serves a connection of an agent that enrols.
pub(super) fn serve_enrolments(enrolment: Enrolment) -> Enrol {
    let enrolment = Arc::new(enrolment);
    Box::new(move |stream, peer| {
        let enrolment = Arc::clone(&enrolment);
        Box::pin(async move { enrolment.serve(stream, peer).await })
    })
}

/// Starts a task that keeps the gateway's own device paired, if `gateway.state_dir` is set.
pub(super) fn start_keeping_paired(config: &Config, shutdown: &Shutdown) {
    let Some(state_dir) = config.gateway.state_dir.clone() else { return };
    let (gateway, token_file) = (config.gateway.address, config.gateway.token_file.clone());
    shutdown.spawn_until_begun(KeepPaired { gateway, state_dir, token_file }.keep_paired());
}

/// Starts a task that removes the pairing of devices whose containers or pods were removed, if
/// `agents.unpair` is set.
pub(super) fn start_unpairing_removed(
    config: &Config,
    engine: Option<Engine>,
    devices: Option<Arc<Devices>>,
    view: watch::Receiver<Arc<View>>,
    shutdown: &Shutdown,
) {
    let (true, Some(devices)) = (config.agents.unpair, devices) else { return };
    let workloads = match (config.discovery, engine) {
        (AgentSourceKind::Kubernetes, _) => Workloads::Kubernetes(Api::new(&config.kubernetes)),
        (AgentSourceKind::Docker, Some(engine)) => Workloads::Docker(engine),
        (AgentSourceKind::Docker, None) => return,
    };
    let (gateway, token_file) = (config.gateway.address, config.gateway.token_file.clone());
    let unpair = UnpairRemoved { workloads, view, devices, gateway, token_file };
    shutdown.spawn_until_begun(unpair.run());
}

/// Creates the enrolment service. The service refuses every agent, with the reason, if there is no
/// CA, or no access to Docker or Kubernetes.
pub(super) fn create_enrolment(
    config: &Config,
    pki: &Pki,
    view: watch::Receiver<Arc<View>>,
    engine: Option<Engine>,
) -> Enrolment {
    let enrolment = Enrolment::new(config, view, pki.authority(), engine.map(DockerProofs::new));
    match config.discovery {
        AgentSourceKind::Docker => enrolment,
        AgentSourceKind::Kubernetes => enrolment.with_token_reviewer(Api::new(&config.kubernetes)),
    }
}

//! Checks the `connect` message of a WebSocket: the scopes that it asks for, and the device that
//! signed it.

use std::future::ready;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::HeaderValue;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::addr::PeerAddr;
use crate::config::BindDevices;
use crate::labels::LaneKind;
use crate::lane::{AgentBasis, AgentLane, GatewayHead, Lane, allowed_scopes};
use crate::openclaw::connect_request::{ConnectRequest, ParsedMessage};
use crate::openclaw::devices::{DeviceRefusal, DeviceUser, Devices, ProvisionalBinding};
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::tunnel::connect_response::{ConnectResponseWatcher, PendingConnect};
use crate::proxy::tunnel::first_message::{Checked, FirstMessage};

/// Returns the check of the first message of the WebSocket that `head` asks for, and the watcher of
/// the gateway's response; `None` if neither a scope cap nor devices must be checked.
pub fn build_connect_check(
    context: &ConnectionContext,
    head: &GatewayHead,
) -> Option<(FirstMessage, ConnectResponseWatcher)> {
    let cap = head.scope_cap().cloned();
    // Only the gateway pairs devices, not the target of a port forward.
    let devices = context.shared.devices.clone().filter(|_| context.target.is_gateway());
    let pending = Arc::new(PendingConnect::default());
    let response = ConnectResponseWatcher::new(Arc::clone(&pending));
    let owner = match &*context.lane {
        Lane::Agent(lane) if head.lane() == LaneKind::Agent => DeviceOwner::of_agent(lane),
        _ => DeviceOwner::External,
    };
    let (connection, peer, lane) = (context.number, context.peer, head.lane().label());
    let device_check = devices.and_then(|(devices, mode)| {
        let agent = match owner {
            DeviceOwner::Agent(agent) => Some(agent),
            DeviceOwner::External => None,
            DeviceOwner::Host => return None,
        };
        let may_learn = agent.is_some() || !matches!(&*context.lane, Lane::Agent(_));
        Some(DeviceCheck { devices, mode, agent, may_learn, connection, peer, lane })
    });
    if cap.is_none() && device_check.is_none() {
        return None;
    }
    // Without a cap, a first message that is no JSON object may pass: it can't be a `connect`.
    let objects_only = cap.is_none();
    let check = move |message: &[u8]| {
        let request = ParsedMessage::parse(message);
        let checked = cap.as_ref().map_or(Ok(()), |cap| check_scope_cap(&request, cap)).and_then(|()| {
            match (request, device_check) {
                (ParsedMessage::Connect(request), Some(check)) => {
                    check.check_and_bind(request, &pending).map(Checked::Connect)
                }
                (ParsedMessage::Connect(request), None) => {
                    pending.expect_answer(&request.id, |_| {});
                    Ok(Checked::Connect(Box::pin(ready(()))))
                }
                (ParsedMessage::Malformed, _) => Err("loopgate: malformed connect".into()),
                (ParsedMessage::Other, _) => Ok(Checked::Other),
            }
        });
        checked
            .inspect_err(|reason| info!(connection, %peer, lane, reason, "WebSocket refused"))
            .unwrap_or_else(Checked::Refused)
    };
    Some((FirstMessage::new(objects_only, Arc::clone(&context.shared.first_message_budget), Box::new(check)), response))
}

/// The owner of the devices that connect over a WebSocket.
enum DeviceOwner {
    /// An agent, to which its devices are bound.
    Agent(DeviceUser),
    /// A process in the gateway's network namespace. Its devices are bound to no agent.
    Host,
    /// A client of the external lane.
    External,
}

impl DeviceOwner {
    /// Returns the owner of the devices that an agent on `lane` uses.
    fn of_agent(lane: &AgentLane) -> Self {
        let (name, container) = match &lane.basis {
            AgentBasis::Address(agent) | AgentBasis::Attested(agent) => (agent.name.clone(), Some(agent.id.clone())),
            AgentBasis::Certificate(uri) => (uri.clone(), None),
            AgentBasis::Cidr => (lane.as_external.client.to_string(), None),
            AgentBasis::OwnAddress => return Self::Host,
        };
        Self::Agent(DeviceUser { name, container })
    }
}

/// Checks devices against the lanes that they are bound to.
struct DeviceCheck {
    devices: Arc<Devices>,
    mode: BindDevices,
    /// The agent; `None` on the external lane.
    agent: Option<DeviceUser>,
    /// Whether an accepted device is remembered as external: not if a web page caused the request
    /// on an agent's connection.
    may_learn: bool,
    /// The connection's number, for the log.
    connection: u64,
    peer: PeerAddr,
    /// The label of the request's lane.
    lane: &'static str,
}

impl DeviceCheck {
    /// Checks the device of `request`. On the agent lane, the device is bound when the future
    /// completes, and released if the gateway refuses the request. On the external lane, it is
    /// remembered when the gateway accepts the request, if `may_learn`. With
    /// [`BindDevices::Report`], a device that would be refused is only logged, and passes.
    ///
    /// # Errors
    /// The reason of the refusal, for the close frame.
    fn check_and_bind(
        self,
        request: ConnectRequest,
        pending: &PendingConnect,
    ) -> Result<BoxFuture<'static, ()>, String> {
        let Self { devices, mode, agent, may_learn, connection, peer, lane } = self;
        let has_matching_id = request.has_matching_id();
        let Some(device) = request.device else {
            pending.expect_answer(&request.id, |_| {});
            return Ok(Box::pin(ready(())));
        };
        let checked = if agent.is_some() && !has_matching_id {
            Err(DeviceRefusal::Mismatch)
        } else {
            devices.check_may_connect(&device, agent.as_ref().map(|agent| agent.name.as_str()))
        };
        match checked {
            Ok(()) => {}
            Err(refusal) if mode == BindDevices::Report => {
                warn!(
                    connection, %peer, lane, device, %refusal,
                    "this device would be refused if agents.bind_devices were on"
                );
                pending.expect_answer(&request.id, |_| {});
                return Ok(Box::pin(ready(())));
            }
            Err(refusal) => return Err(format!("loopgate: {refusal}")),
        }
        let Some(agent) = agent else {
            pending.expect_answer(&request.id, move |accepted| {
                if accepted && may_learn {
                    spawn_blocking(move || devices.remember_external(&device));
                }
            });
            return Ok(Box::pin(ready(())));
        };
        let (binding_sender, binding) = oneshot::channel();
        pending.expect_answer(&request.id, move |accepted| {
            if !accepted {
                spawn_blocking(move || binding.blocking_recv().ok().flatten().map(ProvisionalBinding::remove));
            }
        });
        Ok(Box::pin(async move {
            let binding = spawn_blocking(move || devices.bind_provisionally(&device, &agent)).await;
            // If the watcher of the response is gone, the device stays bound.
            let _ = binding_sender.send(binding.ok().flatten());
        }))
    }
}

/// Refuses a first message that asks for scopes beyond `cap`, or that is not a well-formed
/// `connect`.
///
/// # Errors
/// The reason of the refusal, for the close frame.
fn check_scope_cap(message: &ParsedMessage, cap: &HeaderValue) -> Result<(), String> {
    let ParsedMessage::Connect(request) = message else {
        return Err("loopgate: with a scope cap the first message must be a well-formed connect".into());
    };
    let exceeding = request.scopes.iter().find(|scope| allowed_scopes(cap).all(|allowed| allowed != *scope));
    exceeding.map_or(Ok(()), |scope| {
        let cap = cap.to_str().unwrap_or_default();
        Err(format!("loopgate: {scope} exceeds this client's scope cap ({cap})"))
    })
}

//! Checks the `connect` of a WebSocket: the scopes that it asks for, and the device that it is signed by.

use std::sync::Arc;

use http::HeaderValue;
use tracing::{info, warn};

use crate::config::BindDevices;
use crate::labels::LaneKind;
use crate::lane::{AdmittedBy, AgentLane, GatewayHead, Lane, allowed_scopes};
use crate::openclaw::connect_request::{ConnectRequest, FirstMessage as Request};
use crate::openclaw::devices::Devices;
use crate::proxy::session::Session;
use crate::proxy::tunnel::connect_response::{ConnectResponse, PendingConnect};
use crate::proxy::tunnel::first_message::FirstMessage;

/// Returns what checks the first message of the WebSocket that `head` asks for, and what waits for its response; `None` if there is
/// neither a cap nor a device to look at.
pub fn connect_check(session: &Session, head: &GatewayHead) -> Option<(FirstMessage, ConnectResponse)> {
    let cap = head.scope_cap().cloned();
    let devices = session.shared.devices.clone();
    if cap.is_none() && devices.is_none() {
        return None;
    }
    let pending = Arc::new(PendingConnect::default());
    let response = ConnectResponse::new(Arc::clone(&pending));
    let agent = match &*session.lane {
        Lane::Agent(lane) if head.lane() == LaneKind::Agent => Some(agent_name(lane)),
        _ => None,
    };
    // A process of the gateway's own network namespace is the gateway's host, whose devices are not an agent's.
    let device_check = devices.filter(|_| agent != Some(None)).map(|(devices, mode)| DeviceCheck { devices, mode, agent: agent.flatten() });
    let (connection, peer) = (session.number, session.peer);
    let objects_only = cap.is_none();
    let check = move |message: &[u8]| {
        let request = Request::read(message);
        let checked = cap.as_ref().map_or(Ok(()), |cap| within_cap(&request, cap)).and_then(|()| match (request, device_check) {
            (Request::Connect(request), Some(check)) => check.check(request, &pending),
            (Request::Malformed, Some(_)) => Err("loopgate: malformed connect".into()),
            _ => Ok(()),
        });
        checked.inspect_err(|reason| info!(connection, %peer, reason, "WebSocket refused"))
    };
    Some((FirstMessage::new(objects_only, Box::new(check)), response))
}

/// The name that an agent's devices are bound to; `None` for a process of the gateway's own network namespace.
fn agent_name(lane: &AgentLane) -> Option<String> {
    match &lane.admitted {
        AdmittedBy::Address(agent) | AdmittedBy::Attested(agent) => Some(agent.name.clone()),
        AdmittedBy::Certificate(uri) => Some(uri.clone()),
        AdmittedBy::Network => Some(lane.as_external.client.to_string()),
        AdmittedBy::OwnAddress => None,
    }
}

/// Checks devices against the lanes that they are bound to.
struct DeviceCheck {
    devices: Arc<Devices>,
    mode: BindDevices,
    /// The agent's name; `None` on the external lane.
    agent: Option<String>,
}

impl DeviceCheck {
    /// Checks the device of `request`, and remembers it once the gateway accepts the request.
    fn check(self, request: ConnectRequest, pending: &PendingConnect) -> Result<(), String> {
        let Self { devices, mode, agent } = self;
        let Some(device) = request.device else { return Ok(()) };
        match devices.check(&device, agent.as_deref()) {
            Ok(()) => {}
            Err(refusal) if mode == BindDevices::Report => {
                warn!(device, %refusal, "a device would be refused (agents.bind_devices is report)");
                return Ok(());
            }
            Err(refusal) => return Err(format!("loopgate: {refusal}")),
        }
        pending.set(&request.id, move || drop(tokio::task::spawn_blocking(move || devices.remember(&device, agent.as_deref()))));
        Ok(())
    }
}

/// Refuses a first message that asks for more than `cap`, or that the gateway may read differently.
fn within_cap(message: &Request, cap: &HeaderValue) -> Result<(), String> {
    let Request::Connect(request) = message else {
        return Err("loopgate: with a scope cap the first message must be a well-formed connect".into());
    };
    let exceeding = request.scopes.iter().find(|scope| allowed_scopes(cap).all(|allowed| allowed != *scope));
    exceeding.map_or(Ok(()), |scope| {
        let cap = cap.to_str().unwrap_or_default();
        Err(format!("loopgate: {scope} exceeds this client's scope cap ({cap})"))
    })
}

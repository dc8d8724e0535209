//! Approves the pending request of a device by means of a second device.
//!
//! OpenClaw 2026.2.19 pairs a local device silently only for the scopes of its first request. If
//! the gateway's own device asked for too few scopes, that device can't get more: more scopes need
//! an approval, and no paired device has `operator.pairing`. But a new local device is paired
//! silently for all scopes that it asks for, and may then approve the request.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tracing::info;

use super::device::Device;
use super::files;
use super::pair::{self, Error, Paired};
use super::unpair::TemporaryDevice;
use crate::secret::Secret;

/// The maximum number of approvals of a device. 2026.2.19 does not update a pending request, so the
/// first approval may be for fewer scopes than loopgate asks for.
const MAX_APPROVALS: usize = 3;

/// Pairs `device` like [`pair::pair`]. If the device needs an approval, a temporary second device
/// approves it, up to `MAX_APPROVALS` times.
///
/// # Errors
/// The gateway does not accept the device with all scopes, or the second device can't approve it.
pub async fn pair_and_approve(address: SocketAddr, device: &Device, token: Option<&Secret>) -> Result<Paired, Error> {
    for _ in 0..MAX_APPROVALS {
        match pair::pair(address, device, token).await {
            Err(needed @ Error::NeedsApproval { .. }) => {
                // If this fails, the gateway regards loopgate as a remote client, and a human has
                // to approve.
                let Ok(()) = approve_pending(address, &device.id(), token).await else { return Err(needed) };
            }
            paired => return paired,
        }
    }
    pair::pair(address, device, token).await
}

/// Approves the pending requests of the device `id` that loopgate could have made, and no others,
/// by a temporary device that is unpaired afterwards.
async fn approve_pending(address: SocketAddr, id: &str, token: Option<&Secret>) -> Result<(), Error> {
    let mut approver = TemporaryDevice::connect(address, token).await?;
    let approved = async {
        let connection = &mut approver.connection;
        let listed = connection.call_method("device.pair.list", json!({})).await?;
        let pending = listed["pending"].as_array().into_iter().flatten();
        let requests: Vec<_> =
            pending.filter(|request| request["deviceId"] == id && could_be_loopgates(request)).cloned().collect();
        for request in requests {
            connection.call_method("device.pair.approve", json!({ "requestId": request["requestId"] })).await?;
            info!(
                device = id, scopes = %request["scopes"],
                "approved the pending request of a device, by means of a temporary second device"
            );
        }
        Ok(())
    }
    .await;
    approver.unpair().await;
    approved
}

/// Returns whether [`pair::pair`] could have made a pending request. A human must judge other
/// requests with the same key, for example for the role of a node.
fn could_be_loopgates(request: &Value) -> bool {
    let has_only = |field: &str, allowed: &[&str]| {
        let mut values = request[field].as_array().into_iter().flatten();
        values.all(|value| value.as_str().is_some_and(|value| allowed.contains(&value)))
    };
    let role = &request["role"];
    (role.is_null() || role == "operator") && has_only("roles", &["operator"]) && has_only("scopes", &pair::SCOPES)
}

/// Returns what the operator can do about a device that needs an approval. `identity` is the file
/// of the device's identity. Blocks.
pub fn approval_advice(identity: &Path, request: Option<&str>) -> String {
    let state_dir = identity.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let pending = files::read_pending_request(state_dir);
    let scopes = pending.as_ref().map(|pending| format!(" for {}", pending.scopes.join(", "))).unwrap_or_default();
    let id = request.map(Into::into).or(pending.map(|pending| pending.id)).unwrap_or_else(|| "REQUEST".into());
    if files::is_state_dir_of_gateway(state_dir)
        && !files::gateway_device_scopes(state_dir)
            .is_some_and(|scopes| scopes.iter().any(|scope| scope == "operator.pairing"))
    {
        format!(
            "the gateway wants the device to be approved{scopes}, and the device can't approve itself. Approve it from \
             a new device beside the gateway: `OPENCLAW_STATE_DIR=/tmp/fresh openclaw devices approve {id}`, and pair \
             again, up to three times; or run `loopgate pair --approve`, which does the same"
        )
    } else {
        format!(
            "the gateway wants a human to approve the device{scopes}: run `openclaw devices approve {id}` beside it, \
             once"
        )
    }
}

#[cfg(test)]
pub(super) mod tests;

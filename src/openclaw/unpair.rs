//! Removes the pairing of devices at the gateway.
//!
//! The gateway's method `device.pair.remove` revokes the device's token and closes its connections.
//! A temporary device calls the method: as a local one it is paired silently.

use std::net::SocketAddr;

use serde_json::json;
use tracing::info;

use super::device::Device;
use super::pair::{self, Error, PairedConnection};
use crate::error_chain::error_chain;
use crate::secret::Secret;

/// A device that exists only for a few calls of the gateway, connected with all operator scopes.
pub(super) struct TemporaryDevice {
    id: String,
    /// The device's connection to the gateway.
    pub connection: PairedConnection,
}

impl TemporaryDevice {
    /// Creates a device and connects it to the gateway.
    ///
    /// # Errors
    /// The gateway does not pair the device silently, because it regards it as remote or refuses
    /// the token.
    pub async fn connect(address: SocketAddr, token: Option<&Secret>) -> Result<Self, Error> {
        let device = Device::generate().map_err(Error::Key)?;
        // All scopes are needed, since in later versions a device can approve or remove only scopes
        // that it has.
        Ok(Self { id: device.id(), connection: pair::connect(address, &device, token).await? })
    }

    /// Removes the pairing of this device. A failure is only logged.
    pub async fn unpair(mut self) {
        if let Err(error) = self.connection.call_method(REMOVE_METHOD, json!({ "deviceId": self.id })).await {
            info!(
                device = self.id,
                error = error_chain(&error),
                "can't unpair the temporary device; its key was never stored, so it can't be used"
            );
        }
    }
}

/// The gateway's method that removes a pairing.
const REMOVE_METHOD: &str = "device.pair.remove";

/// Removes the pairing of `devices` at the gateway at `address`, a loopback address of this network
/// namespace. Devices that the gateway does not know count as removed.
///
/// # Errors
/// No temporary device could connect, or a removal failed. Devices after that one stay paired.
pub async fn unpair(address: SocketAddr, devices: &[String], token: Option<&Secret>) -> Result<(), Error> {
    let mut remover = TemporaryDevice::connect(address, token).await?;
    let removed = async {
        for device in devices {
            match remover.connection.call_method(REMOVE_METHOD, json!({ "deviceId": device })).await {
                Ok(_) => info!(device, "removed the pairing of a device at the gateway"),
                Err(Error::CallRefused { message, .. }) if means_unknown_device(&message) => {
                    info!(device, "the device is not paired any more")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
    .await;
    remover.unpair().await;
    removed
}

/// Returns whether the gateway refuses a removal with `message` because it does not know the
/// device.
fn means_unknown_device(message: &str) -> bool {
    message.contains("unknown deviceId")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::openclaw::approve::tests::{FakeDevices, start_gateway};
    use crate::openclaw::pair::SCOPES;
    use crate::shutdown::Shutdown;

    #[tokio::test]
    async fn only_the_named_devices_are_removed_and_the_remover_too() {
        let shutdown = Shutdown::new();
        let paired = |id: &str| (id.to_owned(), SCOPES.map(str::to_owned).to_vec());
        let devices = Arc::new(Mutex::new(FakeDevices {
            paired: [paired("one"), paired("two"), paired("other")].into(),
            ..FakeDevices::default()
        }));
        let address = start_gateway(&devices, &shutdown).await;
        let named: Vec<String> = ["one", "gone", "two"].map(str::to_owned).into();
        unpair(address, &named, None).await.unwrap();
        assert_eq!(devices.lock().unwrap().paired.keys().collect::<Vec<_>>(), ["other"]);

        let mut remover = TemporaryDevice::connect(address, None).await.unwrap();
        let refusal = remover.connection.call_method(REMOVE_METHOD, json!({ "deviceId": "gone" })).await.unwrap_err();
        assert!(refusal.to_string().starts_with("the gateway refused the call of device.pair.remove: "), "{refusal}");
        remover.unpair().await;

        devices.lock().unwrap().remote = true;
        let error = unpair(address, &["other".to_owned()], None).await.unwrap_err();
        assert!(matches!(error, Error::NeedsApproval { .. }), "{error}");
        assert_eq!(devices.lock().unwrap().paired.len(), 1);
    }
}

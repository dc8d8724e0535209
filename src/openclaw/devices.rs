//! Binds devices to the lane on which they were first used, so that an agent's device can't be used
//! by external clients. Any agent may use a bound device.
//!
//! The gateway pairs an agent's device silently, and then accepts the device's token from any
//! address. So a device whose first user is an agent is bound to the agent lane. The binding is
//! made before the gateway gets the `connect`, since the gateway may pair the device without being
//! able to answer. It is removed only if the gateway refuses the `connect`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// The name of the file in the state directory.
pub const FILE: &str = "devices.json";
/// The maximum number of devices in the file, those of the external lane included.
const MAX_DEVICES: usize = 8192;
/// The maximum number of devices of one agent. Further ones are refused, since dropping an old
/// entry would unbind its device.
const MAX_PER_AGENT: usize = 1024;
/// The maximum size of the file, in bytes.
const MAX_FILE: u64 = 8 << 20;
/// The maximum number of containers in the entry of a device.
const MAX_CONTAINERS: usize = 16;
/// The maximum length of a device id, in bytes. OpenClaw's have 64 characters.
const MAX_ID: usize = 128;

/// The number of characters of a device id in messages.
const SHORT_ID_LENGTH: usize = 12;

/// What is recorded of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceEntry {
    /// The agent that used the device first, if the device is bound to the agent lane; `None` if it
    /// was first used on the external lane, or was released.
    pub agent: Option<String>,
    /// When the entry was made, in seconds since the Unix epoch.
    pub since: u64,
    /// The ids of the containers that used the device, of any agent, the last user at the end.
    /// Empty after the pairing was removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
}

impl DeviceEntry {
    /// Records that `container` uses the device, in place of the oldest user if there are
    /// [`MAX_CONTAINERS`]. Returns whether this changes the entry.
    fn add_container(&mut self, container: Option<&str>) -> bool {
        let Some(container) = container.filter(|container| self.containers.last().is_none_or(|last| last != container))
        else {
            return false;
        };
        self.containers.retain(|known| known != container);
        if self.containers.len() == MAX_CONTAINERS {
            self.containers.remove(0);
        }
        self.containers.push(container.to_owned());
        true
    }
}

/// An agent that uses a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceUser {
    /// The agent's name, which the entry of a new device states.
    pub name: String,
    /// The container's id, or the pod's uid; `None` for an agent that discovery does not know.
    pub container: Option<String>,
}

/// The recorded devices, by id.
pub type DeviceTable = BTreeMap<String, DeviceEntry>;

/// Why a device may not be used on a lane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceRefusal {
    /// A bound device was used on the external lane.
    #[error("this device is bound to agent {agent:?} (loopgate devices release {})", short_id(.device))]
    Bound {
        /// The device's id.
        device: String,
        /// The agent that used the device first.
        agent: String,
    },
    /// The device is new, and `MAX_PER_AGENT` devices are bound to the agent.
    #[error("this agent has too many devices; release one with loopgate devices release")]
    TooMany,
    /// The device is new, and the file has `MAX_DEVICES`.
    #[error("{FILE} is full; remove entries without an agent from it, in loopgate's state directory")]
    Full,
    /// The id is empty or too long, or has other characters than letters, digits, `-` and `_`.
    #[error("the device id is malformed")]
    Malformed,
    /// The id is not that of the request's public key, so it may be another client's.
    #[error("the device id does not belong to the public key")]
    Mismatch,
}

/// The devices of a running sidecar. `loopgate devices` changes the same file, which is read again
/// when it has changed.
#[derive(Debug)]
pub struct Devices {
    directory: PathBuf,
    /// The gateway's state directory, whose own device is never bound.
    gateway_state: Option<PathBuf>,
    state: Mutex<DevicesState>,
}

#[derive(Debug, Default)]
struct DevicesState {
    table: DeviceTable,
    stamp: Option<(u64, i64, i64, u64)>,
    /// Entries that were not written to the file yet, or could not be.
    unsaved: DeviceTable,
    /// Devices whose `connect` the gateway has not answered yet, with the number of connections
    /// that wait for the answer.
    provisional: BTreeMap<String, usize>,
    /// Devices that are being removed from the file. If one is bound again meanwhile, it is not
    /// removed.
    removing: BTreeSet<String>,
}

/// A binding that was made before the gateway answered the `connect`. It is kept if this value is
/// dropped, and removed by [`ProvisionalBinding::remove`].
#[derive(Debug)]
pub struct ProvisionalBinding {
    devices: Arc<Devices>,
    device: String,
    entry: DeviceEntry,
    /// Whether [`ProvisionalBinding::remove`] was called.
    is_resolved: bool,
}

impl Devices {
    /// Opens the devices in the state directory `directory`. `gateway_state` is the gateway's state
    /// directory. Blocks.
    ///
    /// # Errors
    /// The file can't be read. Continuing without it would unbind all devices.
    pub fn open(directory: &Path, gateway_state: Option<&Path>) -> io::Result<Self> {
        let state = DevicesState { stamp: file_stamp(directory), table: read(directory)?, ..DevicesState::default() };
        Ok(Self { directory: directory.into(), gateway_state: gateway_state.map(Into::into), state: Mutex::new(state) })
    }

    /// Reads the file again if it has changed. If it can't be read, or was deleted, the known
    /// devices are kept.
    fn refresh_if_changed(&self, known: &mut DevicesState) {
        let Some(stamp) = file_stamp(&self.directory) else { return };
        if known.stamp == Some(stamp) {
            return;
        }
        known.stamp = Some(stamp);
        match read(&self.directory) {
            Ok(table) => {
                known.table = table;
                for (device, entry) in &known.unsaved {
                    known.table.entry(device.clone()).or_insert_with(|| entry.clone());
                }
            }
            Err(error) => {
                warn!(
                    path = %self.directory.join(FILE).display(), %error,
                    "can't read the device bindings; using those known before"
                )
            }
        }
    }

    /// Checks whether a device may connect on the agent lane as `agent`, or, if that is `None`, on
    /// the external lane. Reads the file again if it has changed. Blocks.
    ///
    /// Any agent may use a bound device; only the external lane may not. A new device is refused on
    /// the agent lane if it can't be recorded: if the agent has `MAX_PER_AGENT`, or the file has
    /// `MAX_DEVICES`.
    ///
    /// # Errors
    /// The reason why the device may not be used on this lane.
    pub fn check_may_connect(&self, device: &str, agent: Option<&str>) -> Result<(), DeviceRefusal> {
        if device.is_empty()
            || device.len() > MAX_ID
            || !device.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            return Err(DeviceRefusal::Malformed);
        }
        let mut state = self.lock();
        self.refresh_if_changed(&mut state);
        match (state.table.get(device), agent) {
            (Some(DeviceEntry { agent: Some(bound), .. }), None) => {
                Err(DeviceRefusal::Bound { device: device.into(), agent: bound.clone() })
            }
            (None, Some(_)) if state.table.len() >= MAX_DEVICES => Err(DeviceRefusal::Full),
            (None, Some(agent)) if count_of_agent(&state.table, agent) >= MAX_PER_AGENT => Err(DeviceRefusal::TooMany),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, DevicesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether `device` is the gateway's own device, which is never bound.
    fn is_gateways_device(&self, device: &str) -> bool {
        self.gateway_state.as_deref().and_then(read_gateways_device).is_some_and(|gateways| gateways == device)
    }

    /// Records a device that the gateway has accepted on the external lane, so that it is not bound
    /// later. Does nothing if the device is known or the gateway's own, or the file is full.
    /// Blocks.
    pub fn remember_external(&self, device: &str) {
        if self.is_gateways_device(device) {
            return;
        }
        let entry = DeviceEntry { agent: None, since: unix_time(), containers: Vec::new() };
        {
            let mut known = self.lock();
            if known.table.contains_key(device) || known.table.len() >= MAX_DEVICES {
                return;
            }
            known.table.insert(device.into(), entry.clone());
            known.unsaved.insert(device.into(), entry.clone());
        }
        self.save_entry(device, entry);
    }

    /// Binds a new device to the agent lane provisionally, until the gateway answers its `connect`.
    /// A device is new too while the gateway has not answered an earlier `connect` with it.
    ///
    /// Returns `None` if the device is the gateway's own, or is recorded already. In the second
    /// case, if it is bound, adds the container of `agent` to its entry. Blocks.
    pub fn bind_provisionally(self: &Arc<Self>, device: &str, agent: &DeviceUser) -> Option<ProvisionalBinding> {
        if self.is_gateways_device(device) {
            return None;
        }
        let (agent, container) = (agent.name.as_str(), agent.container.as_deref());
        let mut entry = DeviceEntry {
            agent: Some(agent.into()),
            since: unix_time(),
            containers: container.map(Into::into).into_iter().collect(),
        };
        {
            let mut state = self.lock();
            let is_removed = state.removing.remove(device);
            if let Some(waiting) = state.provisional.get_mut(device) {
                *waiting += 1;
                entry = state.table.get(device).cloned().unwrap_or(entry);
            } else if let Some(entry) = state.table.get_mut(device).filter(|_| !is_removed) {
                let is_new_container = entry.agent.is_some() && entry.add_container(container);
                drop(state);
                if is_new_container {
                    self.save_container(device, container);
                }
                return None;
            } else {
                info!(
                    device = short_id(device),
                    agent, "device bound to the agent lane, unless the gateway refuses the connect"
                );
                state.provisional.insert(device.into(), 1);
            }
            state.table.insert(device.into(), entry.clone());
            state.unsaved.insert(device.into(), entry.clone());
        }
        self.save_entry(device, entry.clone());
        Some(ProvisionalBinding { devices: Arc::clone(self), device: device.into(), entry, is_resolved: false })
    }

    /// Records in the file that `container` uses a bound device. A failure is logged.
    fn save_container(&self, device: &str, container: Option<&str>) {
        let written = update_file(&self.directory, |table| {
            if let Some(entry) = table.get_mut(device).filter(|entry| entry.agent.is_some()) {
                entry.add_container(container);
            }
            Ok(())
        });
        if let Err(error) = written {
            warn!(
                path = %self.directory.join(FILE).display(), %error,
                "can't save which container uses a device; its pairing may stay after the container is removed"
            );
        }
    }

    /// Returns the bound devices that were used by containers, with the ids of these containers.
    /// The gateway's own device is left out.
    pub fn devices_with_containers(&self) -> Vec<(String, Vec<String>)> {
        let mut known = self.lock();
        self.refresh_if_changed(&mut known);
        let bound = known.table.iter().filter(|(_, entry)| entry.agent.is_some() && !entry.containers.is_empty());
        let bound: Vec<_> = bound.map(|(device, entry)| (device.clone(), entry.containers.clone())).collect();
        drop(known);
        bound.into_iter().filter(|(device, _)| !self.is_gateways_device(device)).collect()
    }

    /// Removes the containers `gone` from the entries of all devices. Blocks.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn forget_containers(&self, gone: &BTreeSet<String>) -> io::Result<()> {
        let forget = |table: &mut DeviceTable| {
            for entry in table.values_mut() {
                entry.containers.retain(|container| !gone.contains(container));
            }
        };
        forget(&mut self.lock().table);
        update_file(&self.directory, |table| {
            forget(table);
            Ok(())
        })
    }

    /// Adds an entry to the file unless the file has one for the device. A failure is logged, and
    /// the entry stays unsaved. Does not hold the lock on the state meanwhile.
    fn save_entry(&self, device: &str, entry: DeviceEntry) {
        let written = update_file(&self.directory, |table| {
            table.entry(device.into()).or_insert(entry);
            Ok(())
        });
        match written {
            Ok(()) => drop(self.lock().unsaved.remove(device)),
            Err(error) => {
                warn!(
                    path = %self.directory.join(FILE).display(), %error,
                    "can't save a device binding; it holds until loopgate restarts"
                );
            }
        }
    }
}

impl ProvisionalBinding {
    /// Removes the binding, because the gateway refused the `connect`. Keeps it if another
    /// `connect` with the device still waits for its answer, or was accepted. A failure to change
    /// the file is logged. Blocks.
    pub fn remove(mut self) {
        self.is_resolved = true;
        {
            let mut state = self.devices.lock();
            match state.provisional.get_mut(&self.device) {
                None => return,
                Some(waiting) if *waiting > 1 => {
                    *waiting -= 1;
                    return;
                }
                Some(_) => {}
            }
            state.provisional.remove(&self.device);
            state.table.remove(&self.device);
            state.unsaved.remove(&self.device);
            state.removing.insert(self.device.clone());
        }
        let removed = update_file(&self.devices.directory, |table| {
            if self.devices.lock().removing.contains(&self.device) && table.get(&self.device) == Some(&self.entry) {
                table.remove(&self.device);
            }
            Ok(())
        });
        match removed {
            Ok(()) => info!(device = short_id(&self.device), "binding removed: the gateway refused the connect"),
            Err(error) => warn!(
                device = short_id(&self.device), path = %self.devices.directory.join(FILE).display(), %error,
                "can't remove the binding of a device that the gateway refused; release it with `loopgate devices \
                 release`"
            ),
        }
        self.devices.lock().removing.remove(&self.device);
    }
}

impl Drop for ProvisionalBinding {
    fn drop(&mut self) {
        // The gateway accepted the `connect`, or did not answer it. The device may be paired, so
        // the binding is kept.
        if !self.is_resolved {
            self.devices.lock().provisional.remove(&self.device);
        }
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns the beginning of an id, which suffices to identify a device in messages.
fn short_id(device: &str) -> &str {
    device.get(..SHORT_ID_LENGTH).unwrap_or(device)
}

fn count_of_agent(table: &DeviceTable, agent: &str) -> usize {
    table.values().filter(|entry| entry.agent.as_deref() == Some(agent)).count()
}

fn read_gateways_device(state_dir: &Path) -> Option<String> {
    let text = std::fs::read(state_dir.join("identity/device.json")).ok()?;
    let identity: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(identity.get("deviceId")?.as_str()?.to_owned())
}

/// Returns the inode, the modification time (seconds and nanoseconds) and the size of the file;
/// `None` if it can't be read.
fn file_stamp(directory: &Path) -> Option<(u64, i64, i64, u64)> {
    let metadata = std::fs::metadata(directory.join(FILE)).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
}

/// Reads the devices recorded in `directory`. Without a file there are none. Blocks.
///
/// # Errors
/// The file can't be read, is malformed, or is longer than `MAX_FILE`.
pub fn read(directory: &Path) -> io::Result<DeviceTable> {
    let file = match std::fs::File::open(directory.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DeviceTable::new()),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Releases the bound devices whose ids begin with one of `ids`. Their entries stay, so that they
/// are not bound again. Blocks.
///
/// # Errors
/// One of `ids` matches no bound device or several, or the file can't be read or written. Then no
/// device is released.
pub fn release(directory: &Path, ids: &[String]) -> io::Result<()> {
    update_file(directory, |table| {
        for id in ids {
            let bound = |(device, entry): &(&String, &mut DeviceEntry)| {
                device.starts_with(id.as_str()) && entry.agent.is_some()
            };
            let mut matching = table.iter_mut().filter(bound);
            match (matching.next(), matching.next()) {
                (Some((_, entry)), None) => (entry.agent, entry.containers) = (None, Vec::new()),
                (None, _) => {
                    return Err(io::Error::other(format!("no bound device has an id that begins with {id:?}")));
                }
                (Some(_), Some(_)) => {
                    return Err(io::Error::other(format!(
                        "more than one bound device has an id that begins with {id:?}"
                    )));
                }
            }
        }
        Ok(())
    })
}

/// Changes the file atomically by `edit`, under a lock against other processes.
///
/// # Errors
/// The file can't be read or written, or `edit` fails. Then the file is unchanged.
fn update_file(directory: &Path, edit: impl FnOnce(&mut DeviceTable) -> io::Result<()>) -> io::Result<()> {
    let lock =
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(directory.join(".devices.lock"))?;
    lock.lock()?;
    let mut table = read(directory)?;
    edit(&mut table)?;
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    file.write_all(&serde_json::to_vec_pretty(&table)?)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(FILE)).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests;

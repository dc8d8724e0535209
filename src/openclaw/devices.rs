//! Remembers on which lane a device was first used, so that a device of an agent can't be used from outside.
//!
//! The gateway pairs an agent's device silently, and from then on accepts the device's own token
//! from any address. So a device that an agent was the first to use is bound to the agent lane:
//! before the gateway gets the `connect`, since it may pair the device and yet be unable to say so.
//! Only if the gateway refuses the `connect` is the device freed again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// The file in the state directory.
pub const FILE: &str = "devices.json";
/// The most devices that are remembered.
const MAX_DEVICES: usize = 8192;
/// The most devices of one agent. More are refused: dropping an old entry would unbind that device.
const MAX_PER_AGENT: usize = 1024;
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 8 << 20;
/// The most containers that are remembered of one device.
const MAX_CONTAINERS: usize = 16;
/// The longest device id; OpenClaw's have 64 characters.
const MAX_ID: usize = 128;

/// A remembered device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceEntry {
    /// The agent that it is bound to; `None` if it was first used on the external lane, or was released.
    pub agent: Option<String>,
    /// When it was first accepted, in seconds since the Unix epoch.
    pub since: u64,
    /// The ids of the agent's containers that used it, the last one at the end; none once its
    /// pairing was removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
}

impl DeviceEntry {
    /// Adds a container that uses the device; returns whether that changes the entry.
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
    /// Its name, which its devices are bound to.
    pub name: String,
    /// The id of its container, or the uid of its pod, if it has one.
    pub container: Option<String>,
}

/// The devices that are remembered, by id.
pub type DeviceTable = BTreeMap<String, DeviceEntry>;

/// The device may not be used on this lane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceRefusal {
    /// It is bound to an agent.
    #[error("this device is bound to agent {agent:?} (loopgate devices release {})", short_id(.device))]
    Bound {
        /// The device's id.
        device: String,
        /// The agent's name.
        agent: String,
    },
    /// The agent has too many devices.
    #[error("this agent has too many devices; release one with loopgate devices release")]
    TooMany,
    /// The id is not one that OpenClaw makes.
    #[error("the device id is malformed")]
    Malformed,
    /// The id is not that of the request's public key, so it may be another client's.
    #[error("the device id does not belong to the public key")]
    Mismatch,
}

/// The devices of a running sidecar. Commands change the same file, which is read again when it has changed.
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
    /// Entries that are not in the file yet, or could not be written.
    unsaved: DeviceTable,
    /// Devices that are bound until the gateway answers, and how many connections wait for that.
    provisional: BTreeMap<String, usize>,
    /// Devices that are being removed from the file, unless they are bound again before.
    removing: BTreeSet<String>,
}

/// A binding made before the gateway answered the `connect`. Dropping it keeps the binding.
#[derive(Debug)]
pub struct ProvisionalBinding {
    devices: Arc<Devices>,
    device: String,
    entry: DeviceEntry,
    /// Whether a refusal was taken into account.
    is_resolved: bool,
}

impl Devices {
    /// Remembers devices in `directory`. Blocks.
    ///
    /// # Errors
    /// If the file can't be read: without it, no device would be bound.
    pub fn open(directory: &Path, gateway_state: Option<&Path>) -> io::Result<Self> {
        let state = DevicesState { stamp: file_stamp(directory), table: read(directory)?, ..DevicesState::default() };
        Ok(Self { directory: directory.into(), gateway_state: gateway_state.map(Into::into), state: Mutex::new(known) })
    }

    /// Reads the file again if it has changed. If it can't be read, the devices stay as they are.
    fn refresh(&self, known: &mut DevicesState) {
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

    /// Checks a device that connects on the external lane, or on the agent lane as `agent`.
    ///
    /// # Errors
    /// Why it may not be used there.
    pub fn check(&self, device: &str, agent: Option<&str>) -> Result<(), DeviceRefusal> {
        if device.is_empty()
            || device.len() > MAX_ID
            || !device.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            return Err(DeviceRefusal::Malformed);
        }
        let mut known = self.lock();
        self.refresh(&mut known);
        match (known.table.get(device), agent) {
            (Some(DeviceEntry { agent: Some(bound), .. }), None) => {
                Err(DeviceRefusal::Bound { device: device.into(), agent: bound.clone() })
            }
            (None, Some(agent))
                if known.table.len() >= MAX_DEVICES || count_of_agent(&known.table, agent) >= MAX_PER_AGENT =>
            {
                Err(DeviceRefusal::TooMany)
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, DevicesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_gateways_device(&self, device: &str) -> bool {
        self.gateway_state.as_deref().and_then(gateways_device).is_some_and(|gateways| gateways == device)
    }

    /// Remembers a device that the gateway has accepted on the external lane. Blocks.
    pub fn remember_external(&self, device: &str) {
        if self.is_gateways_device(device) {
            return;
        }
        let entry = DeviceEntry { agent: None, since: now(), containers: Vec::new() };
        {
            let mut known = self.lock();
            if known.table.contains_key(device) || known.table.len() >= MAX_DEVICES {
                return;
            }
            known.table.insert(device.into(), entry.clone());
            known.unsaved.insert(device.into(), entry.clone());
        }
        self.save(device, entry);
    }

    /// Binds a device to the agent lane until the gateway has answered its `connect`; `None` if the
    /// device is known already. Blocks.
    pub fn bind(self: &Arc<Self>, device: &str, agent: &DeviceUser) -> Option<ProvisionalBinding> {
        if self.is_gateways_device(device) {
            return None;
        }
        let (agent, container) = (agent.name.as_str(), agent.container.as_deref());
        let mut entry = DeviceEntry {
            agent: Some(agent.into()),
            since: now(),
            containers: container.map(Into::into).into_iter().collect(),
        };
        {
            let mut known = self.lock();
            let is_removed = known.removing.remove(device);
            if let Some(waiting) = known.provisional.get_mut(device) {
                *waiting += 1;
                entry = known.table.get(device).cloned().unwrap_or(entry);
            } else if let Some(entry) = known.table.get_mut(device).filter(|_| !is_removed) {
                let is_new_container = entry.agent.is_some() && entry.add_container(container);
                drop(known);
                if is_new_container {
                    self.save_container(device, container);
                }
                return None;
            } else {
                info!(device = short_id(device), agent, "device bound to the agent lane");
                known.provisional.insert(device.into(), 1);
            }
            known.table.insert(device.into(), entry.clone());
            known.unsaved.insert(device.into(), entry.clone());
        }
        self.save(device, entry.clone());
        Some(ProvisionalBinding { devices: Arc::clone(self), device: device.into(), entry, is_resolved: false })
    }

    /// Writes that `container` uses a device that is bound.
    fn save_container(&self, device: &str, container: Option<&str>) {
        let written = update_file(&self.directory, |table| {
            if let Some(entry) = table.get_mut(device).filter(|entry| entry.agent.is_some()) {
                entry.add_container(container);
            }
            Ok(())
        });
        if let Err(error) = written {
            warn!(path = %self.directory.join(FILE).display(), %error, "can't save which container uses a device");
        }
    }

    /// Returns the bound devices that containers used, with the ids of those containers; not the
    /// gateway's own device.
    pub fn by_container(&self) -> Vec<(String, Vec<String>)> {
        let mut known = self.lock();
        self.refresh(&mut known);
        let bound = known.table.iter().filter(|(_, entry)| entry.agent.is_some() && !entry.containers.is_empty());
        let bound: Vec<_> = bound.map(|(device, entry)| (device.clone(), entry.containers.clone())).collect();
        drop(known);
        bound.into_iter().filter(|(device, _)| !self.is_gateways_device(device)).collect()
    }

    /// Forgets that the containers `gone` used any device. Blocks.
    ///
    /// # Errors
    /// If the file can't be written.
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
        .map(drop)
    }

    /// Writes an entry without holding up those who check devices.
    fn save(&self, device: &str, entry: DeviceEntry) {
        let written = update_file(&self.directory, |table| {
            table.entry(device.into()).or_insert(entry);
            Ok(())
        });
        match written {
            Ok(_) => drop(self.lock().unsaved.remove(device)),
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
    /// Frees the device, since the gateway has refused the `connect`; not if another connection has
    /// used it since. Blocks.
    pub fn remove(mut self) {
        self.is_resolved = true;
        {
            let mut known = self.devices.lock();
            match known.provisional.get_mut(&self.device) {
                None => return,
                Some(waiting) if *waiting > 1 => {
                    *waiting -= 1;
                    return;
                }
                Some(_) => {}
            }
            known.provisional.remove(&self.device);
            known.table.remove(&self.device);
            known.unsaved.remove(&self.device);
            known.removing.insert(self.device.clone());
        }
        let removed = update_file(&self.devices.directory, |table| {
            if self.devices.lock().removing.contains(&self.device) && table.get(&self.device) == Some(&self.entry) {
                table.remove(&self.device);
            }
            Ok(())
        });
        if let Err(error) = removed {
            warn!(
                path = %self.devices.directory.join(FILE).display(), %error,
                "can't remove the binding of a device that the gateway refused"
            );
        }
        self.devices.lock().removing.remove(&self.device);
    }
}

impl Drop for ProvisionalBinding {
    fn drop(&mut self) {
        // Accepted, or unanswered: it may be paired.
        if !self.is_resolved {
            self.devices.lock().provisional.remove(&self.device);
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns the first characters of an id, which are enough to name a device.
fn short_id(device: &str) -> &str {
    device.get(..12).unwrap_or(device)
}

fn count_of_agent(table: &DeviceTable, agent: &str) -> usize {
    table.values().filter(|entry| entry.agent.as_deref() == Some(agent)).count()
}

fn gateways_device(state_dir: &Path) -> Option<String> {
    let text = std::fs::read(state_dir.join("identity/device.json")).ok()?;
    let identity: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(identity.get("deviceId")?.as_str()?.to_owned())
}

fn file_stamp(directory: &Path) -> Option<(u64, i64, i64, u64)> {
    let metadata = std::fs::metadata(directory.join(FILE)).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
}

/// Reads the devices remembered in `directory`; there are none if there is no file. Blocks.
///
/// # Errors
/// If the file can't be read, or holds something else.
pub fn read(directory: &Path) -> io::Result<DeviceTable> {
    let file = match std::fs::File::open(directory.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DeviceTable::new()),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Frees the bound devices that `ids` name. Each is the beginning of a device's id, and must match exactly one. Blocks.
///
/// # Errors
/// If an id names none or several, or the file can't be read or written.
pub fn release(directory: &Path, ids: &[String]) -> io::Result<()> {
    update_file(directory, |table| {
        for id in ids {
            let bound = |(device, entry): &(&String, &mut DeviceEntry)| {
                device.starts_with(id.as_str()) && entry.agent.is_some()
            };
            let mut named = table.iter_mut().filter(bound);
            match (named.next(), named.next()) {
                (Some((_, entry)), None) => (entry.agent, entry.containers) = (None, Vec::new()),
                (None, _) => {
                    return Err(io::Error::other(format!("no bound device has an id that begins with {id:?}")));
                }
                (Some(_), Some(_)) => {
                    return Err(io::Error::other(format!("more than one device has an id that begins with {id:?}")));
                }
            }
        }
        Ok(())
    })
    .map(drop)
}

/// Changes the file atomically, under a lock against other processes.
fn update_file(directory: &Path, edit: impl FnOnce(&mut DeviceTable) -> io::Result<()>) -> io::Result<DeviceTable> {
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
    Ok(table)
}

#[cfg(test)]
mod tests;

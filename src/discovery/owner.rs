//! Finds the container that owns the network namespace of this process.
//!
//! With `network_mode: "service:X"` the owner is X, and not the container of this process. The
//! owner is found by the namespace's addresses, which are compared with the addresses that the
//! engine assigned. `/proc/self/cgroup` is not read: that file names no container on cgroup v2, and
//! the wrong one on v1.

use std::net::IpAddr;
use std::path::Path;

use tracing::debug;

use super::docker::container::{Container, SHORT_ID_LENGTH, namespace_owner_of};

/// The container that owns this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The full id.
    pub id: String,
    /// The name.
    pub name: String,
    /// The compose project or Swarm stack, if any.
    pub project: Option<String>,
    /// Whether the engine was asked for the owner's network aliases, and has answered or refused.
    pub inspected: bool,
}

/// What identifies the owner if its addresses do not.
#[derive(Clone, Debug, Default)]
pub struct OwnerHints {
    /// The id or name that the operator configured (`docker.container`).
    pub configured: Option<String>,
    /// The id in the paths from which `/etc/hosts` and `/etc/resolv.conf` are mounted. The engine
    /// mounts the owner's.
    pub mounted_id: Option<String>,
    /// The host name. By default it is the beginning of the owner's id.
    pub hostname: Option<String>,
}

impl OwnerHints {
    /// Reads the mounts and the host name of this process.
    pub fn read(configured: Option<String>) -> Self {
        let mountinfo = std::fs::read_to_string(Path::new("/proc/self/mountinfo")).unwrap_or_default();
        let hints = Self {
            configured,
            mounted_id: container_id_in(&mountinfo),
            hostname: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()),
        };
        debug!(?hints, "read the hints about the owner of this network namespace");
        hints
    }

    /// Returns whether this process seems to run in a container.
    pub fn is_container(&self) -> bool {
        self.mounted_id.is_some() || self.configured.is_some()
    }
}

/// Returns whether this process runs in another user namespace than the host's, as in every
/// container of a rootless engine (`user_namespaces(7)`).
pub fn is_in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// Returns the container among `all` that owns the namespace with `addresses`; `None` if it can't
/// be determined.
///
/// In this order:
/// 1. If the operator configured a container, the owner of its namespace, and no other.
/// 2. The only container that has one of `addresses`.
/// 3. Among several that have one, the container whose id a hint names. If no container has one,
///    the container among all whose id a hint names.
/// 4. Among several that have one, if no hint names any of them, the only container that has the
///    most of `addresses`.
pub fn find_owner<'a>(all: &'a [Container], addresses: &[IpAddr], hints: &OwnerHints) -> Option<&'a Container> {
    if let Some(configured) = &hints.configured {
        return all
            .iter()
            .find(|container| container.is_named(configured))
            .and_then(|container| namespace_owner_of(container, all));
    }
    let count_shared = |container: &Container| container.addresses().filter(|ip| addresses.contains(ip)).count();
    let mut candidates: Vec<&Container> = all.iter().filter(|container| count_shared(container) > 0).collect();
    let has_address_match = !candidates.is_empty();
    if !has_address_match {
        candidates = all.iter().collect();
    }
    // Several containers may have the same address on different networks, or none may have an
    // address of this namespace.
    if !has_address_match || candidates.len() > 1 {
        // The mounts are preferred: they are the owner's in every engine. In Podman the host name
        // is that of this process's own container, so it would identify the wrong one when the
        // owner has ended and is no longer listed.
        let hint = hints.mounted_id.as_ref().or(hints.hostname.as_ref()).filter(|hint| hint.len() >= SHORT_ID_LENGTH);
        let hinted =
            hint.and_then(|hint| candidates.iter().find(|container| container.id.starts_with(hint.as_str()))).copied();
        let most = candidates.iter().map(|container| count_shared(container)).max().unwrap_or(0);
        candidates = match hinted {
            Some(owner) => vec![owner],
            None if has_address_match => {
                candidates.into_iter().filter(|container| count_shared(container) == most).collect()
            }
            None => Vec::new(),
        };
    }
    match candidates.as_slice() {
        [owner] => namespace_owner_of(owner, all),
        _ => None,
    }
}

/// Returns the container id in the path from which `/etc/hosts` or `/etc/resolv.conf` is mounted,
/// in the format of proc_pid_mountinfo(5).
///
/// The path is `.../containers/<id>/hosts` with Docker, and
/// `.../overlay-containers/<id>/userdata/hosts` with Podman. Layers of images are named by 64
/// digits too, so the whole path is checked. `/etc/hostname` is not used: with Podman it is mounted
/// from the container's own directory, not from the owner's.
fn container_id_in(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (source, target) = (fields.next()?, fields.next()?);
        let file = target.strip_prefix("/etc/").filter(|file| ["hosts", "resolv.conf"].contains(file))?;
        let directory = source.strip_suffix(file)?.strip_suffix('/')?;
        let directory = directory.strip_suffix("/userdata").unwrap_or(directory);
        let (parent, id) = directory.rsplit_once('/')?;
        let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_id && parent.ends_with("containers")).then(|| id.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::docker::container::NetworkEndpoint;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn mountinfo_names_the_owner_in_docker_and_in_podman_and_no_image_layer() {
        for (line, expected) in [
            (format!("600 590 0:50 /var/lib/docker/containers/{ID}/hosts /etc/hosts rw - ext4 /dev/sda rw"), Some(ID)),
            (
                format!(
                    "600 590 8:1 /docker/containers/{ID}/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/sda rw"
                ),
                Some(ID),
            ),
            (
                format!("6 5 0:5 /containers/overlay-containers/{ID}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw"),
                Some(ID),
            ),
            (format!("6 5 0:5 /var/lib/docker/overlay2/{ID}/hosts /etc/hosts rw - overlay overlay rw"), None),
            (format!("6 5 0:5 /var/lib/docker/containers/{ID}/hosts /srv/hosts rw - ext4 /dev/sda rw"), None),
            ("6 5 0:5 /var/lib/docker/containers/123/hosts /etc/hosts rw - ext4 /dev/sda rw".to_owned(), None),
            (format!("6 5 0:5 /var/lib/kubelet/pods/{ID}/etc-hosts /etc/hosts rw - ext4 /dev/sda rw"), None),
            (
                format!(
                    "6 5 0:5 /containers/overlay-containers/{ID}/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw"
                ),
                None,
            ),
            (String::new(), None),
        ] {
            assert_eq!(container_id_in(&line).as_deref(), expected, "{line}");
        }
    }

    fn container_at(id: &str, name: &str, address: &str) -> Container {
        let endpoint = NetworkEndpoint {
            network: "n".into(),
            addresses: vec![address.parse().unwrap()],
            gateways: Vec::new(),
            podman_mac: None,
        };
        Container { id: id.repeat(64), name: name.into(), endpoints: vec![endpoint], ..Container::default() }
    }

    #[test]
    fn the_owner_has_our_addresses_unless_the_operator_names_another() {
        let joiner = Container {
            id: "d".repeat(64),
            name: "sidecar".into(),
            shares_namespace_of: Some("b".repeat(64)),
            ..Container::default()
        };
        let all = [
            container_at("a", "one", "10.0.0.2"),
            container_at("b", "two", "10.0.0.3"),
            container_at("c", "twin", "10.0.0.3"),
            joiner,
        ];
        let hint = |id: &str| Some(id.to_owned());
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        for (address, hints, expected) in [
            ("10.0.0.2", OwnerHints::default(), Some("one")),
            ("10.0.0.2", OwnerHints { mounted_id: hint(&b), ..OwnerHints::default() }, Some("one")),
            ("10.0.0.3", OwnerHints::default(), None),
            ("10.0.0.3", OwnerHints { mounted_id: hint(&b), ..OwnerHints::default() }, Some("two")),
            ("10.0.0.3", OwnerHints { hostname: hint(&b[..12]), ..OwnerHints::default() }, Some("two")),
            ("10.0.0.3", OwnerHints { hostname: hint("b"), ..OwnerHints::default() }, None),
            (
                "10.0.0.3",
                OwnerHints { mounted_id: hint(&b), hostname: hint(&"c".repeat(12)), ..OwnerHints::default() },
                Some("two"),
            ),
            ("10.0.0.9", OwnerHints::default(), None),
            ("10.0.0.9", OwnerHints { mounted_id: hint(&a), ..OwnerHints::default() }, Some("one")),
            ("10.0.0.9", OwnerHints { hostname: hint(&a[..12]), ..OwnerHints::default() }, Some("one")),
            (
                "10.0.0.9",
                OwnerHints { mounted_id: hint(&"e".repeat(64)), hostname: hint(&a[..12]), ..OwnerHints::default() },
                None,
            ),
            ("10.0.0.3", OwnerHints { configured: hint("sidecar"), ..OwnerHints::default() }, Some("two")),
            ("10.0.0.2", OwnerHints { configured: hint("two"), ..OwnerHints::default() }, Some("two")),
            ("10.0.0.2", OwnerHints { configured: hint("unknown"), ..OwnerHints::default() }, None),
        ] {
            let found = find_owner(&all, &[address.parse().unwrap()], &hints);
            assert_eq!(found.map(|owner| owner.name.as_str()), expected, "{address} {hints:?}");
        }
    }
}

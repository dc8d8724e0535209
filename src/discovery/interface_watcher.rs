//! Follows this namespace's network interfaces, their addresses, and the gateways of its routes.
//!
//! A message of rtnetlink(7) only causes a new list to be read. So messages are not parsed, and a
//! lost message only delays the list.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::FutureExt;
use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::interface::Interface;
use super::routes;

/// The delay from a message to the list that it causes. Messages come in bursts: one for the link,
/// one for each address.
const SETTLE_DELAY: Duration = Duration::from_millis(5);
/// The interval of lists without a message, in case a message was lost.
const RESYNC: Duration = Duration::from_secs(30);
/// The interval of lists if netlink can't be used (seccomp profiles, gVisor).
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The size of the buffer for a message, in bytes. A longer message is truncated, which does no
/// harm.
const MESSAGE_BUFFER: usize = 4096;

/// Watches the interfaces of this namespace and the gateways of its routes, and holds the latest
/// lists.
pub struct InterfaceWatcher {
    socket: Option<TokioSocket>,
    tick: Interval,
    latest: Vec<Interface>,
    gateways: BTreeSet<IpAddr>,
    /// Whether a message has arrived, or the interval has elapsed, since `latest` was read.
    stale: bool,
}

impl InterfaceWatcher {
    /// Subscribes to changes and then lists, so that no change is missed. Without netlink it polls.
    pub fn open() -> Self {
        let socket = subscribe_to_netlink()
            .inspect_err(
                |error| warn!(%error, "can't follow network interfaces by netlink; polling once a second instead"),
            )
            .ok();
        let latest = list_interfaces().unwrap_or_else(|error| {
            warn!(%error, "can't list network interfaces; trying again");
            Vec::new()
        });
        Self {
            tick: interval_from_now(if socket.is_some() { RESYNC } else { POLL_INTERVAL }),
            socket,
            latest,
            gateways: list_gateways().unwrap_or_default(),
            stale: false,
        }
    }

    /// Returns the interfaces, as last listed.
    pub fn latest(&self) -> &[Interface] {
        &self.latest
    }

    /// Returns the gateways of this namespace's routes, as last listed.
    pub fn gateways(&self) -> &BTreeSet<IpAddr> {
        &self.gateways
    }

    /// Waits until the interfaces, which are logged, or the gateways have changed. Cancel safe:
    /// dropping the future loses no change.
    pub async fn changed(&mut self) {
        loop {
            if !self.stale {
                self.wait_for_hint().await;
                self.stale = true;
            }
            tokio::time::sleep(SETTLE_DELAY).await;
            self.discard_messages();
            self.stale = false;
            let (latest, gateways) = (list_interfaces(), list_gateways());
            let mut changed = false;
            match latest {
                Ok(current) if current != self.latest => {
                    self.latest = current;
                    info!(interfaces = %Interface::format_all(&self.latest), "network interfaces changed");
                    changed = true;
                }
                Ok(_) => {}
                Err(error) => warn!(%error, "can't list network interfaces; trying again"),
            }
            if let Some(current) = gateways.filter(|current| *current != self.gateways) {
                self.gateways = current;
                changed = true;
            }
            if changed {
                return;
            }
        }
    }

    /// Waits for a reason to list again: a message, or the end of the interval. If netlink fails,
    /// closes the socket and polls from then on.
    async fn wait_for_hint(&mut self) {
        let Some(socket) = &self.socket else {
            self.tick.tick().await;
            return;
        };
        let mut message = Vec::with_capacity(MESSAGE_BUFFER);
        let received = tokio::select! {
            _ = self.tick.tick() => return,
            received = socket.recv(&mut message) => received,
        };
        match received {
            Ok(()) => {}
            // The kernel dropped messages, so a new list is needed.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => debug!("netlink messages were lost"),
            Err(error) => {
                warn!(%error, "netlink failed; polling network interfaces once a second instead");
                self.socket = None;
                self.tick = interval_from_now(POLL_INTERVAL);
            }
        }
    }

    /// Discards the received messages, since the list that is read next shows their changes.
    fn discard_messages(&self) {
        let Some(socket) = &self.socket else { return };
        let mut message = Vec::with_capacity(MESSAGE_BUFFER);
        while let Some(Ok(())) = socket.recv(&mut message).now_or_never() {
            message.clear();
        }
    }
}

/// Opens a socket that receives messages about links, addresses and routes.
fn subscribe_to_netlink() -> io::Result<TokioSocket> {
    let addresses = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
    let groups = addresses | libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE;
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups as u32))?;
    Ok(socket)
}

/// Returns an interval whose first tick is due after `period`.
fn interval_from_now(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Without the reset the first tick would be due at once, but the list has just been read.
    ticks.reset();
    ticks
}

/// Returns the gateways of this namespace's routes; `None` if they can't be read, which is logged.
fn list_gateways() -> Option<BTreeSet<IpAddr>> {
    routes::read_gateways().inspect_err(|error| warn!(%error, "can't list routes; trying again")).ok()
}

/// Lists the interfaces that are up, sorted by name, each with its addresses sorted.
fn list_interfaces() -> io::Result<Vec<Interface>> {
    let mut interfaces: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    for entry in getifaddrs()?.filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP)) {
        // An IPv4 address with a label (`eth0:1`, as old tools set it) is an address of `eth0`.
        let name = entry.interface_name.split(':').next().unwrap_or_default();
        let addresses = interfaces.entry(name.to_owned()).or_default();
        let network = entry.address.as_ref().and_then(ip_of).zip(entry.netmask.as_ref().and_then(ip_of));
        if let Some(network) = network.and_then(|(address, mask)| IpNet::with_netmask(address, mask).ok()) {
            addresses.push(network);
        }
    }
    Ok(interfaces
        .into_iter()
        .map(|(name, mut addresses)| {
            addresses.sort_unstable();
            addresses.dedup();
            Interface { name, addresses }
        })
        .collect())
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_with_its_network() {
        let interfaces = list_interfaces().unwrap();
        let lo = interfaces.iter().find(|interface| interface.name == "lo").expect("lo is up");
        assert!(lo.addresses.contains(&"127.0.0.1/8".parse().unwrap()), "{lo:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_change_is_reported_where_nothing_changes() {
        let mut interfaces = InterfaceWatcher {
            socket: None,
            tick: interval_from_now(POLL_INTERVAL),
            latest: list_interfaces().unwrap(),
            gateways: list_gateways().unwrap(),
            stale: false,
        };
        let change = tokio::time::timeout(POLL_INTERVAL * 3, interfaces.changed()).await;
        assert!(change.is_err());
    }
}

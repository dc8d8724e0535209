//! The names and addresses that the server certificate needs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{Config, ListenOn};
use crate::discovery::View;
use crate::pki::SubjectName;
use crate::shutdown::Shutdown;

/// Returns the names that the server certificate needs, updated at each change of `view`.
pub(super) fn follow_names(
    config: &Config,
    mut view: watch::Receiver<Arc<View>>,
    shutdown: &Shutdown,
) -> watch::Receiver<BTreeSet<SubjectName>> {
    // Clients may use an address that `listen.on` names, even a loopback address.
    let named: Vec<IpAddr> = config.listen.on.iter().filter_map(ListenOn::exact).filter(|ip| !ip.is_unspecified()).collect();
    let names = move |view: &View| -> BTreeSet<SubjectName> {
        let dns = view.own_names.iter().cloned().map(SubjectName::Dns);
        // A link-local address needs a zone, which URLs of clients do not have; and each new name breaks pins of the leaf.
        let addresses = view.own_addresses().filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        dns.chain(addresses.chain(named.iter().copied()).map(SubjectName::Ip)).collect()
    };
    let (publish, receiver) = watch::channel(names(&view.borrow_and_update()));
    let ending = shutdown.clone();
    shutdown.spawn(async move {
        loop {
            tokio::select! {
                () = ending.begun() => return,
                changed = view.changed() => if changed.is_err() { return },
            }
            let now = names(&view.borrow_and_update());
            publish.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
    });
    receiver
}

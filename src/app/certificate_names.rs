//! The names and addresses that the server certificate needs.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Config;
use crate::discovery::View;
use crate::listener::reachable_addresses;
use crate::pki::SubjectName;
use crate::shutdown::Shutdown;

/// Returns a channel with the names and addresses that the server certificate needs. A task updates
/// it when a change of `view` changes them, until `shutdown` begins.
pub(super) fn follow_names(
    config: &Config,
    mut view: watch::Receiver<Arc<View>>,
    shutdown: &Shutdown,
) -> watch::Receiver<BTreeSet<SubjectName>> {
    let (listen, gateway) = (config.listen.on.clone(), config.gateway.address);
    let names = move |view: &View| -> BTreeSet<SubjectName> {
        let dns = view.own_names.iter().cloned().map(SubjectName::Dns);
        dns.chain(reachable_addresses(&listen, gateway, view).into_iter().map(SubjectName::Ip)).collect()
    };
    let (sender, receiver) = watch::channel(names(&view.borrow_and_update()));
    let task_shutdown = shutdown.clone();
    shutdown.spawn(async move {
        loop {
            tokio::select! {
                () = task_shutdown.wait_until_begun() => return,
                changed = view.changed() => if changed.is_err() { return },
            }
            let now = names(&view.borrow_and_update());
            sender.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
    });
    receiver
}

//! The right of a request's client to be served, where it is not the right of its connection: a trusted proxy brings many clients on one,
//! and a page in an agent's browser is held to the lists though its connection is not.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::futures::OwnedNotified;

use super::Proxy;
use super::connection::Session;
use crate::lane::{Denied, Lane, Rules};

/// One request's client, for as long as the request and its answer take.
pub(super) struct Standing {
    client: IpAddr,
    proxy: Arc<Proxy>,
    /// Ready once the rules are others.
    renewed: Pin<Box<OwnedNotified>>,
}

impl Standing {
    /// That of `client`, whom `rules` let pass; `None` where it has the fate of its connection.
    ///
    /// # Errors
    /// The rules have changed meanwhile, and deny it.
    pub(super) fn of(session: &Session, client: Option<IpAddr>, rules: &Arc<Rules>) -> Result<Option<Self>, Denied> {
        let own = match &*session.lane {
            Lane::External(lane) => Some(lane.client),
            Lane::Agent(_) => None,
        };
        let Some(client) = client.filter(|client| own != Some(*client)) else { return Ok(None) };
        let proxy = Arc::clone(&session.proxy);
        // Listening first, then a second look, so that no change falls between the two.
        let standing = Self { client, renewed: Box::pin(Arc::clone(&proxy.renewed).notified_owned()), proxy };
        if !Arc::ptr_eq(rules, &standing.proxy.rules.load()) {
            standing.judge()?;
        }
        Ok(Some(standing))
    }

    fn judge(&self) -> Result<(), Denied> {
        self.proxy.rules.load().policy().listed(self.client)
    }

    /// Ready when the rules deny the client.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.renewed.as_mut().poll(cx));
            self.renewed.set(Arc::clone(&self.proxy.renewed).notified_owned());
            if self.judge().is_err() {
                self.proxy.traffic.lane_changes.inc();
                return Poll::Ready(());
            }
        }
    }

    /// Waits until the rules deny the client.
    pub(super) async fn lost(&mut self) {
        poll_fn(|cx| self.poll_lost(cx)).await;
    }
}

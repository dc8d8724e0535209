//! The right of a request's client to be served, where it is not the right of its connection: a trusted proxy brings many clients on one,
//! and a page in an agent's browser is held to the lists though its connection is not.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::futures::OwnedNotified;

use super::Proxy;
use super::connection::Session;
use super::error::Error;
use crate::lane::{Lane, Refusal, Rules};

/// One request's client, for as long as the request and its answer take.
pub(super) struct ClientAuthorization {
    client: IpAddr,
    proxy: Arc<Proxy>,
    /// Ready once the rules are others.
    rules_changed: Pin<Box<OwnedNotified>>,
}

impl ClientAuthorization {
    /// That of `client`, whom `rules` let pass; `None` where it has the fate of its connection.
    ///
    /// # Errors
    /// The rules have changed meanwhile, and deny it.
    pub(super) fn of(session: &Session, client: Option<IpAddr>, rules: &Arc<Rules>) -> Result<Option<Self>, Error> {
        let own = match &*session.lane {
            // The lists are not for a trusted proxy's connection, though they are for what it asks itself.
            Lane::External(lane) if !lane.trusted_proxy => Some(lane.client),
            _ => None,
        };
        let Some(client) = client.filter(|client| own != Some(*client)) else { return Ok(None) };
        let proxy = Arc::clone(&session.proxy);
        // Listening first, then a second look, so that no change falls between the two.
        let authorization = Self { client, rules_changed: Box::pin(Arc::clone(&proxy.rules_changed).notified_owned()), proxy };
        if !Arc::ptr_eq(rules, &authorization.proxy.rules.load()) {
            authorization.judge()?;
        }
        Ok(Some(authorization))
    }

    fn judge(&self) -> Result<(), Error> {
        self.proxy.rules.load().policy().check_lists(self.client).map_err(|_| Error::Refused(Refusal::ClientDenied))
    }

    /// Ready when the rules deny the client.
    pub(super) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.rules_changed.as_mut().poll(cx));
            self.rules_changed.set(Arc::clone(&self.proxy.rules_changed).notified_owned());
            if self.judge().is_err() {
                self.proxy.traffic.lane_changes.inc();
                return Poll::Ready(());
            }
        }
    }

    /// Waits until the rules deny the client.
    pub(super) async fn revoked(&mut self) {
        poll_fn(|cx| self.poll_revoked(cx)).await;
    }

    /// The outcome of `sending` a request, or that its client is denied meanwhile.
    pub(super) async fn unless_revoked<T>(
        authorization: Option<&mut Self>,
        sending: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut sending = pin!(sending);
        let Some(authorization) = authorization else { return sending.await };
        tokio::select! {
            biased;
            sent = &mut sending => sent,
            () = authorization.revoked() => Err(Error::Refused(Refusal::ClientDenied)),
        }
    }
}

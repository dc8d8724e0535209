//! Watches whether the client of one request is still authorized, if that does not depend on its
//! connection alone.
//!
//! A trusted proxy sends requests of many clients on one connection. A browser page on an agent's
//! connection is subject to the allow and deny lists, although the connection is not.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::futures::OwnedNotified;

use crate::lane::{Lane, RequestRefusal, RequestRules};
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::error::Error;
use crate::proxy::shared::Shared;

/// Watches the rules for the client of one request, until its response has ended.
pub struct ClientAuthorization {
    client: IpAddr,
    shared: Arc<Shared>,
    rules_changed: Pin<Box<OwnedNotified>>,
}

impl ClientAuthorization {
    /// Watches `client`, which `rules` permitted. Returns `None` if there is nothing to watch: the
    /// request has no client of its own, or its client is that of the connection, which is checked
    /// with the connection.
    ///
    /// # Errors
    /// The rules have changed meanwhile and deny the client.
    pub fn watch_if_needed(
        context: &ConnectionContext,
        client: Option<IpAddr>,
        rules: &Arc<RequestRules>,
    ) -> Result<Option<Self>, Error> {
        let connection_client = match &*context.lane {
            // The connection of a trusted proxy is not subject to the lists, but the proxy's own
            // requests are.
            Lane::External(lane) if !lane.is_trusted_proxy => Some(lane.client),
            _ => None,
        };
        let Some(client) = client.filter(|client| connection_client != Some(*client)) else { return Ok(None) };
        let shared = Arc::clone(&context.shared);
        // Subscribes first and then compares, so that no change is missed in between.
        let authorization =
            Self { client, rules_changed: Box::pin(Arc::clone(&shared.rules_changed).notified_owned()), shared };
        if !Arc::ptr_eq(rules, &authorization.shared.rules.load()) {
            authorization.check_access_lists()?;
        }
        Ok(Some(authorization))
    }

    /// Checks the client against the allow and deny lists of the current rules.
    ///
    /// # Errors
    /// They deny the client.
    fn check_access_lists(&self) -> Result<(), Error> {
        self.shared
            .rules
            .load()
            .policy()
            .check_access_lists(self.client)
            .map_err(|_| Error::Refused(RequestRefusal::ClientDenied))
    }

    /// Completes when the rules deny the client, and counts it as revoked. Checks only when the
    /// rules have changed.
    pub fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.rules_changed.as_mut().poll(cx));
            self.rules_changed.set(Arc::clone(&self.shared.rules_changed).notified_owned());
            if self.check_access_lists().is_err() {
                self.shared.count_revoked(1);
                return Poll::Ready(());
            }
        }
    }

    /// Waits until the rules deny the client.
    pub async fn wait_until_revoked(&mut self) {
        poll_fn(|cx| self.poll_revoked(cx)).await;
    }

    /// Waits for `future`, unless the rules deny the client meanwhile. Without `authorization`,
    /// only waits.
    ///
    /// # Errors
    /// Those of `future`, or the rules deny the client.
    pub async fn unless_revoked<T>(
        mut authorization: Option<&mut Self>,
        mut future: Pin<&mut (impl Future<Output = Result<T, Error>> + ?Sized)>,
    ) -> Result<T, Error> {
        poll_fn(|cx| {
            if let Poll::Ready(result) = future.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            let Some(authorization) = &mut authorization else { return Poll::Pending };
            authorization.poll_revoked(cx).map(|()| Err(Error::Refused(RequestRefusal::ClientDenied)))
        })
        .await
    }
}

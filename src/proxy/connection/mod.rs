//! One downstream connection: [`establish_connection`] takes it through its phases, [`serve_http`]
//! serves its requests, [`lifetime`] decides when it ends.

pub mod establish;
mod lifetime;
mod serve_http;

use std::sync::Arc;

use tracing::{debug, info};

use super::shared::Shared;
use crate::audit;
use crate::error_chain::error_chain;
use crate::metrics::count_reason;
use establish::{AcceptedConnection, EnrolmentConnection, Error, Established, establish_connection};

/// Serves a connection until it ends; counts and logs one that is closed before it is served. Must
/// be called on the worker that the connection was assigned to.
pub async fn serve(shared: Arc<Shared>, accepted: AcceptedConnection) {
    let peer = accepted.peer();
    match establish_connection(&shared, accepted).await {
        Ok(Established::Http(registered)) => serve_http::serve(*registered).await,
        Ok(Established::Enrolment(EnrolmentConnection { stream, capacity: _held_until_end })) => tokio::select! {
            () = shared.shutdown.wait_until_begun() => {}
            () = (shared.enrol)(stream, peer) => {}
        },
        Err(error) => {
            if let Some(reason) = error.refusal_reason() {
                let counters = match error {
                    Error::Tls(_) => &shared.traffic.handshake_failures,
                    _ => &shared.traffic.connections_denied,
                };
                count_reason(counters, reason);
                info!(target: audit::TARGET, kind = "refusal", at = "connection", %peer, reason, "connection refused");
            }
            debug!(%peer, error = error_chain(&error), "connection closed before its first request");
        }
    }
}

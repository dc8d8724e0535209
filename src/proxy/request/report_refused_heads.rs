//! Request heads that were refused before there was a request: they are counted and logged like requests that are
//! refused, without method and path, which are not known.

use http::HeaderMap;
use tracing::{debug, info};

use super::access_log::AccessLog;
use crate::audit;
use crate::metrics::count;
use crate::proxy::downstream::refused_heads::Refused;
use crate::proxy::session::Session;

/// Counts and logs the refused heads of a connection since it was called the last time.
pub fn report_refused_heads(session: &Session) {
    for refused in session.head_tracker.take_refused() {
        report(session, refused);
    }
}

fn report(session: &Session, refused: Refused) {
    let Refused { why, is_answered } = refused;
    let (traffic, lane, end) = (&session.shared.traffic, session.lane.kind(), why.label());
    count(&traffic.refused, end);
    traffic.ended(lane, end);
    let (connection, peer, lane, protocol) = (session.number, session.peer, lane.label(), session.protocol.label());
    info!(target: audit::TARGET, kind = "refusal", at = "request", connection, %peer, lane, reason = end, "request refused");
    debug!(connection, %peer, lane, protocol, reason = end, "request head refused");
    if !session.settings.log_access {
        return;
    }
    let AccessLog { client, request_id } = AccessLog::new(session, &HeaderMap::new());
    let status = is_answered.then(|| why.status().as_u16());
    info!(target: "loopgate::access", connection, %peer, %client, lane, protocol, status, end, request_id, "request");
}

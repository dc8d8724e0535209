//! Counts and logs request heads that never became a request. They are logged like requests,
//! without method and path, which are not known.

use http::{HeaderMap, StatusCode};
use tracing::{debug, info};

use super::access_log::AccessLog;
use crate::audit;
use crate::labels::Protocol;
use crate::metrics::count_reason;
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::downstream::h1_refusal::refusal_body_length;
use crate::proxy::downstream::refused_heads::RefusedHead;
use crate::proxy::request_end::RequestEnd;

/// Counts and logs the heads of a connection that were refused or dropped since the last call.
pub fn report_refused_heads(context: &ConnectionContext) {
    let (refused, dropped) = context.head_tracker.take_refused_and_dropped();
    for RefusedHead { why, is_answered } in refused {
        record_refusal(context, why.label());
        // The response of `h2` has no body.
        let bytes = if is_answered && context.protocol == Protocol::H1 { refusal_body_length(why) } else { 0 };
        record_end(context, why.label(), is_answered.then(|| why.status()), bytes);
    }
    let ends =
        [(dropped.by_client, context.end_of_open_requests()), (dropped.by_closing, RequestEnd::ConnectionClosed)];
    for (count, why) in ends {
        (0..count).for_each(|_| record_end(context, why.label(), None, 0));
    }
}

/// Counts a refusal, and writes it to the audit log.
fn record_refusal(context: &ConnectionContext, reason: &'static str) {
    count_reason(&context.shared.traffic.requests_refused, reason);
    let (connection, peer, lane) = (context.number, context.peer, context.lane.kind().label());
    info!(target: audit::TARGET, kind = "refusal", at = "request", connection, %peer, lane, reason, "request refused");
    let protocol = context.protocol.label();
    debug!(connection, %peer, lane, protocol, reason, "request head refused");
}

/// Counts and logs the end of a head like that of a request. `status` and `bytes` are those of the
/// response.
fn record_end(context: &ConnectionContext, label: &'static str, status: Option<StatusCode>, bytes: usize) {
    let lane = context.lane.kind();
    context.shared.traffic.count_request_end(lane, label);
    if !context.settings.log_access {
        return;
    }
    let (connection, peer, lane, protocol) = (context.number, context.peer, lane.label(), context.protocol.label());
    let status = status.map(|status| status.as_u16());
    let AccessLog { client, request_id } = AccessLog::new(context, &HeaderMap::new());
    info!(
        target: "loopgate::access",
        connection, %peer, %client, lane, protocol, status, bytes, end = label, request_id, "request"
    );
}

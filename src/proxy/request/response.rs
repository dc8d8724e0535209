//! Converts the gateway's response to the response for the client.

use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use http::{HeaderValue, Response, StatusCode};

use super::client_authorization::ClientAuthorization;
use super::record::RequestRecord;
use super::response_body::ResponseBody;
use crate::labels::Protocol;
use crate::lane::scrub_response;
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::upstream::h1::response_head::ResponseHead;
use crate::proxy::upstream::pool::PooledConnection;

/// Converts the gateway's response with this `head`, whose body comes over `upstream`.
pub fn response_for_client(
    context: &ConnectionContext,
    head: ResponseHead,
    upstream: PooledConnection,
    record: &Arc<RequestRecord>,
    authorization: Option<ClientAuthorization>,
) -> Response<ResponseBody> {
    let mut parts = head.into_parts();
    // The `Upgrade` of a 426 names the protocol to upgrade to (RFC 9110 section 15.5.22). HTTP/2
    // has no such field.
    let offered = (parts.status == StatusCode::UPGRADE_REQUIRED).then(|| parts.headers.remove(UPGRADE)).flatten();
    scrub_response(&mut parts.headers);
    if let Some(protocol) = offered.filter(|_| context.protocol == Protocol::H1) {
        parts.headers.insert(UPGRADE, protocol);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let is_h1 = context.protocol == Protocol::H1;
    // Workaround: over HTTP/1.1 hyper drops the `Content-Length` of a 304 with an empty body.
    // Delete when it keeps it.
    let hides_end = is_h1 && parts.status == StatusCode::NOT_MODIFIED && parts.headers.contains_key(CONTENT_LENGTH);
    Response::from_parts(parts, ResponseBody::from_gateway(upstream, Arc::clone(record), authorization, hides_end))
}

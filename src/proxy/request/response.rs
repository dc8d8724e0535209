//! Turns the gateway's response into the client's.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, StatusCode, Version};
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;

use super::client_authorization::ClientAuthorization;
use super::response_body::ResponseBody;
use crate::labels::Protocol;
use crate::lane::scrub_response;
use crate::proxy::downstream::activity::RequestGuard;
use crate::proxy::session::Session;
use crate::proxy::upstream::pool::PooledConnection;

/// Passes the gateway's `response` on; its body comes over `upstream`.
pub fn pass_back(
    session: &Session,
    response: Response<Incoming>,
    upstream: PooledConnection,
    sent: Counter,
    guard: RequestGuard,
    authorization: Option<ClientAuthorization>,
) -> Response<ResponseBody> {
    let (mut parts, incoming) = response.into_parts();
    // A 426 names the protocol to upgrade to (RFC 9110 section 15.5.22). HTTP/2 knows no such field.
    let offered = (parts.status == StatusCode::UPGRADE_REQUIRED).then(|| parts.headers.remove(UPGRADE)).flatten();
    scrub_response(&mut parts.headers);
    if let Some(protocol) = offered.filter(|_| session.protocol == Protocol::Http1) {
        parts.headers.insert(UPGRADE, protocol);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    parts.version = Version::HTTP_11;
    Response::from_parts(parts, ResponseBody::gateway(incoming, upstream, sent, guard, authorization))
}

//! The gateway's HTTP API, which a client with a scope cap must not use.

use std::sync::LazyLock;

use http::HeaderValue;
use http::request::Parts;

use super::path::check_path_rules;
use super::policy::allowed_scopes;
use super::request_check::RequestRefusal;
use crate::config::PathRule;

/// Refuses a request to the gateway's HTTP API, or with an ambiguous path that could lead there,
/// unless the scope cap `cap` includes `operator.admin`, or there is none.
///
/// The API gives every client that sends the gateway's token or password full operator rights, and
/// ignores `X-OpenClaw-Scopes` (OpenClaw `gateway/openai-http-api`,
/// `gateway/tools-invoke-http-api`). The same holds for `POST /sessions/KEY/kill` and `GET
/// /sessions/KEY/history`. Requests for an upgrade are refused too, since a gateway that does not
/// upgrade could answer them as plain requests.
///
/// # Errors
/// [`RequestRefusal::ScopeCapped`].
pub(super) fn check_http_api(parts: &Parts, cap: Option<&HeaderValue>) -> Result<(), RequestRefusal> {
    static API: LazyLock<[PathRule; 4]> =
        LazyLock::new(|| ["/v1/", "/tools/", "/api/", "/sessions/"].map(PathRule::deny));
    // `/sessions` itself is a page of the Control UI.
    if parts.uri.path() == "/sessions"
        || cap.is_none_or(|cap| allowed_scopes(cap).any(|scope| scope == "operator.admin"))
    {
        return Ok(());
    }
    // The rules are for every port.
    const ANY_PORT: u16 = 0;
    check_path_rules(&parts.method, parts.uri.path(), false, &*API, ANY_PORT).map_err(|_| RequestRefusal::ScopeCapped)
}

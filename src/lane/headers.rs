//! Builds the request heads that the gateway gets, each from a lane.
//!
//! OpenClaw 2026.9 treats a request from the external lane's address without forwarding headers as
//! local. The types prevent such a request: [`GatewayHead`] has private fields, and a head of the
//! external lane needs a [`HeadersWritten`], which only [`Forwarding::write`] returns. The source
//! address is part of the head, so no head can leave from the other lane's address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, EXPECT, HOST, ORIGIN, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};

use super::assignment::{AgentLane, ExternalLane, Lane};
use super::browser;
use super::forwarding::{Forwarding, HeadersWritten, sole_value};
use super::http_api::check_http_api;
use super::path::check_path_rules;
use super::policy::{LanePolicy, intersect_caps};
use super::request_check::{CheckedHead, RequestRefusal, check_request, connection_options};
use super::request_rules::RequestRules;
use super::reserved_headers::{is_hop_by_hop, is_same_if_folded};
use super::target::{GatewayRoute, Target};
use crate::labels::LaneKind;
use crate::pki::SubjectName;
use crate::trace::Trace;

const X_OPENCLAW_SCOPES: HeaderName = HeaderName::from_static("x-openclaw-scopes");

/// A request head as the gateway gets it, with the addresses that it comes from and goes to.
#[derive(Debug)]
pub struct GatewayHead {
    parts: Parts,
    route: GatewayRoute,
    lane: HeadLane,
    is_upgrade: bool,
    scopes: Option<HeaderValue>,
}

/// The lane of a head. The external variant can't be made before the forwarding headers are
/// written.
#[derive(Clone, Copy, Debug)]
enum HeadLane {
    Agent,
    External(HeadersWritten),
}

impl GatewayHead {
    /// Checks a request on a connection of `lane`, and builds the head that `target` gets.
    ///
    /// `token` is the `Authorization` value with the gateway's token, which agents with a
    /// certificate inherit. `names` are the names in loopgate's server certificate. A request that
    /// a web page causes on an agent's connection goes out on the external lane.
    ///
    /// # Errors
    /// The reason why the request must not be forwarded.
    pub fn new(
        mut parts: Parts,
        lane: &Lane,
        rules: &RequestRules,
        target: &Target,
        token: Option<&HeaderValue>,
        names: &BTreeSet<SubjectName>,
    ) -> Result<Self, RequestRefusal> {
        // HTTP/2 may split cookies over several fields, HTTP/1.1 may not (RFC 9113 section 8.2.3).
        if parts.version == Version::HTTP_2 {
            join_cookies(&mut parts.headers);
        }
        let checked = check_request(&parts, &rules.upgrades)?;
        let scopes = match lane {
            Lane::Agent(lane) => &lane.scopes,
            Lane::External(lane) => &lane.scopes,
        };
        check_http_api(&parts, scopes.as_ref())?;
        match lane {
            Lane::Agent(lane)
                if browser::is_from_browser(&parts.headers, &checked.host)
                    || (lane.is_proved_by_certificate() && browser::is_foreign_host(&checked.host, names)) =>
            {
                Self::for_external(parts, checked, &lane.as_external, rules, target)
            }
            Lane::Agent(lane) => Ok(Self::for_agent(parts, checked, lane, rules, target, token)),
            Lane::External(lane) => Self::for_external(parts, checked, lane, rules, target),
        }
    }

    /// Builds the head of an agent's request, with the scope cap. A request to the gateway without
    /// `Authorization` gets the gateway's `token`, if a certificate proves the agent.
    fn for_agent(
        mut parts: Parts,
        checked: CheckedHead,
        lane: &AgentLane,
        rules: &RequestRules,
        target: &Target,
        token: Option<&HeaderValue>,
    ) -> Self {
        let is_upgrade = convert_to_gateway_form(&mut parts, checked.upgrade, &rules.policy);
        parts.headers.insert(HOST, target.host().clone());
        if let Some(scopes) = &lane.scopes {
            parts.headers.insert(X_OPENCLAW_SCOPES, scopes.clone());
        }
        if let Some(token) = token.filter(|_| lane.is_proved_by_certificate() && target.is_gateway())
            && !parts.headers.contains_key(AUTHORIZATION)
        {
            parts.headers.insert(AUTHORIZATION, token.clone());
        }
        let route = GatewayRoute { source: lane.source, target: target.address() };
        Self { parts, route, lane: HeadLane::Agent, is_upgrade, scopes: lane.scopes.clone() }
    }

    /// Builds the head of an external client's request: checks the path rules, and adds the
    /// forwarding headers and the scope cap.
    ///
    /// # Errors
    /// The path rules close the path, or the allow and deny lists refuse the request's client.
    fn for_external(
        mut parts: Parts,
        checked: CheckedHead,
        lane: &ExternalLane,
        rules: &RequestRules,
        target: &Target,
    ) -> Result<Self, RequestRefusal> {
        let (path, port) = (parts.uri.path(), target.address().port());
        check_path_rules(&parts.method, path, checked.upgrade.is_some(), &rules.paths, port)?;
        let forwarding = Forwarding::new(lane, &checked.host, &parts.headers, &rules.policy)
            .map_err(|_| RequestRefusal::ClientDenied)?;
        let is_upgrade = convert_to_gateway_form(&mut parts, checked.upgrade, &rules.policy);
        parts.headers.insert(HOST, checked.host);
        let written = forwarding.write(&mut parts.headers);
        // A trusted proxy may state a narrower cap, never a wider one. Only its value can be here:
        // `scrub_request` removed the client's, and `Forwarding::write` put back what
        // `external.identity_headers` allows.
        let stated = sole_value(&parts.headers, &X_OPENCLAW_SCOPES).cloned();
        let scopes = match (&lane.scopes, stated) {
            (Some(cap), Some(stated)) => Some(intersect_caps(cap, &stated)),
            (cap, stated) => cap.clone().or(stated),
        };
        if let Some(scopes) = &scopes {
            parts.headers.insert(X_OPENCLAW_SCOPES, scopes.clone());
        }
        let route = GatewayRoute { source: rules.external_source, target: target.address() };
        Ok(Self { parts, route, lane: HeadLane::External(written), is_upgrade, scopes })
    }

    /// The lane on which the request goes to the gateway. A connection of the agent lane may have
    /// requests on both.
    pub fn lane(&self) -> LaneKind {
        match self.lane {
            HeadLane::Agent => LaneKind::Agent,
            HeadLane::External(_) => LaneKind::External,
        }
    }

    /// The loopback source address that the gateway will see, and the address to connect to.
    pub fn route(&self) -> GatewayRoute {
        self.route
    }

    /// The requested path, without the query.
    pub fn path(&self) -> &str {
        self.parts.uri.path()
    }

    /// The client that the allow and deny lists were applied to; `None` on the agent lane, which
    /// has no such lists.
    pub fn client(&self) -> Option<IpAddr> {
        match self.lane {
            HeadLane::Agent => None,
            HeadLane::External(written) => Some(written.client()),
        }
    }

    /// The scope cap of the request, as the value of `X-OpenClaw-Scopes`; `None` means no cap.
    pub fn scope_cap(&self) -> Option<&HeaderValue> {
        self.scopes.as_ref()
    }

    /// The value of `Sec-WebSocket-Key`, if this is a WebSocket handshake of HTTP/1.1.
    pub fn websocket_key(&self) -> Option<&HeaderValue> {
        self.parts.headers.get(SEC_WEBSOCKET_KEY)
    }

    /// Removes `Sec-WebSocket-Extensions`, so that the gateway enables none, and loopgate can read
    /// messages uncompressed.
    pub fn remove_websocket_extensions(&mut self) {
        self.parts.headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    }

    /// Returns whether the request asks for an upgrade.
    pub fn is_upgrade(&self) -> bool {
        self.is_upgrade
    }

    /// Returns whether the request may be sent twice: its method is safe (RFC 9110 section 9.2.1),
    /// and it asks for no upgrade.
    pub fn is_repeatable(&self) -> bool {
        self.parts.method.is_safe() && !self.is_upgrade
    }

    /// Replaces the client's trace context (`traceparent`) by `trace`.
    pub fn set_trace_context(&mut self, trace: &Trace) {
        trace.write(&mut self.parts.headers);
    }

    /// The head as it is sent.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Returns the emptied header map, for reuse by the response.
    pub fn into_empty_headers(self) -> HeaderMap {
        let mut headers = self.parts.headers;
        headers.clear();
        headers
    }

    /// Turns the head into a request to send.
    pub fn into_request<B>(self, body: B) -> http::Request<B> {
        http::Request::from_parts(self.parts, body)
    }
}

/// Converts a head to the form that both lanes send: an origin-form target, HTTP/1.1, and no field
/// that clients may not send. Returns whether it asks for an upgrade.
fn convert_to_gateway_form(parts: &mut Parts, upgrade: Option<HeaderValue>, policy: &LanePolicy) -> bool {
    let origin_form = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    parts.uri = Uri::from(origin_form);
    parts.version = Version::HTTP_11;
    scrub_request(&mut parts.headers, policy);
    let Some(protocol) = upgrade else { return false };
    parts.headers.remove(EXPECT);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(UPGRADE, protocol);
    true
}

/// Joins several `Cookie` fields into one.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_some() {
        let crumbs: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(COOKIE, joined);
        }
    }
}

/// Removes from a request the fields that `Connection` lists (except some that a request needs),
/// hop-by-hop fields, and fields that only loopgate may send.
fn scrub_request(headers: &mut HeaderMap, policy: &LanePolicy) {
    let listed: Vec<HeaderName> = connection_options(headers)
        .filter(|token| {
            !token.eq_ignore_ascii_case(b"close")
                && !token.eq_ignore_ascii_case(b"keep-alive")
                && !token.eq_ignore_ascii_case(b"upgrade")
        })
        // A client could remove these by listing them in `Connection`, which would change what the
        // request means. They stay.
        .filter(|token| {
            !matches!(
                token.to_ascii_lowercase().as_slice(),
                b"host" | b"authorization" | b"cookie" | b"origin" | b"content-length" | b"content-type"
            )
        })
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    let forbidden: Vec<HeaderName> =
        headers.keys().filter(|name| is_hop_by_hop(name) || policy.controls_header(name)).cloned().collect();
    for name in listed.iter().chain(&forbidden) {
        // `remove` removes all fields of this name.
        headers.remove(name);
    }
}

/// Removes from a request's trailers the fields that are removed from its head, and those that only
/// a head may have.
pub fn scrub_request_trailers(trailers: &mut HeaderMap, rules: &RequestRules) {
    scrub_request(trailers, &rules.policy);
    remove_head_fields(trailers);
}

/// Removes from a response's trailers hop-by-hop fields, and fields that only a head may have.
pub fn scrub_response_trailers(trailers: &mut HeaderMap) {
    scrub_response(trailers);
    remove_head_fields(trailers);
}

/// Removes fields for the framing, routing, authentication or processing of a message, which are
/// forbidden in trailers (RFC 9110 section 6.5.1).
fn remove_head_fields(trailers: &mut HeaderMap) {
    use http::header::{
        CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, MAX_FORWARDS, SET_COOKIE,
        TRAILER, TRANSFER_ENCODING,
    };
    let head_fields = [
        HOST,
        AUTHORIZATION,
        COOKIE,
        ORIGIN,
        SET_COOKIE,
        CACHE_CONTROL,
        EXPECT,
        MAX_FORWARDS,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        TRAILER,
        TRANSFER_ENCODING,
    ];
    let present: Vec<HeaderName> =
        trailers.keys().filter(|name| head_fields.iter().any(|head| is_same_if_folded(name, head))).cloned().collect();
    for name in present {
        trailers.remove(name);
    }
}

/// Removes hop-by-hop fields from a response of the gateway.
pub fn scrub_response(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> =
        connection_options(headers).filter_map(|token| HeaderName::from_bytes(token).ok()).collect();
    let forbidden: Vec<HeaderName> = headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in listed.iter().chain(&forbidden) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod listener_tests;
#[cfg(test)]
mod tests;

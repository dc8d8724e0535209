//! What a request says to the gateway: every head that goes upstream is made here, out of a lane.
//!
//! The newest gateway takes a request from the external lane's address for a local one when its forwarding headers are missing, so
//! [`GatewayHead`] has two constructors and no public field: one needs an [`AgentLane`], the other a [`Forwarding`], which is complete by
//! construction. The source address travels inside, so that no head can leave from the other lane's address either.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::header::{AUTHORIZATION, CONNECTION, COOKIE, EXPECT, HOST, ORIGIN, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};

use super::names::{is_alike, is_hop_by_hop, is_reserved};
use super::request::{Checked, check, is_host, tokens};
use super::{AgentLane, Denied, ExternalLane, Lane, Policy, Refusal, forwarded, page, path};
use crate::addr::says_nothing;
use crate::config::{Config, PathRule};
use crate::labels::LaneKind;
use crate::pki::SubjectName;
use crate::trace::Trace;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_USER: HeaderName = HeaderName::from_static("x-forwarded-user");
const X_OPENCLAW_SCOPES: HeaderName = HeaderName::from_static("x-openclaw-scopes");
const HTTPS: HeaderValue = HeaderValue::from_static("https");
const HTTP: HeaderValue = HeaderValue::from_static("http");

/// A client's address in the form that the gateway may be told: never one that says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatedClient(HeaderValue);

impl StatedClient {
    /// States `ip`, or `unknown` where `ip` is loopback or unspecified: the gateway would take such a client for a local one.
    pub fn new(ip: IpAddr, unknown: IpAddr) -> Self {
        let ip = if says_nothing(ip) { unknown } else { ip };
        // TEST-NET-1 once more, should somebody have configured an unknown client that says nothing either.
        let ip = if says_nothing(ip) { IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)) } else { ip };
        Self(HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("192.0.2.1")))
    }
}

/// The forwarding headers of one request on the external lane, complete by construction.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// Whom the lists were asked about.
    judged: IpAddr,
    client: StatedClient,
    proto: HeaderValue,
    host: HeaderValue,
    identity: Vec<(HeaderName, HeaderValue)>,
}

/// What heads are made by: the part of the configuration that concerns them.
#[derive(Clone, Debug)]
pub struct Rules {
    policy: Policy,
    paths: Vec<PathRule>,
    max_fields: usize,
    external_source: Ipv4Addr,
    gateway_host: HeaderValue,
}

impl Rules {
    /// Takes what concerns heads out of `config`; `gateway` is the address that the gateway listens on.
    pub fn new(config: &Config, gateway: SocketAddr) -> Self {
        Self {
            policy: Policy::new(config),
            paths: config.external.paths.clone(),
            max_fields: config.limits.head_fields,
            external_source: config.gateway.external_source,
            gateway_host: HeaderValue::from_str(&gateway.to_string()).unwrap_or(HeaderValue::from_static("127.0.0.1")),
        }
    }

    /// The policy that lanes are decided by.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

/// A request head as the gateway will hear it, and the loopback address that it will hear it from.
#[derive(Debug)]
pub struct GatewayHead {
    parts: Parts,
    source: Ipv4Addr,
    lane: LaneKind,
    client: Option<IpAddr>,
    upgrade: bool,
}

impl GatewayHead {
    /// Makes the head of a request that came in on `lane`. `token` is the gateway's, for agents that inherit it; `names` are the certificate's.
    ///
    /// A request on an agent's connection that a web page causes is not the agent's, and goes out as external.
    ///
    /// # Errors
    /// Why the request must not be forwarded.
    pub fn new(
        parts: Parts,
        lane: &Lane,
        rules: &Rules,
        token: Option<&HeaderValue>,
        names: &BTreeSet<SubjectName>,
    ) -> Result<Self, Refusal> {
        let checked = check(&parts, rules.max_fields)?;
        match lane {
            Lane::Agent(lane) if page::is_browsers(&parts.headers) || (lane.is_attested() && page::is_strange(&checked.host, names)) => {
                Self::for_external(parts, checked, &lane.as_external, rules)
            }
            Lane::Agent(lane) => Ok(Self::for_agent(parts, checked, lane, rules, token)),
            Lane::External(lane) => Self::for_external(parts, checked, lane, rules),
        }
    }

    fn for_agent(mut parts: Parts, checked: Checked, lane: &AgentLane, rules: &Rules, token: Option<&HeaderValue>) -> Self {
        let upgrade = prepare(&mut parts, checked.upgrade, &rules.policy);
        parts.headers.insert(HOST, rules.gateway_host.clone());
        if let Some(scopes) = &lane.scopes {
            parts.headers.insert(X_OPENCLAW_SCOPES, scopes.clone());
        }
        if let Some(token) = token.filter(|_| lane.is_attested())
            && !parts.headers.contains_key(AUTHORIZATION)
        {
            parts.headers.insert(AUTHORIZATION, token.clone());
        }
        Self { parts, source: lane.source, lane: LaneKind::Agent, client: None, upgrade }
    }

    fn for_external(mut parts: Parts, checked: Checked, lane: &ExternalLane, rules: &Rules) -> Result<Self, Refusal> {
        path::judge(&parts.method, parts.uri.path(), &rules.paths)?;
        let forwarding = Forwarding::new(lane, &checked.host, &parts.headers, &rules.policy).map_err(|_| Refusal::ClientDenied)?;
        let client = Some(forwarding.judged);
        let upgrade = prepare(&mut parts, checked.upgrade, &rules.policy);
        parts.headers.insert(HOST, checked.host);
        forwarding.write(&mut parts.headers);
        Ok(Self { parts, source: rules.external_source, lane: LaneKind::External, client, upgrade })
    }

    /// The lane that it leaves on.
    pub fn lane(&self) -> LaneKind {
        self.lane
    }

    /// The loopback address that the gateway will see.
    pub fn source(&self) -> Ipv4Addr {
        self.source
    }

    /// On the external lane, the client that the lists let pass.
    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// Whether it asks to leave HTTP.
    pub fn is_upgrade(&self) -> bool {
        self.upgrade
    }

    /// Whether sending it twice does no harm beyond sending it once (RFC 9110 section 9.2.2) and its method has no body by custom.
    pub fn is_repeatable(&self) -> bool {
        self.parts.method.is_safe() && !self.upgrade
    }

    /// The same head once more, for a second try.
    pub fn duplicate(&self) -> Self {
        Self { parts: self.parts.clone(), source: self.source, lane: self.lane, client: self.client, upgrade: self.upgrade }
    }

    /// Has it say where in its trace it is, in place of what the client said of that.
    pub fn follow(&mut self, trace: &Trace) {
        trace.write(&mut self.parts.headers);
    }

    /// Gives up the head, to be sent; what it holds is read only from here on.
    pub fn into_request<B>(self, body: B) -> http::Request<B> {
        http::Request::from_parts(self.parts, body)
    }
}

impl ExternalLane {
    /// Whose a request with the `sent` headers is: of whom a trusted proxy names in them, or else of whom the connection is.
    pub fn client_of(&self, sent: &HeaderMap, policy: &Policy) -> IpAddr {
        let named = self.trusted_proxy.then(|| forwarded::client(sent, |ip| policy.is_trusted_proxy(ip)));
        named.flatten().unwrap_or(self.client)
    }
}

impl Forwarding {
    /// What the gateway is told of a request for `host` on `lane`. Only a trusted proxy's `sent` headers are listened to.
    ///
    /// # Errors
    /// The allow and deny lists refuse the client: one that a trusted proxy named, or one that was let in as an agent.
    pub fn new(lane: &ExternalLane, host: &HeaderValue, sent: &HeaderMap, policy: &Policy) -> Result<Self, Denied> {
        let judged = lane.client_of(sent, policy);
        policy.listed(judged)?;
        let mut forwarding = Self { judged, client: lane.stated.clone(), proto: HTTPS, host: host.clone(), identity: Vec::new() };
        if let Some(user) = &lane.user {
            forwarding.identity.push((X_FORWARDED_USER, user.clone()));
        }
        if !lane.trusted_proxy {
            return Ok(forwarding);
        }
        forwarding.client = StatedClient::new(judged, policy.unknown_client);
        if only(sent, &X_FORWARDED_PROTO).is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"http")) {
            forwarding.proto = HTTP;
        }
        if let Some(host) = only(sent, &X_FORWARDED_HOST).filter(|host| is_host(host.as_bytes())) {
            forwarding.host = host.clone();
        }
        for name in &policy.identity_headers {
            if let Some(value) = only(sent, name) {
                forwarding.identity.retain(|(known, _)| known != name);
                forwarding.identity.push((name.clone(), value.clone()));
            }
        }
        Ok(forwarding)
    }

    fn write(self, headers: &mut HeaderMap) {
        // Identity first: should one of its names be a forwarding header's, ours wins.
        for (name, value) in self.identity {
            headers.insert(name, value);
        }
        headers.insert(X_FORWARDED_FOR, self.client.0);
        headers.insert(X_FORWARDED_PROTO, self.proto);
        headers.insert(X_FORWARDED_HOST, self.host);
    }
}

/// The value of a header that occurs exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// What both lanes do: origin-form target, HTTP/1.1, and none of the fields that are not the client's to send.
fn prepare(parts: &mut Parts, upgrade: Option<HeaderValue>, policy: &Policy) -> bool {
    let origin_form = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    parts.uri = Uri::from(origin_form);
    // HTTP/2 may split cookies over several fields, HTTP/1.1 may not (RFC 9113 section 8.2.3).
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    parts.version = Version::HTTP_11;
    scrub(&mut parts.headers, policy);
    let Some(protocol) = upgrade else { return false };
    parts.headers.remove(EXPECT);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(UPGRADE, protocol);
    true
}

fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_some() {
        let crumbs: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(COOKIE, joined);
        }
    }
}

/// Removes what `Connection` lists, what is hop-by-hop anyway, and what only loopgate may say.
fn scrub(headers: &mut HeaderMap, policy: &Policy) {
    let listed: Vec<HeaderName> = tokens(headers)
        .filter(|token| {
            !token.eq_ignore_ascii_case(b"close") && !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"upgrade")
        })
        // `Host`, or what carries the client's credentials, can't be talked away: that would change what the request means.
        .filter(|token| {
            !matches!(
                token.to_ascii_lowercase().as_slice(),
                b"host" | b"authorization" | b"cookie" | b"origin" | b"content-length" | b"content-type"
            )
        })
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    let own: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_hop_by_hop(name) || is_reserved(name) || policy.identity_headers.iter().any(|identity| is_alike(name, identity)))
        .cloned()
        .collect();
    for name in listed.iter().chain(&own) {
        // `remove` takes every line of a name, though it returns but one.
        headers.remove(name);
    }
}

/// Removes from a request's trailers what its head may not say either.
pub fn scrub_trailers(trailers: &mut HeaderMap, rules: &Rules) {
    scrub(trailers, &rules.policy);
    let heads_only = [HOST, AUTHORIZATION, COOKIE, ORIGIN, http::header::CONTENT_LENGTH];
    let found: Vec<HeaderName> = trailers.keys().filter(|name| heads_only.iter().any(|head| is_alike(name, head))).cloned().collect();
    for name in found {
        trailers.remove(name);
    }
}

/// Removes from a response of the gateway what concerns its connection with loopgate only.
pub fn scrub_response(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = tokens(headers).filter_map(|token| HeaderName::from_bytes(token).ok()).collect();
    let own: Vec<HeaderName> = headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in listed.iter().chain(&own) {
        headers.remove(name);
    }
}

#[cfg(test)]
#[path = "headers_test.rs"]
mod tests;

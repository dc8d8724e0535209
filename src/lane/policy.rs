//! The configuration for lane decisions.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};
use ipnet::{IpNet, Ipv4Net};

use super::assignment::Denied;
use super::reserved_headers::{is_reserved, is_same_if_folded};
use crate::config::{Config, OwnAddresses};

/// The part of the configuration that lane decisions read. A field without a comment holds the
/// option of the same name.
#[derive(Clone, Debug)]
pub struct LanePolicy {
    /// Whether the gateway's address is loopback. Another gateway can't see the lanes' source
    /// addresses, which are loopback, so every client is external.
    pub(super) gateway_is_loopback: bool,
    pub(super) own_addresses: OwnAddresses,
    pub(super) agent_cidrs: Vec<IpNet>,
    certificate_from: Vec<IpNet>,
    /// Whether `tls.client_ca` is set, so that every client is asked for a certificate.
    has_client_ca: bool,
    pub(super) agent_uris: Vec<String>,
    /// The scope cap of agents without the label `loopgate.scopes` (`agents.scopes`); `None` means
    /// no cap.
    pub(super) agent_scopes: Option<HeaderValue>,
    /// The scope cap of the external lane (`external.scopes`); `None` means no cap.
    external_scopes: Option<HeaderValue>,
    pub(super) trust_domain: String,
    pub(super) agent_sources: Ipv4Net,
    trusted_proxies: Vec<IpNet>,
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    pub(super) unknown_client: IpAddr,
    pub(super) identity_headers: Vec<HeaderName>,
    keep_headers: Vec<HeaderName>,
}

impl LanePolicy {
    /// Copies the options that concern lanes from `config`.
    pub fn new(config: &Config) -> Self {
        Self {
            gateway_is_loopback: config.gateway.address.ip().is_loopback(),
            own_addresses: config.listen.own_addresses,
            agent_cidrs: config.agents.cidrs.clone(),
            certificate_from: config.agents.certificate_from.clone(),
            has_client_ca: config.tls.client_ca.is_some(),
            agent_uris: config.agents.uris.clone(),
            agent_scopes: (!config.agents.scopes.is_empty()).then(|| scope_cap(&config.agents.scopes)),
            external_scopes: (!config.external.scopes.is_empty()).then(|| scope_cap(&config.external.scopes)),
            trust_domain: config.agents.trust_domain.clone(),
            agent_sources: config.gateway.agent_sources,
            trusted_proxies: config.external.trusted_proxies.clone(),
            allow: config.external.allow.clone(),
            deny: config.external.deny.clone(),
            unknown_client: config.external.unknown_client,
            identity_headers: config.external.identity_headers.clone(),
            keep_headers: config.external.keep_headers.clone(),
        }
    }

    /// Returns the scope cap on the external lane of a client whose container has the cap
    /// `container_cap`.
    pub(super) fn external_scope_cap(&self, container_cap: Option<&HeaderValue>) -> Option<HeaderValue> {
        intersect_optional_caps(container_cap.cloned(), self.external_scopes.as_ref())
    }

    /// Returns whether `external.trusted_proxies` contains `ip`, so that a peer there may name its
    /// client.
    pub fn is_trusted_proxy(&self, ip: IpAddr) -> bool {
        any_net_contains(&self.trusted_proxies, ip)
    }

    /// Returns whether loopgate controls the header `name`: it removes what clients send, and may
    /// set a value itself.
    ///
    /// Only trusted proxies can set the headers in `external.identity_headers`.
    pub fn controls_header(&self, name: &HeaderName) -> bool {
        let listed = |list: &[HeaderName]| list.iter().any(|listed| is_same_if_folded(name, listed));
        listed(&self.identity_headers) || (is_reserved(name) && !listed(&self.keep_headers))
    }

    /// Returns whether certificates of `loopgate cert issue` are accepted from the address
    /// `client`.
    ///
    /// The condition is that `agents.certificate_from` contains the address, or that
    /// `tls.client_ca` is set, since every client is then asked for a certificate.
    pub(super) fn accepts_issued_certificates_from(&self, client: IpAddr) -> bool {
        self.has_client_ca || any_net_contains(&self.certificate_from, client)
    }

    /// Checks a client of the external lane against the allow and deny lists.
    ///
    /// # Errors
    /// The list that refuses the client.
    pub fn check_access_lists(&self, client: IpAddr) -> Result<(), Denied> {
        if any_net_contains(&self.deny, client) {
            Err(Denied::InDenyList)
        } else if !self.allow.is_empty() && !any_net_contains(&self.allow, client) {
            Err(Denied::NotInAllowList)
        } else {
            Ok(())
        }
    }
}

/// Formats `scopes` as the value of `X-OpenClaw-Scopes`. If a header can't hold them, the value is
/// empty, which allows no scope.
pub(super) fn scope_cap(scopes: &[String]) -> HeaderValue {
    HeaderValue::from_str(&scopes.join(",")).unwrap_or(HeaderValue::from_static(""))
}

/// Returns the scopes that a cap, a value of `X-OpenClaw-Scopes`, allows.
pub fn allowed_scopes(cap: &HeaderValue) -> impl Iterator<Item = &str> {
    cap.to_str().unwrap_or_default().split(',').map(str::trim).filter(|scope| !scope.is_empty())
}

/// Returns the cap that allows the scopes that both `a` and `b` allow.
pub(super) fn intersect_caps(a: &HeaderValue, b: &HeaderValue) -> HeaderValue {
    let both: Vec<_> =
        allowed_scopes(a).filter(|scope| allowed_scopes(b).any(|other| other == *scope)).map(str::to_owned).collect();
    scope_cap(&both)
}

/// Returns the intersection of two caps, either of which may be absent; `None` means no cap.
pub(super) fn intersect_optional_caps(a: Option<HeaderValue>, b: Option<&HeaderValue>) -> Option<HeaderValue> {
    match (a, b) {
        (Some(a), Some(b)) => Some(intersect_caps(&a, b)),
        (a, b) => a.or_else(|| b.cloned()),
    }
}

fn any_net_contains(nets: &[IpNet], ip: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&ip))
}

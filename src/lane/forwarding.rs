//! The forwarding headers of the external lane.
//!
//! Private fields ensure that only this file can make a [`Forwarding`] or a [`HeadersWritten`], so
//! that every head of the external lane has all of these headers.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::assignment::{Denied, ExternalLane};
use super::forwarded_client::ForwardedClient;
use super::policy::LanePolicy;
use super::request_check::is_host;
use super::scheme::Scheme;
use super::x_forwarded_for;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const X_FORWARDED_USER: HeaderName = HeaderName::from_static("x-forwarded-user");

/// The forwarding headers of one request on the external lane. [`Forwarding::new`] always sets all
/// of them.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// The address that the allow and deny lists were applied to.
    checked_client: IpAddr,
    stated_client: ForwardedClient,
    scheme: Scheme,
    host: HeaderValue,
    identity: Vec<(HeaderName, HeaderValue)>,
}

/// Proof that the forwarding headers were written: only [`Forwarding::write`] returns it.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadersWritten {
    checked_client: IpAddr,
}

impl HeadersWritten {
    /// The address that the allow and deny lists were applied to.
    pub(super) fn client(self) -> IpAddr {
        self.checked_client
    }
}

impl ExternalLane {
    /// Returns the request's client: the one that a trusted proxy names in the `sent` headers, else
    /// the connection's.
    pub fn request_client(&self, sent: &HeaderMap, policy: &LanePolicy) -> IpAddr {
        let named =
            self.is_trusted_proxy.then(|| x_forwarded_for::client_address(sent, |ip| policy.is_trusted_proxy(ip)));
        named.flatten().unwrap_or(self.client)
    }
}

impl Forwarding {
    /// Makes the forwarding headers of a request for `host` on `lane`. Only a trusted proxy's
    /// `sent` headers count.
    ///
    /// # Errors
    /// The allow and deny lists refuse the request's client. `lane` may be that of a web page on an
    /// agent's connection, to which the lists were not applied before.
    pub fn new(lane: &ExternalLane, host: &HeaderValue, sent: &HeaderMap, policy: &LanePolicy) -> Result<Self, Denied> {
        let checked_client = lane.request_client(sent, policy);
        policy.check_access_lists(checked_client)?;
        let mut forwarding = Self {
            checked_client,
            stated_client: lane.forwarded_client.clone(),
            scheme: lane.scheme,
            host: host.clone(),
            identity: Vec::new(),
        };
        if let Some(user) = &lane.user {
            forwarding.identity.push((X_FORWARDED_USER, user.clone()));
        }
        if !lane.is_trusted_proxy {
            return Ok(forwarding);
        }
        forwarding.stated_client = ForwardedClient::address_or_placeholder(checked_client, policy.unknown_client);
        if let Some(stated) = sole_value(sent, &X_FORWARDED_PROTO).and_then(Scheme::parse) {
            forwarding.scheme = stated;
        }
        if let Some(host) = sole_value(sent, &X_FORWARDED_HOST).filter(|host| is_host(host.as_bytes())) {
            forwarding.host = host.clone();
        }
        for name in &policy.identity_headers {
            if let Some(value) = sole_value(sent, name) {
                forwarding.identity.retain(|(known, _)| known != name);
                forwarding.identity.push((name.clone(), value.clone()));
            }
        }
        Ok(forwarding)
    }

    /// Writes the forwarding headers into the `headers` of a request, from which those of the
    /// client were removed.
    pub(super) fn write(self, headers: &mut HeaderMap) -> HeadersWritten {
        // Identity headers first, so that the forwarding headers replace them if a name occurs in
        // both.
        for (name, value) in self.identity {
            headers.insert(name, value);
        }
        headers.insert(X_FORWARDED_FOR, self.stated_client.into_value());
        headers.insert(X_FORWARDED_PROTO, self.scheme.into_value());
        headers.insert(X_FORWARDED_HOST, self.host);
        HeadersWritten { checked_client: self.checked_client }
    }
}

/// Returns the value of a header that occurs exactly once; `None` otherwise.
pub(super) fn sole_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

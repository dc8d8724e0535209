//! A request as the gateway received it, which the gateway shows and the self-check reads.

use std::net::{Ipv4Addr, SocketAddr};

use http::request::Parts;
use serde::{Deserialize, Serialize};

use super::classify::{Class, classify_with_reason};

/// One request as the gateway received it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Received {
    /// The peer of the TCP connection.
    pub(super) from: SocketAddr,
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// All header fields in the order received, with names in lower case.
    pub(super) headers: Vec<(String, String)>,
    /// How the newest OpenClaw would classify the client.
    #[serde(rename = "judged")]
    pub(super) class: Class,
    /// The reason, in a sentence.
    #[serde(rename = "because")]
    pub(super) reason: String,
}

impl Received {
    /// Records `head`, from `from`, for a gateway that trusts the proxy at `trusted`.
    pub(super) fn new(from: SocketAddr, head: &Parts, trusted: Ipv4Addr) -> Self {
        let (class, reason) = classify_with_reason(from.ip(), trusted.into(), &head.headers);
        let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            from,
            method: head.method.to_string(),
            target: head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
            headers: head.headers.iter().map(field).collect(),
            class,
            reason,
        }
    }

    /// Returns the request as indented JSON.
    pub(super) fn to_json(&self) -> String {
        // Serialization can't fail, since there are only numbers, strings and lists.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Returns all values of the field `name`, which must be in lower case.
    pub(super) fn values_of(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Returns the fields that state the client's address or identity, sorted.
    pub(super) fn attribution_fields(&self) -> Vec<(&str, &str)> {
        let says_who = self.headers.iter().filter(|(name, _)| is_attribution(name));
        let mut fields: Vec<_> = says_who.map(|(name, value)| (name.as_str(), value.as_str())).collect();
        fields.sort_unstable();
        fields
    }
}

/// Returns whether the field `name` states the client's address or identity.
pub(super) fn is_attribution(name: &str) -> bool {
    matches!(name, "forwarded" | "via" | "x-real-ip")
        || ["x-forwarded-", "tailscale-", "x-openclaw-"].iter().any(|p| name.starts_with(p))
}

//! What the gateway is told about a client, as it shows it and as the self-check reads it.

use std::net::{Ipv4Addr, SocketAddr};

use http::request::Parts;
use serde::{Deserialize, Serialize};

use super::judge::{Judgement, judge};

/// One request as it reached the gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Told {
    /// The far end of the TCP connection.
    pub(super) from: SocketAddr,
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// Every field in its order, names in lower case.
    pub(super) headers: Vec<(String, String)>,
    /// What the newest OpenClaw would take the client for.
    pub(super) judged: Judgement,
    /// Why, in a sentence.
    pub(super) because: String,
}

impl Told {
    /// What `head`, from `from`, tells a gateway that trusts the proxy at `trusted`.
    pub(super) fn new(from: SocketAddr, head: &Parts, trusted: Ipv4Addr) -> Self {
        let (judged, because) = judge(from.ip(), trusted.into(), &head.headers);
        let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            from,
            method: head.method.to_string(),
            target: head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
            headers: head.headers.iter().map(field).collect(),
            judged,
            because,
        }
    }

    /// The same for programs, and indented for people.
    pub(super) fn to_json(&self) -> String {
        // Numbers, text and lists: there is nothing in it that JSON can't say.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Every value of `name`, which is in lower case.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The fields that say where the request came from or who sent it, sorted.
    pub(super) fn attribution(&self) -> Vec<(&str, &str)> {
        let says_who = self.headers.iter().filter(|(name, _)| is_attribution(name));
        let mut fields: Vec<_> = says_who.map(|(name, value)| (name.as_str(), value.as_str())).collect();
        fields.sort_unstable();
        fields
    }
}

/// Says whether a field states where a request came from or who sent it.
pub(super) fn is_attribution(name: &str) -> bool {
    matches!(name, "forwarded" | "via" | "x-real-ip") || ["x-forwarded-", "tailscale-", "x-openclaw-"].iter().any(|p| name.starts_with(p))
}

//! Whether a request on an agent's connection is a web page's: a browser in the agent's container is on that connection too, and whom it obeys
//! is nobody that the operator named.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::header::ORIGIN;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::pki::SubjectName;

/// Which site caused a request (W3C Fetch Metadata). Browsers alone send it, and where no `Origin` is: with navigations, images and the like.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Says whether `headers` are a browser's.
pub(super) fn is_browsers(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || headers.contains_key(SEC_FETCH_SITE)
}

/// Says whether `host`, with its port or without, is a name that a stranger may have resolve to here: one with a dot that is neither below
/// `localhost` nor of the certificate's `names`.
///
/// `loopgate agent` speaks plain HTTP on 127.0.0.1, where a page may have its own name lead (DNS rebinding). Browsers then send neither `Origin` nor
/// fetch metadata, and a page can't choose their `Host`. Over TLS the certificate is in the way of that.
pub(super) fn is_strange(host: &HeaderValue, names: &BTreeSet<SubjectName>) -> bool {
    let Ok(host) = host.to_str() else { return true };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name);
    if host.starts_with('[') || !name.contains('.') || name.parse::<IpAddr>().is_ok() {
        return false;
    }
    let name = name.to_ascii_lowercase();
    let wildcard = name.split_once('.').map(|(_, parent)| SubjectName::Dns(format!("*.{parent}")));
    !name.ends_with(".localhost") && !wildcard.is_some_and(|wildcard| names.contains(&wildcard)) && !names.contains(&SubjectName::Dns(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_stranger_may_have() {
        let names = BTreeSet::from(["gateway", "gw.example.org", "*.example.net"].map(|name| SubjectName::Dns(name.into())));
        for (host, strange) in [
            ("127.0.0.1:18789", false),
            ("127.0.0.1", false),
            ("[::1]:18789", false),
            ("[::1]", false),
            ("localhost:18789", false),
            ("LocalHost", false),
            ("app.localhost:18789", false),
            ("gateway:18789", false),
            ("whatever", false),
            ("GW.example.org.:18789", false),
            ("a.example.net", false),
            ("a.b.example.net", true),
            ("example.net", true),
            ("evil.example:18789", true),
            ("evil.example.", true),
            ("127.0.0.1.evil.example", true),
            ("localhost.evil.example", true),
            ("evillocalhost.example", true),
            ("127.1", true),
        ] {
            assert_eq!(is_strange(&HeaderValue::from_str(host).unwrap(), &names), strange, "{host}");
        }
    }
}

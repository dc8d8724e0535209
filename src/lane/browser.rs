//! Detects requests that a web page causes. A browser in an agent's container can connect as the
//! agent, but its pages come from sites that the operator does not trust.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::header::{ORIGIN, REFERER};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use crate::pki::SubjectName;

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Returns whether a browser sent these `headers` of a request to `host`.
///
/// Signs of a browser are an `Origin`, fetch metadata (W3C Fetch Metadata), fields of a CORS
/// preflight (`Access-Control-Request-*`), and a `Referer` of another site.
pub(super) fn is_from_browser(headers: &HeaderMap, host: &HeaderValue) -> bool {
    headers.keys().any(|name| {
        *name == ORIGIN || name.as_str().starts_with("access-control-request-") || is_fetch_metadata(name, headers)
    }) || headers.get_all(REFERER).iter().any(|referer| !is_url_on_host(referer, host))
}

/// Returns whether `name` is fetch metadata of a browser. The built-in fetch of Node.js sends
/// `Sec-Fetch-Mode: cors` and no other fetch metadata, so that field alone is not a sign of a
/// browser.
fn is_fetch_metadata(name: &HeaderName, headers: &HeaderMap) -> bool {
    if *name != SEC_FETCH_MODE {
        return name.as_str().starts_with("sec-fetch-");
    }
    let mut modes = headers.get_all(SEC_FETCH_MODE).iter();
    modes.next().is_none_or(|mode| mode != "cors") || modes.next().is_some()
}

/// Returns whether the URL `referer` is on `host`, with the same port.
fn is_url_on_host(referer: &HeaderValue, host: &HeaderValue) -> bool {
    let authority =
        referer.to_str().ok().and_then(|url| url.parse::<Uri>().ok()).and_then(|url| url.into_parts().authority);
    authority.is_some_and(|authority| authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()))
}

/// Returns whether a browser might send a page's request to `host` without `Origin` and fetch
/// metadata, so that [`is_from_browser`] can't recognize it. `host` may have a port.
///
/// Browsers send fetch metadata to potentially trustworthy hosts: 127.0.0.0/8, `::1`, `localhost`
/// and names below it (W3C Secure Contexts, section 3.1). The `names` of loopgate's certificate are
/// not foreign either: over TLS the browser's certificate check prevents the attack.
///
/// The attack: `loopgate agent` serves plain HTTP on 127.0.0.1. A page can resolve its own domain
/// name to this address (DNS rebinding), or write the address in a form that browsers don't regard
/// as loopback: `[::ffff:127.0.0.1]`, `0.0.0.0`, or another name in `/etc/hosts`. Browsers then
/// omit `Origin` and fetch metadata, but a page can't choose the `Host` field.
pub(super) fn is_foreign_host(host: &HeaderValue, names: &BTreeSet<SubjectName>) -> bool {
    let Ok(host) = host.to_str() else { return true };
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(ip, _)| ip);
    let name = bracketed.unwrap_or_else(|| host.split_once(':').map_or(host, |(name, _)| name));
    let ip = if bracketed.is_some() { name.parse().map(IpAddr::V6) } else { name.parse().map(IpAddr::V4) };
    if let Ok(ip) = ip {
        // An IPv4-mapped IPv6 address is not converted to IPv4, since browsers don't regard it as
        // loopback.
        return !ip.is_loopback() && !names.contains(&SubjectName::Ip(ip));
    }
    let name = name.to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return false;
    }
    let name = name.strip_suffix('.').unwrap_or(&name);
    let wildcard = name.split_once('.').map(|(_, parent)| SubjectName::Dns(format!("*.{parent}")));
    !wildcard.is_some_and(|wildcard| names.contains(&wildcard)) && !names.contains(&SubjectName::Dns(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_foreign_unless_loopback_or_in_the_certificate() {
        let mut names =
            BTreeSet::from(["gateway", "gw.example.org", "*.example.net"].map(|name| SubjectName::Dns(name.into())));
        names.extend(["172.18.0.2", "fd00::2"].map(|ip| SubjectName::Ip(ip.parse().unwrap())));
        for (host, foreign) in [
            ("127.0.0.1:18789", false),
            ("127.0.0.1", false),
            ("[::1]:18789", false),
            ("[::1]", false),
            ("127.8.0.1:18789", false),
            ("172.18.0.2:18789", false),
            ("[fd00::2]:18789", false),
            ("172.18.0.3:18789", true),
            ("[fd00::3]", true),
            ("[::ffff:7f00:1]:18789", true),
            ("[::ffff:127.0.0.1]:18789", true),
            ("[::]:18789", true),
            ("0.0.0.0:18789", true),
            ("[127.0.0.1]", true),
            ("[::1", true),
            ("", true),
            ("localhost:18789", false),
            ("LocalHost", false),
            ("app.localhost:18789", false),
            ("gateway:18789", false),
            ("whatever", true),
            ("localhost4:18789", true),
            ("ip6-localhost", true),
            ("localhost.", true),
            ("app.localhost.", true),
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
            assert_eq!(is_foreign_host(&HeaderValue::from_str(host).unwrap(), &names), foreign, "{host}");
        }
    }
}

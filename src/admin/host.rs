//! Checks the `Host` of a request to the admin listener.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::HOST;
use http::uri::Authority;

use crate::pki::SubjectName;

/// Returns whether the `Host` in `headers` is an IP address, `localhost` or a name in the
/// certificate, or is missing. Other requests are refused.
///
/// This prevents DNS rebinding: a web page can make its own name resolve to 127.0.0.1, to read the
/// responses as those of its origin, but the browser then sends that name as `Host`. A request
/// without `Host` does not come from a browser.
pub(super) fn is_allowed(headers: &HeaderMap, names: &BTreeSet<SubjectName>) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, further) = (hosts.next(), hosts.next());
    let Some(host) = host else { return true };
    let Some(authority) =
        host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()).filter(|_| further.is_none())
    else {
        return false;
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host.parse::<IpAddr>().is_ok() || name == "localhost" || names.contains(&SubjectName::Dns(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_localhost_and_the_certificates_names_are_answered() {
        let names = BTreeSet::from([SubjectName::Dns("gateway".into()), SubjectName::Dns("*.example.org".into())]);
        let table: [(&[&str], bool); 14] = [
            (&[], true),
            (&["127.0.0.1:9180"], true),
            (&["127.0.0.1"], true),
            (&["[::1]:9180"], true),
            (&["172.18.0.2:9180"], true),
            (&["localhost:9180"], true),
            (&["LocalHost."], true),
            (&["gateway:9180"], true),
            (&["evil.example:9180"], false),
            (&["x.example.org"], false),
            (&["127.0.0.1.evil.example"], false),
            (&["localhost.evil.example"], false),
            (&["localhost", "evil.example"], false),
            (&[""], false),
        ];
        for (hosts, expected) in table {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, host.parse().unwrap());
            }
            assert_eq!(is_allowed(&headers, &names), expected, "{hosts:?}");
        }
    }
}

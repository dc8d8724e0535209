//! Header names that only loopgate may send to the gateway.

use http::HeaderName;

/// Names that carry a request's origin or sender. They are removed from every client's request.
///
/// These are the forwarding headers (RFC 7239 and their `X-` forms), and the names that common proxies and single-sign-on
/// front ends use for a client's address or a user.
const NAMES: &[&str] = &[
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "forwarded-for",
    "l5d-client-id",
    "remote-addr",
    "remote-email",
    "remote-groups",
    "remote-name",
    "remote-user",
    "true-client-ip",
    "via",
    "x-amzn-oidc-accesstoken",
    "x-amzn-oidc-data",
    "x-amzn-oidc-identity",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-cert",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-email",
    "x-envoy-external-address",
    "x-envoy-original-path",
    "x-goog-authenticated-user-email",
    "x-goog-authenticated-user-id",
    "x-goog-iap-jwt-assertion",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-remote-user",
    "x-rewrite-url",
    "x-user",
    "x-user-email",
];

/// Beginnings of such names.
const PREFIXES: &[&str] = &[
    "cf-access-",
    "ssl-client-",
    "tailscale-",
    "x-auth-request-",
    "x-authentik-",
    "x-forwarded-",
    "x-ms-client-principal",
    "x-openclaw-",
    "x-original-forwarded-",
    "x-pomerium-",
    "x-ssl-client-",
    "x-token-subject",
    "x-webauth-",
];

/// Says whether `name` is reserved. `_` and `.` count as `-`, since servers that make CGI variables of headers fold them.
///
/// `HeaderName` is lower case already.
pub(super) fn is_reserved(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    // Most headers begin with none of these letters.
    if !matches!(name.first(), Some(b'c' | b'f' | b'l' | b'r' | b's' | b't' | b'v' | b'x')) {
        return false;
    }
    // Also `X-Forwarded` alone.
    NAMES.iter().any(|reserved| reserved.len() == name.len() && begins(name, reserved))
        || PREFIXES.iter().any(|prefix| begins(name, prefix))
        || (name.len() == "x-forwarded".len() && begins(name, "x-forwarded"))
}

/// Says whether `name` equals `other` to a server that folds `_` and `.` to `-`.
pub(super) fn is_alike(name: &HeaderName, other: &HeaderName) -> bool {
    name.as_str().len() == other.as_str().len() && begins(name.as_str().as_bytes(), other.as_str())
}

fn begins(name: &[u8], prefix: &str) -> bool {
    name.len() >= prefix.len() && name.iter().zip(prefix.as_bytes()).all(|(&n, &p)| n == p || (p == b'-' && matches!(n, b'_' | b'.')))
}

/// Says whether a field concerns one connection only (RFC 9110 section 7.6.1) and is never forwarded.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade")
        || matches!(name.as_str(), "proxy-authenticate" | "proxy-authorization" | "http2-settings")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names_in_every_spelling() {
        for name in [
            "Forwarded",
            "Via",
            "X-Forwarded",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "X-FORWARDED-ANYTHING",
            "X_Forwarded_For",
            "x-forwarded_for",
            "x.forwarded.for",
            "X-Real-IP",
            "X_Real_IP",
            "Tailscale-User-Login",
            "Tailscale_User_Name",
            "X-OpenClaw-Scopes",
            "x_openclaw_scopes",
            "X-Forwarded-User",
            "Remote-User",
            "X-Remote-User",
            "X-Auth-Request-Email",
            "X-Webauth-User",
            "Cf-Access-Jwt-Assertion",
            "True-Client-IP",
            "X-Pomerium-Jwt-Assertion",
            "CF-Connecting-IP",
            "X-Original-Forwarded-For",
        ] {
            assert!(is_reserved(&HeaderName::from_bytes(name.as_bytes()).unwrap()), "{name}");
        }
    }

    #[test]
    fn ordinary_names_are_not_reserved() {
        for name in [
            "accept",
            "authorization",
            "cookie",
            "content-type",
            "content-length",
            "referer",
            "range",
            "sec-websocket-key",
            "x-request-id",
            "traceparent",
            "x-api-key",
            "x-forward",
            "x-csrf-token",
            "origin",
            "host",
            "user-agent",
            "x-requested-with",
            "sec-fetch-site",
        ] {
            assert!(!is_reserved(&HeaderName::from_bytes(name.as_bytes()).unwrap()), "{name}");
        }
    }
}

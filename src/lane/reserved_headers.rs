//! Header names that clients may not send to the gateway, because they can carry an identity or a
//! client's address.
//!
//! A gateway, or one of its plugins, may be configured to believe any header of this kind. So a
//! name is reserved if one of these is true:
//!
//! - One of its words is in [`IDENTITY_WORDS`], or begins or ends with one of [`IDENTITY_AFFIXES`]
//!   (`X-Authenticated-User`).
//! - It begins with one of [`RESERVED_PREFIXES`] (`SM_UNIVERSALID`).
//! - It is one of [`RESERVED_NAMES`].
//!
//! [`OPENCLAW_REQUEST_HEADERS`] and [`WEBHOOK_HEADERS`] are exceptions, and so is the word `user`
//! before `agent`.
//!
//! Words are separated by every character but letters and digits, and each such character counts as
//! `-` in a comparison with a list. Servers that turn headers into CGI variables (RFC 3875 section
//! 4.1.18) don't distinguish `-`, `_` and other characters.

use http::HeaderName;

/// Request headers of the gateway's own HTTP API and webhooks, which are not reserved although they
/// begin with `X-OpenClaw-`.
///
/// These are the headers that the gateway's documentation (2026.9: `gateway/openai-http-api`,
/// `gateway/tools-invoke-http-api`, `gateway/config-hooks`, `automation/cron-jobs/webhooks`,
/// `tools/browser-control`, `plugins/webhooks`) and code (2026.2) read from clients.
/// `X-OpenClaw-Scopes` is not among them: it declares what the connection may do.
const OPENCLAW_REQUEST_HEADERS: &[&str] = &[
    "x-openclaw-account-id",
    "x-openclaw-agent",
    "x-openclaw-agent-id",
    "x-openclaw-idempotency-key",
    "x-openclaw-message-channel",
    "x-openclaw-message-to",
    "x-openclaw-model",
    "x-openclaw-password",
    "x-openclaw-relay-token",
    "x-openclaw-session-key",
    "x-openclaw-thread-id",
    "x-openclaw-token",
    "x-openclaw-webhook-secret",
];

/// Request headers of webhooks that are not reserved: they have a word that suggests an identity,
/// but state none.
const WEBHOOK_HEADERS: &[&str] = &[
    "ce-subject",
    "paypal-auth-algo",
    "paypal-cert-url",
    "x-okta-verification-challenge",
    "x-twilio-email-event-webhook-signature",
    "x-twilio-email-event-webhook-timestamp",
    "x-vercel-signature",
];

/// Reserved names without a reserved prefix or a word that suggests an identity.
const RESERVED_NAMES: &[&str] = &[
    "akamai-origin-hop",
    "cf-ipcountry",
    "cf-visitor",
    "cf-worker",
    "coming-from",
    "disguised-host",
    "employeenumber",
    "persistent-id",
    "proxy",
    "targeted-id",
    "x-act-as",
    "x-admin",
    "x-amzn-request-context",
    "x-client-host",
    "x-client-port",
    "x-coming-from",
    "x-envoy-original-path",
    "x-host",
    "x-http-host",
    "x-http-host-override",
    "x-id-token",
    "x-is-admin",
    "x-ms-original-url",
    "x-nginx-proxy",
    "x-on-behalf-of",
    "x-proto",
    "x-real-port",
    "x-run-as",
    "x-scheme",
    "x-scope-orgid",
    "x-up-calling-line-id",
    "x-url-scheme",
    "x-waws-unencoded-url",
];

/// Prefixes of the headers that proxies and single sign-on products set. `-ws` matches WebSphere's
/// `$WSRU`.
const RESERVED_PREFIXES: &[&str] = &[
    "-ws",
    "cas-",
    "cf-access-",
    "client-cert",
    "dapr-caller-",
    "eduperson",
    "fastly-",
    "gap-",
    "impersonate-",
    "iv-",
    "l5d-",
    "mellon-",
    "ngrok-auth-",
    "oam-",
    "oidc-",
    "osso-",
    "pf-auth-",
    "proxy-",
    "remote-",
    "shib-",
    "sm-",
    "ssl-client-",
    "tailscale-",
    "wl-proxy-",
    "x-amzn-mtls-",
    "x-amzn-oidc-",
    "x-anonymous-",
    "x-apigateway-",
    "x-appengine-",
    "x-auth-",
    "x-auth0-",
    "x-authentik-",
    "x-azure-",
    "x-client-cert",
    "x-client-dn",
    "x-client-verify",
    "x-consumer-",
    "x-credential-",
    "x-endpoint-api-",
    "x-envoy-",
    "x-forward-",
    "x-forwarded",
    "x-forwarder-",
    "x-goog-authenticated-",
    "x-goog-iap-",
    "x-hasura-",
    "x-istio-",
    "x-ms-client-",
    "x-ms-token-",
    "x-nf-",
    "x-okta-",
    "x-openclaw-",
    "x-original-",
    "x-pomerium-",
    "x-remote-",
    "x-rewrite-",
    "x-shib-",
    "x-ssl-",
    "x-tls-client-",
    "x-token-",
    "x-vercel-",
    "x-vouch-",
    "x-webauth-",
];

/// Words that suggest an identity or a client's address, sorted, without those that
/// [`IDENTITY_AFFIXES`] matches.
const IDENTITY_WORDS: &[&str] = &[
    "actor",
    "addr",
    "address",
    "affiliation",
    "assertion",
    "auth",
    "authenticated",
    "authn",
    "authorities",
    "authz",
    "claim",
    "claims",
    "clientip",
    "cn",
    "connecting",
    "displayname",
    "dn",
    "entitlement",
    "entitlements",
    "eppn",
    "forwarded",
    "givenname",
    "https",
    "identity",
    "impersonate",
    "impersonated",
    "ip",
    "ipv4",
    "ipv6",
    "ismemberof",
    "jwt",
    "kerberos",
    "krb",
    "ldap",
    "login",
    "mail",
    "memberof",
    "msisdn",
    "mtls",
    "netid",
    "nickname",
    "oidc",
    "openid",
    "originating",
    "permissions",
    "principal",
    "privileges",
    "realip",
    "remote",
    "remoteip",
    "saml",
    "scopes",
    "socketip",
    "spiffe",
    "ssl",
    "sso",
    "subject",
    "sudo",
    "tls",
    "trusted",
    "uid",
    "upn",
    "via",
];

/// Words that suggest an identity as the beginning or end of a compound, too (`smuser`, `userid`,
/// `clientcert`).
const IDENTITY_AFFIXES: &[&str] = &["cert", "email", "group", "role", "user"];

/// Returns whether a client's header `name` is removed, by the rule at the top of this file.
pub(super) fn is_reserved(name: &HeaderName) -> bool {
    // `HeaderName` is lower case already.
    let text = name.as_str();
    if is_common_unreserved_header(text) {
        return false;
    }
    let bytes = text.as_bytes();
    let equals = |reserved: &&str| reserved.len() == bytes.len() && starts_with_if_folded(bytes, reserved);
    if OPENCLAW_REQUEST_HEADERS.iter().chain(WEBHOOK_HEADERS).any(equals) {
        return false;
    }
    RESERVED_NAMES.iter().any(equals)
        || RESERVED_PREFIXES.iter().any(|prefix| starts_with_if_folded(bytes, prefix))
        || states_identity(bytes)
}

/// Returns whether `name` is one that most requests have and that is not reserved: a shortcut for
/// [`is_reserved`].
fn is_common_unreserved_header(name: &str) -> bool {
    matches!(
        name,
        "accept"
            | "accept-encoding"
            | "accept-language"
            | "authorization"
            | "cache-control"
            | "connection"
            | "content-length"
            | "content-type"
            | "cookie"
            | "host"
            | "origin"
            | "pragma"
            | "referer"
            | "upgrade"
            | "user-agent"
    ) || ["sec-fetch-", "sec-websocket-", "sec-ch-"].iter().any(|prefix| name.starts_with(prefix))
}

/// Returns whether a word of `name` suggests that the header carries an identity or a client's
/// address.
fn states_identity(name: &[u8]) -> bool {
    let mut words = name.split(|byte| !byte.is_ascii_alphanumeric()).peekable();
    while let Some(word) = words.next() {
        // `X-User-Agent` names a program.
        if word == b"user" && words.peek() == Some(&&b"agent"[..]) {
            continue;
        }
        if is_identity_word(word) {
            return true;
        }
    }
    false
}

/// Returns whether `word`, a part of a header name, suggests an identity or a client's address.
fn is_identity_word(word: &[u8]) -> bool {
    IDENTITY_WORDS.binary_search_by(|known| known.as_bytes().cmp(word)).is_ok() || has_identity_affix(word)
}

/// Returns whether `word` begins or ends with one of [`IDENTITY_AFFIXES`].
fn has_identity_affix(word: &[u8]) -> bool {
    IDENTITY_AFFIXES.iter().any(|part| word.starts_with(part.as_bytes()) || word.ends_with(part.as_bytes()))
}

/// Returns whether `name` equals `other` for a server that maps all characters but letters and
/// digits to one.
pub(super) fn is_same_if_folded(name: &HeaderName, other: &HeaderName) -> bool {
    let (name, other) = (name.as_str().as_bytes(), other.as_str().as_bytes());
    let same = |a: u8, b: u8| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric());
    name.len() == other.len() && name.iter().zip(other).all(|(&a, &b)| same(a, b))
}

/// Returns whether `name` begins with `prefix`, in which `-` matches every character but letters
/// and digits.
fn starts_with_if_folded(name: &[u8], prefix: &str) -> bool {
    name.len() >= prefix.len()
        && name.iter().zip(prefix.as_bytes()).all(|(&n, &p)| n == p || (p == b'-' && !n.is_ascii_alphanumeric()))
}

/// Returns whether a field is for one connection only (RFC 9110 section 7.6.1) and is never
/// forwarded.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

#[cfg(test)]
mod tests;

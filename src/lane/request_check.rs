//! Checks request heads before they are forwarded on either lane. Ambiguous requests are refused.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, StatusCode, Version};

/// Why a request is not forwarded; also its metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestRefusal {
    /// No `Host` and no `:authority`.
    MissingHost,
    /// More than one `Host`.
    DuplicateHost,
    /// A `Host` that is not a host with an optional port.
    BadHost,
    /// `Host` and the authority of the request's target differ (RFC 9112 section 3.2.2, RFC 9113
    /// section 8.3.1).
    AuthorityMismatch,
    /// More than one `Content-Length`, or one together with `Transfer-Encoding` (RFC 9112 section
    /// 6.3).
    AmbiguousLength,
    /// A `Transfer-Encoding` other than exactly `chunked`.
    BadTransferEncoding,
    /// A target that is neither a path nor, for `OPTIONS`, `*`.
    BadTarget,
    /// `CONNECT` other than that of a WebSocket over HTTP/2 (RFC 8441): loopgate is not a forward
    /// proxy.
    Connect,
    /// `TRACE`, whose response would show fields that loopgate and its proxies added (RFC 9110
    /// section 9.3.8).
    Trace,
    /// A `Content-Length` that is not a number below 2^63.
    BadLength,
    /// An upgrade with a body, or to more than one protocol.
    BadUpgrade,
    /// More fields than `limits.head_fields`.
    TooManyFields,
    /// A head over HTTP/2 that is larger than `limits.head_bytes`.
    HeadTooLarge,
    /// `[[external.paths]]` closes the path to external clients.
    PathDenied,
    /// A path that two parsers could read differently, while there are `[[external.paths]]`.
    AmbiguousPath,
    /// A request to the gateway's HTTP API from a client with a scope cap, which that API would
    /// ignore.
    ScopeCapped,
    /// The allow and deny lists refuse the client that a trusted proxy named, or a web page on an
    /// agent's connection; or the connection is no longer authorized.
    ClientDenied,
}

impl RequestRefusal {
    /// The status of the error response.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TooManyFields | Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::PathDenied | Self::ClientDenied | Self::ScopeCapped => StatusCode::FORBIDDEN,
            Self::Connect | Self::Trace => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The reason in one word: the metric's label, and the code in the error response.
    pub fn label(self) -> &'static str {
        match self {
            Self::MissingHost => "missing_host",
            Self::DuplicateHost => "duplicate_host",
            Self::BadHost => "bad_host",
            Self::AuthorityMismatch => "authority_mismatch",
            Self::AmbiguousLength => "ambiguous_length",
            Self::BadTransferEncoding => "bad_transfer_encoding",
            Self::BadTarget => "bad_target",
            Self::Connect => "connect",
            Self::Trace => "trace",
            Self::BadLength => "bad_length",
            Self::BadUpgrade => "bad_upgrade",
            Self::TooManyFields => "too_many_fields",
            Self::HeadTooLarge => "head_too_large",
            Self::PathDenied => "path_denied",
            Self::AmbiguousPath => "ambiguous_path",
            Self::ScopeCapped => "scope_capped",
            Self::ClientDenied => "client_denied",
        }
    }

    /// The message in the error response.
    pub fn text(self) -> &'static str {
        match self {
            Self::MissingHost => "The request names no host.",
            Self::DuplicateHost => "The request names more than one host.",
            Self::BadHost => "The Host field is malformed.",
            Self::AuthorityMismatch => "The Host field and the request's target name different hosts.",
            Self::AmbiguousLength => "The request states its length in more than one way.",
            Self::BadTransferEncoding => "The request's Transfer-Encoding is not supported.",
            Self::BadTarget => "The request's target is malformed.",
            Self::Connect => "loopgate is not a forward proxy.",
            Self::Trace => "The method TRACE is not allowed.",
            Self::BadLength => "The request's Content-Length is malformed.",
            Self::BadUpgrade => "The request's Upgrade is malformed.",
            Self::TooManyFields => "The request has too many header fields.",
            Self::HeadTooLarge => "The request's head is too large.",
            Self::PathDenied => "This path is closed to external clients.",
            Self::AmbiguousPath => "The request's path is ambiguous.",
            Self::ScopeCapped => {
                "This client has a scope cap (loopgate.scopes, agents.scopes or external.scopes), which the gateway's \
                 HTTP API would ignore."
            }
            Self::ClientDenied => "This client may not connect.",
        }
    }
}

/// What [`check_request`] reads from an acceptable head.
#[derive(Debug)]
pub(super) struct CheckedHead {
    /// The requested host, with the port if the client sent one.
    pub host: HeaderValue,
    /// The protocol to upgrade to, if the request asks for an upgrade.
    pub upgrade: Option<HeaderValue>,
}

/// Checks a request head, whose syntax hyper or h2 has checked before.
///
/// # Errors
/// The first reason to refuse it.
pub(super) fn check_request(parts: &Parts, upgrades: &[String]) -> Result<CheckedHead, RequestRefusal> {
    if parts.method == Method::CONNECT {
        return Err(RequestRefusal::Connect);
    }
    if parts.method == Method::TRACE {
        return Err(RequestRefusal::Trace);
    }
    let path = parts.uri.path();
    if !(path.starts_with('/') || (path == "*" && parts.method == Method::OPTIONS)) {
        return Err(RequestRefusal::BadTarget);
    }
    let host = requested_host(parts)?;
    check_length(parts)?;
    let upgrade = requested_upgrade(parts, upgrades)?;
    Ok(CheckedHead { host, upgrade })
}

/// Returns the number of fields of a head over HTTP/2. All `Cookie` fields count as one, since
/// HTTP/2 may split it (RFC 9113 section 8.2.3).
pub fn h2_field_count(parts: &Parts) -> usize {
    let cookies = parts.headers.get_all(COOKIE).iter().count();
    parts.headers.len() - cookies.saturating_sub(1)
}

/// Returns the size in bytes of a head over HTTP/2: names, values and 32 bytes for each field (RFC
/// 9113 section 6.5.2).
pub fn h2_head_size(parts: &Parts) -> usize {
    const PER_FIELD: usize = 32;
    let target = [
        (":method", parts.method.as_str()),
        (":scheme", parts.uri.scheme_str().unwrap_or_default()),
        (":authority", parts.uri.authority().map_or("", Authority::as_str)),
        (":path", parts.uri.path_and_query().map_or("", |path| path.as_str())),
    ];
    let target = target.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.len(), value.len()));
    let fields = parts.headers.iter().map(|(name, value)| (name.as_str().len(), value.len()));
    target.chain(fields).map(|(name, value)| name + value + PER_FIELD).sum()
}

/// Returns the host that `Host` or the authority of the target names.
///
/// # Errors
/// There is none or more than one `Host`, both are present and differ, or it is not a host.
fn requested_host(parts: &Parts) -> Result<HeaderValue, RequestRefusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (first_host, second_host) = (hosts.next(), hosts.next());
    if second_host.is_some() {
        return Err(RequestRefusal::DuplicateHost);
    }
    let target = parts.uri.authority();
    let host = match (first_host, target) {
        (Some(first_host), None) => first_host.clone(),
        (None, Some(target)) => HeaderValue::from_str(target.as_str()).map_err(|_| RequestRefusal::BadHost)?,
        (Some(first_host), Some(target)) if first_host.as_bytes().eq_ignore_ascii_case(target.as_str().as_bytes()) => {
            first_host.clone()
        }
        (Some(_), Some(_)) => return Err(RequestRefusal::AuthorityMismatch),
        (None, None) => return Err(RequestRefusal::MissingHost),
    };
    if is_host(host.as_bytes()) { Ok(host) } else { Err(RequestRefusal::BadHost) }
}

/// Returns whether `value` is a host with an optional port, and nothing else: no user, no blanks,
/// no list.
pub(super) fn is_host(value: &[u8]) -> bool {
    if is_simple_host(value) {
        return true;
    }
    let Ok(authority) = Authority::try_from(value) else { return false };
    let host = authority.host();
    let port = &authority.as_str()[host.len().min(authority.as_str().len())..];
    !host.is_empty()
        && !authority.as_str().contains('@')
        && !authority.as_str().contains(',')
        && (port.is_empty() || (port.len() > 1 && authority.port_u16().is_some()))
}

/// Returns whether `value` has the usual form of `Host`: letters, digits, dots and hyphens, with or
/// without a port. Unlike parsing an `Authority`, this does not allocate.
fn is_simple_host(value: &[u8]) -> bool {
    let (name, port) = match memchr::memrchr(b':', value) {
        Some(colon) => (&value[..colon], &value[colon + 1..]),
        None => (value, &b"0"[..]),
    };
    !name.is_empty()
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
        && (1..=5).contains(&port.len())
        && port.iter().all(u8::is_ascii_digit)
        && port.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
}

/// Checks that the request states its body's length at most once, in a form that every parser
/// accepts.
fn check_length(parts: &Parts) -> Result<(), RequestRefusal> {
    let mut encodings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let encoding = encodings.next();
    if encodings.next().is_some() || encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(RequestRefusal::BadTransferEncoding);
    }
    let lengths = parts.headers.get_all(CONTENT_LENGTH).iter().count();
    if parts.headers.get(CONTENT_LENGTH).is_some_and(|length| !is_valid_length(length.as_bytes())) {
        return Err(RequestRefusal::BadLength);
    }
    if lengths > 1 || (lengths == 1 && encoding.is_some()) { Err(RequestRefusal::AmbiguousLength) } else { Ok(()) }
}

/// Returns whether `value` is a number below 2^63, since many parsers use a signed integer of 64
/// bits.
fn is_valid_length(value: &[u8]) -> bool {
    let number = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    number.is_some_and(|text| text.parse::<i64>().is_ok())
}

/// Returns the protocol to upgrade to; `None` for a plain request.
///
/// An upgrade has `Upgrade` with one of the protocols `upgrades`, and `Connection: upgrade`. Any
/// other `Upgrade` of one protocol is ignored, as RFC 9110 section 7.8 permits.
///
/// # Errors
/// [`RequestRefusal::BadUpgrade`]: the request names several protocols, or has a body.
fn requested_upgrade(parts: &Parts, upgrades: &[String]) -> Result<Option<HeaderValue>, RequestRefusal> {
    let mut protocols = parts.headers.get_all(UPGRADE).iter();
    let Some(protocol) = protocols.next() else { return Ok(None) };
    let several = protocols.next().is_some() || protocol.as_bytes().contains(&b',');
    let lists_upgrade = connection_options(&parts.headers).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    // After an upgrade to HTTP/2 over clear text, requests would bypass the lane's rules.
    let is_http = protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2")
        || protocol.as_bytes().to_ascii_lowercase().starts_with(b"http");
    if !lists_upgrade || parts.version != Version::HTTP_11 && parts.version != Version::HTTP_2 || (!several && is_http)
    {
        return Ok(None);
    }
    if !several && !upgrades.iter().any(|known| protocol.as_bytes().eq_ignore_ascii_case(known.as_bytes())) {
        return Ok(None);
    }
    let has_body = parts.headers.contains_key(TRANSFER_ENCODING)
        || parts.headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if several || has_body || protocol.is_empty() {
        Err(RequestRefusal::BadUpgrade)
    } else {
        Ok(Some(protocol.clone()))
    }
}

/// Returns the options in all `Connection` fields of `headers`.
pub(super) fn connection_options(headers: &http::HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(CONNECTION).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn check(target: &str, fields: &[(&str, &str)]) -> Result<String, RequestRefusal> {
        let mut request = Request::builder().uri(target);
        if target == "CONNECT" {
            request = Request::builder().method(Method::CONNECT).uri("example.com:443");
        }
        if target == "TRACE" {
            request = Request::builder().method(Method::TRACE).uri("/");
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        check_request(&parts, &["websocket".to_owned()]).map(|checked| {
            format!(
                "{}{}",
                checked.host.to_str().unwrap(),
                checked.upgrade.map(|to| format!(" to {}", to.to_str().unwrap())).unwrap_or_default()
            )
        })
    }

    #[test]
    fn cookies_of_h2_count_as_one_field() {
        for (names, count) in
            [(&[][..], 0), (&["x", "y", "x"], 3), (&["cookie"], 1), (&["cookie", "x", "cookie", "cookie"], 2)]
        {
            let request = names.iter().fold(Request::builder(), |request, name| request.header(*name, "a"));
            assert_eq!(h2_field_count(&request.body(()).unwrap().into_parts().0), count, "{names:?}");
        }
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        let host = ("host", "a.example:8443");
        for (target, fields, expected) in [
            ("/", &[host][..], Ok("a.example:8443")),
            ("TRACE", &[host], Err(RequestRefusal::Trace)),
            ("/", &[host, ("content-length", "9223372036854775807")], Ok("a.example:8443")),
            ("/", &[host, ("content-length", "9223372036854775808")], Err(RequestRefusal::BadLength)),
            ("/", &[host, ("content-length", "18446744073709551616")], Err(RequestRefusal::BadLength)),
            ("/", &[host, ("content-length", "+3")], Err(RequestRefusal::BadLength)),
            ("/", &[host, ("content-length", "")], Err(RequestRefusal::BadLength)),
            ("/", &[host, ("upgrade", "tls/1.2"), ("connection", "upgrade")], Ok("a.example:8443")),
            ("/", &[host, ("upgrade", "WebSocket"), ("connection", "upgrade")], Ok("a.example:8443 to WebSocket")),
            ("/", &[("host", "[fd00::1]:8443")], Ok("[fd00::1]:8443")),
            ("/", &[("host", "172.18.0.2")], Ok("172.18.0.2")),
            ("http://a.example:8443/x", &[host], Ok("a.example:8443")),
            ("http://a.example:8443/x", &[], Ok("a.example:8443")),
            ("http://b.example/x", &[host], Err(RequestRefusal::AuthorityMismatch)),
            ("/", &[], Err(RequestRefusal::MissingHost)),
            ("/", &[host, host], Err(RequestRefusal::DuplicateHost)),
            ("/", &[("host", "")], Err(RequestRefusal::BadHost)),
            ("/", &[("host", "a b")], Err(RequestRefusal::BadHost)),
            ("/", &[("host", "a,b")], Err(RequestRefusal::BadHost)),
            ("/", &[("host", "user@a")], Err(RequestRefusal::BadHost)),
            ("/", &[("host", "a:99999")], Err(RequestRefusal::BadHost)),
            ("/", &[("host", "a:")], Err(RequestRefusal::BadHost)),
            ("/", &[("host", "a/b")], Err(RequestRefusal::BadHost)),
            ("CONNECT", &[host], Err(RequestRefusal::Connect)),
            ("/", &[host, ("content-length", "3"), ("content-length", "3")], Err(RequestRefusal::AmbiguousLength)),
            (
                "/",
                &[host, ("content-length", "3"), ("transfer-encoding", "chunked")],
                Err(RequestRefusal::AmbiguousLength),
            ),
            ("/", &[host, ("transfer-encoding", "gzip, chunked")], Err(RequestRefusal::BadTransferEncoding)),
            (
                "/",
                &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                Err(RequestRefusal::BadTransferEncoding),
            ),
            ("/", &[host, ("transfer-encoding", "chunked")], Ok("a.example:8443")),
            ("/", &[host, ("upgrade", "websocket")], Ok("a.example:8443")),
            (
                "/",
                &[host, ("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")],
                Ok("a.example:8443 to websocket"),
            ),
            (
                "/",
                &[host, ("upgrade", "websocket"), ("connection", "keep-alive"), ("connection", "upgrade")],
                Ok("a.example:8443 to websocket"),
            ),
            ("/", &[host, ("upgrade", "h2c"), ("connection", "upgrade")], Ok("a.example:8443")),
            ("/", &[host, ("upgrade", "h2c, websocket"), ("connection", "upgrade")], Err(RequestRefusal::BadUpgrade)),
            (
                "/",
                &[host, ("upgrade", "websocket"), ("connection", "upgrade"), ("content-length", "2")],
                Err(RequestRefusal::BadUpgrade),
            ),
        ] {
            assert_eq!(check(target, fields), expected.map(str::to_owned), "{target} {fields:?}");
        }
    }
}

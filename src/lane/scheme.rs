//! The scheme in `X-Forwarded-Proto`.

use http::HeaderValue;

/// The scheme with which a client sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP over TLS.
    Https,
    /// HTTP without TLS.
    Http,
}

impl Scheme {
    /// Parses the value of a trusted proxy's `X-Forwarded-Proto`; `None` if it is not one of
    /// `https`, `wss`, `http` and `ws`. Some proxies, such as Traefik, state `wss` or `ws` for a
    /// WebSocket.
    pub(super) fn parse(value: &HeaderValue) -> Option<Self> {
        let is = |scheme: &[u8]| value.as_bytes().eq_ignore_ascii_case(scheme);
        if is(b"https") || is(b"wss") { Some(Self::Https) } else { (is(b"http") || is(b"ws")).then_some(Self::Http) }
    }

    /// Returns the value of `X-Forwarded-Proto`.
    pub(super) fn into_value(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Https => "https",
            Self::Http => "http",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stated_scheme_is_https_or_http_in_any_case() {
        use Scheme::{Http, Https};
        for (value, scheme) in [
            ("https", Some(Https)),
            ("HTTPS", Some(Https)),
            ("wss", Some(Https)),
            ("http", Some(Http)),
            ("Ws", Some(Http)),
            ("", None),
            ("https, http", None),
            ("ftp", None),
        ] {
            assert_eq!(Scheme::parse(&HeaderValue::from_static(value)), scheme, "{value:?}");
        }
    }
}

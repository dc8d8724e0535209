"""Cases in which a peer passes and loopgate can't yet, each with the reason. Remove a case from here when it passes."""

EARLY = "hyper's server can't send interim responses of its user: https://github.com/hyperium/hyper/pull/4114 (HTTP/2; nothing for HTTP/1.1)"
TRAILERS = "hyper sends HTTP/1.1 trailers only if a Trailer field named them: https://github.com/hyperium/hyper/pull/3375"

LIMITS = {
    "Expect: 100-continue over h2, Java HttpClient": "hyper sends no 100 over HTTP/2: https://github.com/hyperium/hyper/issues/2743",
    "102 and 103 of the gateway, h1": EARLY,
    "102 and 103 of the gateway, h2": EARLY,
    "request trailers not named in Trailer, h1": TRAILERS,
    "response trailers not named in Trailer, h1": TRAILERS,
    'raw " < > and backtick in a target': "the http crate's Uri refuses these bytes, so that hyper answers 400; RFC 3986 forbids them unencoded",
    "pseudo-header fields in h2 trailers": "h2 drops them and goes on, where RFC 9113 section 8.1 has the request malformed; the gateway never gets them",
}

"""Cases in which a peer passes and loopgate can't yet, each with the reason. Remove a case from here when it passes."""

LIMITS = {
    "pseudo-header fields in h2 trailers": "h2 drops them and goes on, where RFC 9113 section 8.1 has the request malformed; the gateway never gets them"
    "them. To see them, loopgate would have to decode HPACK beside h2",
}

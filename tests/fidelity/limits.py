"""Cases in which a peer passes and loopgate can't yet, each with the reason. Remove a case from here when it passes."""

LIMITS = {
    "pseudo-header fields in h2 trailers": "h2 drops them and goes on, where RFC 9113 section 8.1 has the request malformed. The gateway "
    "never gets them. Not yet tried: to have h2 refuse such a block by a regular field that is put before it",
}

"""Cases that a peer passes and loopgate fails for now, each with the reason. Remove a case when loopgate passes it."""

LIMITS = {}

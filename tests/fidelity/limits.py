"""Cases in which a peer passes and loopgate can't yet, each with the reason. Remove a case from here when it passes."""

LIMITS = {}

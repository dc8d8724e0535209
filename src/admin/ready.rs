//! Readiness: derived anew each time from what is the case, never latched.

/// What readiness depends on, at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// How many addresses are listened on.
    pub doors: usize,
    /// Whether the certificate is valid now.
    pub certificate_valid: bool,
    /// Whether the gateway accepts connections.
    pub gateway_accepts: bool,
    /// Whether the interfaces of this network namespace are gone with its owner.
    pub orphaned: bool,
    /// Whether the end has begun.
    pub stopping: bool,
}

/// Every reason against readiness; none means ready.
pub(super) fn reasons(facts: Facts) -> Vec<&'static str> {
    [
        (facts.stopping, "stopping"),
        (facts.orphaned, "the owner of this network namespace does not run"),
        (facts.doors == 0, "no address to listen on"),
        (!facts.certificate_valid, "the certificate is not valid now"),
        (!facts.gateway_accepts, "the gateway accepts no connection"),
    ]
    .into_iter()
    .filter_map(|(holds, reason)| holds.then_some(reason))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told() {
        let well = Facts { doors: 1, certificate_valid: true, gateway_accepts: true, orphaned: false, stopping: false };
        assert!(reasons(well).is_empty());
        assert_eq!(reasons(Facts { doors: 0, ..well }), ["no address to listen on"]);
        assert_eq!(reasons(Facts { stopping: true, gateway_accepts: false, ..well }), ["stopping", "the gateway accepts no connection"]);
        assert_eq!(reasons(Facts { orphaned: true, ..well }), ["the owner of this network namespace does not run"]);
        assert_eq!(reasons(Facts { certificate_valid: false, ..well }), ["the certificate is not valid now"]);
    }
}

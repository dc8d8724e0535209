//! The finding about the gateway's own device. OpenClaw 2026.2 pairs a local client silently for
//! the scopes of its first request, and never for more, so the gateway's sub-agents fail unless its
//! device was paired for all scopes at once.

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::openclaw::pair::SCOPES;

/// The state of the gateway's own device.
#[derive(Clone, Debug, Default)]
pub struct OwnDeviceObservation {
    /// Whether loopgate keeps the device paired, because `gateway.state_dir` is set.
    pub keeps_paired: bool,
    /// The scopes that the device is paired for; `None` if the state can't be read, or has no such
    /// device yet.
    pub scopes: Option<Vec<String>>,
}

/// Adds the finding about a gateway of version 2026.2. It depends on the scopes in the gateway's
/// `paired.json`; a configuration that keeps the device paired is not enough.
pub fn judge(observation: &OwnDeviceObservation, report: &mut Report) {
    let missing: Vec<&str> = match &observation.scopes {
        Some(scopes) => SCOPES.into_iter().filter(|scope| !scopes.iter().any(|has| has == scope)).collect(),
        None => SCOPES.to_vec(),
    };
    if missing.is_empty() {
        return report.add_passed("own device", "the gateway's own device is paired for all scopes");
    }
    let description = match &observation.scopes {
        Some(_) => format!("the gateway's own device is not paired for {}", missing.join(", ")),
        None if observation.keeps_paired => {
            "the state directory (gateway.state_dir) has no paired device of the gateway yet".into()
        }
        None => "the gateway's paired devices were not read: give --openclaw-config the openclaw.json in its state \
                 directory"
            .into(),
    };
    let remedy = if observation.keeps_paired {
        "see the sidecar's log for why it could not pair the device; it tries again within a minute, and approves the \
         device itself where the gateway wants an approval"
    } else {
        "give the sidecar the gateway's state directory and token: --gateway-state-dir DIR and --token-file FILE. Or, \
         where the gateway is, run once: loopgate pair --wait --approve --identity ~/.openclaw/identity/device.json \
         --token-file FILE"
    };
    // If no paired device was found, the file that was given may not belong to this gateway's
    // state.
    let is_unknown = observation.scopes.is_none() && !observation.keeps_paired;
    let kind = if is_unknown { &kind::OWN_DEVICE_UNKNOWN } else { &kind::OWN_DEVICE };
    report.add_finding(kind, description, Remedy::in_words(remedy));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paired_scopes_decide() {
        let of = |scopes: &[&str]| Some(scopes.iter().map(|scope| (*scope).to_owned()).collect());
        let table = [
            (false, None, &["own-device-unknown"][..], "were not read"),
            (
                false,
                of(&["operator.admin"]),
                &["own-device-unpaired"],
                "operator.approvals, operator.pairing, operator.read, operator.write",
            ),
            (false, of(&SCOPES), &[], ""),
            (true, None, &["own-device-unpaired"], "gateway.state_dir"),
            (true, of(&["operator.admin"]), &["own-device-unpaired"], "operator.approvals"),
            (true, of(&SCOPES), &[], ""),
        ];
        for (keeps_paired, scopes, ids, words) in table {
            let mut report = Report::default();
            judge(&OwnDeviceObservation { keeps_paired, scopes: scopes.clone() }, &mut report);
            assert_eq!(report.ids(), ids, "{keeps_paired} {scopes:?}");
            assert!(report.findings.iter().all(|finding| finding.seen[0].contains(words)), "{:?}", report.findings);
            // `check` fails only if it is known that sub-agents fail.
            assert_eq!(report.has_errors(), ids == ["own-device-unpaired"], "{keeps_paired} {scopes:?}");
        }
    }
}

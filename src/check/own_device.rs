//! Judges whether the gateway's own device may do all that its own sub-agents ask for. OpenClaw 2026.2 pairs a local client silently for
//! what its first request asks, and never for more.

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::openclaw::pair::SCOPES;

/// What was seen of it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Whether loopgate keeps it paired (`gateway.state_dir`).
    pub kept: bool,
    /// The scopes that it is paired for; `None` where the gateway's state was not seen, or has no such device yet.
    pub scopes: Option<Vec<String>>,
}

/// Judges it for a gateway of that old sort.
pub fn judge(seen: &Seen, report: &mut Report) {
    let missing: Vec<&str> = match &seen.scopes {
        Some(scopes) => SCOPES.into_iter().filter(|scope| !scopes.iter().any(|has| has == scope)).collect(),
        None => SCOPES.to_vec(),
    };
    if seen.kept || missing.is_empty() {
        return report.fine("own device", "the gateway's own device is paired for all scopes, or kept so");
    }
    let what = match &seen.scopes {
        Some(_) => format!("the gateway's own device is not paired for {}", missing.join(", ")),
        None => {
            "it was not seen that the gateway's own device is paired: --openclaw-config names the file beside which that is kept".into()
        }
    };
    let remedy = Remedy::words(
        "where the gateway is, run once: openclaw devices list; loopgate pair --identity ~/.openclaw/identity/device.json --token-file FILE; \
         openclaw devices approve REQUEST, as pair prints it. Or let loopgate see to it: --gateway-state-dir DIR and --token-file FILE",
    );
    report.find(&kind::OWN_DEVICE, what, remedy);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_paired_in_part_is_found() {
        let of = |scopes: &[&str]| Some(scopes.iter().map(|scope| (*scope).to_owned()).collect());
        let table = [
            (false, None, &["own-device-unpaired"][..], "was not seen"),
            (
                false,
                of(&["operator.admin"]),
                &["own-device-unpaired"],
                "operator.approvals, operator.pairing, operator.read, operator.write",
            ),
            (false, of(&SCOPES), &[], ""),
            (true, None, &[], ""),
            (true, of(&["operator.admin"]), &[], ""),
        ];
        for (kept, scopes, ids, words) in table {
            let mut report = Report::default();
            judge(&Seen { kept, scopes: scopes.clone() }, &mut report);
            assert_eq!(report.ids(), ids, "{kept} {scopes:?}");
            assert!(report.findings.iter().all(|finding| finding.seen[0].contains(words)), "{:?}", report.findings);
        }
    }
}

//! Findings about the gateway's files that loopgate is configured to read.

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::openclaw::files::UnreadableFile;

/// Adds a finding for each file that can't be read.
pub fn judge(unreadable: &[UnreadableFile], report: &mut Report) {
    for UnreadableFile { key, path, error } in unreadable {
        let remedy = Remedy::in_words(format!("mount it, readable for this user, or give {key} another path"));
        report.add_finding(&kind::GATEWAY_FILES, format!("{key} {}: {error}", path.display()), remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unreadable_file_is_a_finding() {
        let of = |key| UnreadableFile { key, path: "/nope".into(), error: "No such file or directory".into() };
        let mut report = Report::default();
        judge(&[of("gateway.token_file"), of("gateway.state_dir")], &mut report);
        assert_eq!(report.ids(), ["gateway-files", "gateway-files"]);
        assert!(report.findings[0].seen[0].starts_with("gateway.token_file /nope: "));
    }
}

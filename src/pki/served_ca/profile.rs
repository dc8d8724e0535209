//! A configuration profile for iOS, iPadOS and macOS that adds a root certificate (Apple's
//! Configuration Profile Reference).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;

use crate::fingerprint::Fingerprint;

/// Renders an unsigned profile with `certificate`. Its identifiers are derived from the
/// `fingerprint`, so that a device replaces an earlier download by a later one.
pub(super) fn render(certificate: &CertificateDer<'_>, fingerprint: &Fingerprint) -> String {
    let digits = fingerprint.to_string().replace(':', "");
    let (profile, payload) = digits.split_at(32);
    let identifier = format!("loopgate.ca.{}", digits[..16].to_ascii_lowercase());
    let data = STANDARD.encode(certificate);
    let (profile, payload) = (format_uuid(profile), format_uuid(payload));
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>PayloadContent</key>
	<array>
		<dict>
			<key>PayloadCertificateFileName</key>
			<string>loopgate-ca.crt</string>
			<key>PayloadContent</key>
			<data>{data}</data>
			<key>PayloadDisplayName</key>
			<string>loopgate CA</string>
			<key>PayloadIdentifier</key>
			<string>{identifier}.certificate</string>
			<key>PayloadType</key>
			<string>com.apple.security.root</string>
			<key>PayloadUUID</key>
			<string>{payload}</string>
			<key>PayloadVersion</key>
			<integer>1</integer>
		</dict>
	</array>
	<key>PayloadDescription</key>
	<string>Certificate authority of loopgate. SHA-256: {fingerprint}</string>
	<key>PayloadDisplayName</key>
	<string>loopgate CA</string>
	<key>PayloadIdentifier</key>
	<string>{identifier}</string>
	<key>PayloadType</key>
	<string>Configuration</string>
	<key>PayloadUUID</key>
	<string>{profile}</string>
	<key>PayloadVersion</key>
	<integer>1</integer>
</dict>
</plist>
"#
    )
}

/// Formats 32 hexadecimal digits as a UUID of version 8 (RFC 9562 section 5.8).
fn format_uuid(digits: &str) -> String {
    format!("{}-{}-8{}-8{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_from_the_certificate() {
        let profile_of = |byte: u8| {
            let certificate = CertificateDer::from(vec![byte; 40]);
            render(&certificate, &Fingerprint::of(&certificate))
        };
        assert_eq!(profile_of(1), profile_of(1));
        assert_ne!(profile_of(1), profile_of(2));
        let profile = profile_of(1);
        let ids: Vec<&str> = profile.lines().filter(|line| line.matches('-').count() == 4).collect();
        assert_eq!(ids.len(), 2, "{profile}");
        for id in ids {
            let id = id.trim().trim_start_matches("<string>").trim_end_matches("</string>");
            let lengths: Vec<usize> = id.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
        }
    }
}

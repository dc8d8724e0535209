//! The HTML page from which people download the CA's certificate. It has no scripts and loads no
//! other resources.

use std::fmt::Write;

use maud::{Markup, html};
use qrcode::{Color, EcLevel, QrCode};

use crate::fingerprint::Fingerprint;
use crate::html_page::html_page;

const STYLE: &str = include_str!("page.css");
/// The width of the margin around a QR code, in modules (ISO/IEC 18004 section 6.3.8).
const QUIET_ZONE: usize = 4;

/// Renders the page, with a QR code of `url` if it is given.
pub(super) fn render(fingerprint: &Fingerprint, url: Option<&str>) -> String {
    let body = html! {
        h1 { "The certificate authority of this gateway" }
        p { "A device that trusts it accepts the certificates that loopgate makes. SHA-256 fingerprint:" }
        p .fingerprint { (fingerprint) }
        p {
            "Compare it with what " code { "loopgate cert show" } " prints on the gateway's machine for the \
            CA. If they differ, or if you can't compare them, install nothing: this page may come from \
            somebody else."
        }
        h2 { "Install it" }
        dl {
            dt { a href="ca.mobileconfig" { "iPhone, iPad, Mac: profile" } }
            dd {
                "Then install it in Settings, General, VPN & Device Management, and switch it on in Settings, \
                General, About, Certificate Trust Settings."
            }
            dt { a href="ca.crt" { "Android, Windows: certificate (DER)" } }
            dd {
                "On Android in Settings, Security, Encryption & credentials, Install a certificate, CA \
                certificate."
            }
            dt { a href="ca.pem" { "Firefox, Linux, Node.js: certificate (PEM)" } }
            dd { "For OpenClaw's CLI and nodes: " code { "NODE_EXTRA_CA_CERTS=ca.pem" } }
        }
        @if let Some(code) = url.and_then(qr_code) {
            h2 { "This page on another device" }
            (code)
            @if let Some(url) = url { p .quiet { (url) } }
        }
    };
    html_page("certificate authority", STYLE, &html! {}, &body)
}

/// Draws a QR code of `text` as SVG; `None` if the text is too long.
fn qr_code(text: &str) -> Option<Markup> {
    let code = QrCode::with_error_correction_level(text, EcLevel::M).ok()?;
    let (width, colors) = (code.width(), code.to_colors());
    let mut path = String::new();
    for (y, row) in colors.chunks(width).enumerate() {
        for (x, _) in row.iter().enumerate().filter(|(_, color)| **color == Color::Dark) {
            let _ = write!(path, "M{} {}h1v1h-1z", x + QUIET_ZONE, y + QUIET_ZONE);
        }
    }
    let size = width + 2 * QUIET_ZONE;
    Some(html! {
        svg viewBox=(format!("0 0 {size} {size}")) role="img" aria-label="QR code of this page's address" {
            rect width=(size) height=(size) fill="#fff" {}
            path d=(path) fill="#000" {}
        }
    })
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;

    use super::*;

    #[test]
    fn the_page_names_the_fingerprint_and_loads_nothing() {
        let fingerprint = Fingerprint::of(&CertificateDer::from(vec![1, 2, 3]));
        let page = render(&fingerprint, Some("https://gateway.example.com:18789/.well-known/loopgate/ca"));
        assert!(page.contains(&fingerprint.to_string()) && page.contains("<svg"), "{page}");
        for loaded in ["<script", "src=", "@import", "url("] {
            assert!(!page.contains(loaded), "{page}");
        }
        for form in ["ca.mobileconfig", "ca.crt", "ca.pem"] {
            assert!(page.contains(&format!("href=\"{form}\"")), "{page}");
        }
        assert!(!render(&fingerprint, None).contains("<svg"));
        assert!(!render(&fingerprint, Some(&"x".repeat(4000))).contains("<svg"), "a text that no QR code can hold");
    }

    #[test]
    fn the_address_is_escaped() {
        let fingerprint = Fingerprint::of(&CertificateDer::from(vec![1, 2, 3]));
        assert!(!render(&fingerprint, Some("https://a\"><script>")).contains("<script"));
    }
}

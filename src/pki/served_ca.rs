//! loopgate's CA certificate in the formats in which clients install it (`external.serve_ca`).

mod page;
mod profile;

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::pem;
use crate::fingerprint::Fingerprint;
use crate::token_bucket::{Rate, TokenBucket};

/// The maximum number of QR codes that are drawn in a second. Drawing one takes a fraction of a
/// millisecond, and every client may request one.
const QR_CODES_PER_SECOND: u32 = 20;

/// The CA's certificate in each format in which clients install it. The formats are rendered once,
/// so that a request costs little. Only QR codes are drawn for each request.
#[derive(Debug)]
pub struct ServedCa {
    fingerprint: Fingerprint,
    pem: Bytes,
    der: Bytes,
    profile: Bytes,
    page: Bytes,
    qr_code_budget: Mutex<TokenBucket>,
}

impl ServedCa {
    /// Renders `certificate` in all formats.
    pub fn new(certificate: &CertificateDer<'_>) -> Self {
        let fingerprint = Fingerprint::of(certificate);
        Self {
            fingerprint,
            pem: pem::encode_certificates(std::slice::from_ref(certificate)).into(),
            der: Bytes::copy_from_slice(certificate),
            profile: profile::render(certificate, &fingerprint).into(),
            page: page::render(&fingerprint, None).into(),
            qr_code_budget: Mutex::new(TokenBucket::full(Instant::now())),
        }
    }

    /// Returns the certificate as PEM.
    pub fn pem(&self) -> Bytes {
        self.pem.clone()
    }

    /// Returns the certificate as DER.
    pub fn der(&self) -> Bytes {
        self.der.clone()
    }

    /// Returns the certificate as a configuration profile for Apple's systems.
    pub fn profile(&self) -> Bytes {
        self.profile.clone()
    }

    /// Returns the HTML page with links to the other formats. It has a QR code of `url`, the page's
    /// address, unless `QR_CODES_PER_SECOND` is exceeded.
    pub fn page(&self, url: Option<&str>) -> Bytes {
        let rate = Rate::per_second(QR_CODES_PER_SECOND);
        let may_draw =
            || self.qr_code_budget.lock().unwrap_or_else(PoisonError::into_inner).try_take(rate, Instant::now());
        match url.filter(|_| may_draw()) {
            Some(url) => page::render(&self.fingerprint, Some(url)).into(),
            None => self.page.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_requests_gets_pages_without_a_qr_code() {
        let ca = ServedCa::new(&CertificateDer::from(vec![1, 2, 3]));
        let has_code = |url| ca.page(url).windows(4).any(|part| part == b"<svg");
        assert!(!has_code(None));
        let drawn = (0..100).filter(|_| has_code(Some("https://gateway.example/"))).count();
        assert_eq!(drawn, QR_CODES_PER_SECOND as usize);
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert!(has_code(Some("https://gateway.example/")));
    }
}

//! The rustls crypto provider of all TLS connections.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// Returns aws-lc-rs, which prefers the hybrid post-quantum key exchange X25519MLKEM768.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

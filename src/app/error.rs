//! The errors with which the sidecar fails to start, or ends.

use std::io;

use super::gateway_token;
use crate::admin;
use crate::discovery;
use crate::listener;
#[cfg(feature = "otel")]
use crate::otel;
use crate::pki;
use crate::tls;

/// Why the sidecar could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step of the start failed in the operating system.
    #[error("failed while {doing}")]
    Io {
        /// The step that failed, such as `starting the workers`.
        doing: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The server certificate can't be loaded or made.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The certificate can't be served, or the operator's client CA can't be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The sidecar can't listen on an address.
    #[error(transparent)]
    Listener(#[from] listener::Error),
    /// The sidecar can't listen on the admin address.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The gateway's token can't be read.
    #[error(transparent)]
    Token(#[from] gateway_token::Error),
    /// The exporter of spans can't be created.
    #[cfg(feature = "otel")]
    #[error(transparent)]
    Otel(#[from] otel::Error),
    /// `sandbox` is `required`, but Landlock or seccomp is not in force. The field says which, and
    /// why.
    #[error("the option sandbox is \"required\", but the sandbox can't be enforced: {0}")]
    Sandbox(String),
    /// The sidecar is in a network namespace of which the owner is gone.
    #[error(
        "the owner now runs in a different network namespace, or was not found for 60 s; exiting with 75 to be \
         restarted there"
    )]
    Orphaned,
}

impl Error {
    /// Returns the exit status of the process.
    pub fn exit_status(&self) -> u8 {
        if matches!(self, Self::Orphaned) { discovery::EXIT_ORPHANED } else { 1 }
    }
}

//! The errors of the demonstration.

use std::io;

use super::client;
use crate::app;

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{doing}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The sidecar could not start.
    #[error(transparent)]
    Sidecar(#[from] app::Error),
    /// The self-check could not start.
    #[error("the self-check could not start")]
    Check(#[from] client::Error),
    /// A request failed, or the gateway did not see its client as the lane requires.
    #[error("{failed} of {all} checks failed")]
    ChecksFailed {
        /// The number of checks that failed.
        failed: usize,
        /// The number of all checks.
        all: usize,
    },
    /// A signal came before the self-check finished.
    #[error("interrupted before the self-check finished")]
    Interrupted,
}

impl Error {
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

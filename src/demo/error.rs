//! Why the demonstration failed.

use std::io;

use super::client;
use crate::app;

/// The demonstration failed.
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
    /// The gateway did not see a client as its lane requires.
    #[error("{failed} of {all} checks failed")]
    ChecksFailed {
        /// How many failed.
        failed: usize,
        /// How many there were.
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

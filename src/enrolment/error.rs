//! Why a conversation ends without a certificate.

use super::proof_reader::ReadError;
use crate::discovery::kubernetes::error::Error as ApiError;
use crate::enrolment_protocol::{self, EnrolmentRefused, RefusalReason};

/// Why a conversation ended without a certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The agent receives the reason.
    #[error(transparent)]
    Refused(#[from] EnrolmentRefused),
    /// The agent learns that Docker can't be reached, but not why.
    #[error("can't read the proof through Docker")]
    Read(#[from] ReadError),
    /// The same of the API server.
    #[error("can't have the token reviewed by the API server")]
    Review(#[from] ApiError),
    /// The connection broke, or a line on it is malformed.
    #[error(transparent)]
    Broken(#[from] enrolment_protocol::Error),
}

pub(super) fn refusal(error: RefusalReason, message: &str) -> EnrolmentRefused {
    EnrolmentRefused { error, message: message.to_owned() }
}

pub(super) fn refusal_error(error: RefusalReason, message: &str) -> Error {
    Error::Refused(refusal(error, message))
}

pub(super) fn agent_gone() -> Error {
    refusal_error(RefusalReason::AgentGone, "the container or pod has stopped, or lost its label or its address")
}

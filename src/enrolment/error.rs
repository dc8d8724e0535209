//! The errors of an enrolment on the sidecar's side.

use super::proof_reader::ReadError;
use crate::discovery::kubernetes::error::Error as ApiError;
use crate::enrolment_protocol::{self, EnrolmentRefused, RefusalReason};

/// Why an enrolment ended without a certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The enrolment was refused. The agent receives this refusal.
    #[error(transparent)]
    Refused(#[from] EnrolmentRefused),
    /// Docker can't be reached, or refuses a request. The agent learns this, but not the cause.
    #[error("can't read the proof through Docker")]
    Read(#[from] ReadError),
    /// The API server did not review the token. The agent learns this, but not the cause.
    #[error("can't have the token reviewed by the API server")]
    Review(#[from] ApiError),
    /// The connection broke, or the agent sent a malformed line.
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

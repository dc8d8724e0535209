//! The errors of an enrolment on the sidecar's side.

use super::proof_reader::ReadError;
use crate::discovery::kubernetes::error::Error as ApiError;
use crate::enrolment_protocol::{self, EnrolmentRefused, RefusalReason};

/// Why an enrolment ended without a certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The sidecar refuses the enrolment. The agent receives this refusal.
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

impl Error {
    /// Returns the refusal that the agent receives; `None` if the connection broke, so that nothing
    /// can be sent.
    pub(super) fn to_refusal(&self) -> Option<EnrolmentRefused> {
        Some(match self {
            Self::Refused(refused) => refused.clone(),
            Self::Read(_) => {
                refusal(RefusalReason::Docker, "can't read the proof through Docker; the sidecar's log has the reason")
            }
            Self::Review(error) if error.is_forbidden() => refusal(
                RefusalReason::Kubernetes,
                "the API server forbids the sidecar to review tokens; its log names the missing rule",
            ),
            Self::Review(_) => refusal(
                RefusalReason::Kubernetes,
                "can't have the token reviewed by the API server; the sidecar's log has the reason",
            ),
            Self::Broken(enrolment_protocol::Error::Syntax | enrolment_protocol::Error::TooLong) => {
                refusal(RefusalReason::Malformed, "a line is not the JSON object that the protocol expects")
            }
            Self::Broken(enrolment_protocol::Error::Io(_) | enrolment_protocol::Error::Closed) => return None,
        })
    }
}

fn refusal(error: RefusalReason, message: &str) -> EnrolmentRefused {
    EnrolmentRefused { error, message: message.to_owned() }
}

pub(super) fn refusal_error(error: RefusalReason, message: &str) -> Error {
    Error::Refused(refusal(error, message))
}

/// Returns the refusal of a client that was an agent when the enrolment began.
pub(super) fn agent_gone_error() -> Error {
    refusal_error(RefusalReason::AgentGone, "the container or pod has stopped, or lost its label or its address")
}

//! Adds bodies to the responses by which hyper refuses HTTP/1.1 heads.
//!
//! hyper answers a head that it can't read with 400, 414 or 431 and an empty body, and ends the
//! connection. hyper does not call the service first
//! ([hyper#3225](https://github.com/hyperium/hyper/issues/3225)). [`HyperRefusals`] recognizes such
//! a response by two facts: when hyper's buffer was last empty, no request was being served, and no
//! request has begun since.
//!
//! Workaround: delete when hyper asks the service for the response.

use http::StatusCode;

use super::activity::Activity;
use super::h1_request_guard::HeadFault;
use super::refused_heads::HeadRefusal;

/// The longest response head that hyper writes without the service, in bytes.
const MAX_HEAD: usize = 512;
/// The field of a response without a body, as hyper writes it.
const NO_BODY: &[u8] = b"content-length: 0\r\n";

/// Recognizes the responses that hyper writes without the service.
#[derive(Debug)]
pub struct HyperRefusals {
    /// The number of requests that had begun when hyper's buffer was last empty; `None` if a
    /// request was being served then.
    idle_since: Option<u64>,
}

impl HyperRefusals {
    /// Creates the state of a new connection.
    pub fn new() -> Self {
        Self { idle_since: Some(0) }
    }

    /// Records a flush, at which hyper's buffer is empty.
    pub fn record_flush(&mut self, activity: &Activity) {
        self.idle_since = activity.is_idle().then(|| activity.requests_begun());
    }

    /// Returns the response to send in place of the bytes that hyper offers to write, and the
    /// reason of the refusal; `None` if they are not a refusal by hyper. `fault` is what
    /// [`H1RequestGuard`] found wrong with the head.
    ///
    /// [`H1RequestGuard`]: super::h1_request_guard::H1RequestGuard
    pub fn find_replacement<'a>(
        &self,
        offered: impl Iterator<Item = &'a [u8]>,
        activity: &Activity,
        fault: HeadFault,
    ) -> Option<(Vec<u8>, HeadRefusal)> {
        if self.idle_since != Some(activity.requests_begun()) {
            return None;
        }
        let mut head = Vec::new();
        for piece in offered {
            head.extend_from_slice(piece.get(..MAX_HEAD).unwrap_or(piece));
            if head.len() >= MAX_HEAD {
                return None;
            }
        }
        refusal_with_body(&head, fault)
    }
}

/// Returns hyper's refusal with a body in place of the empty one; `None` if `head` is not the head
/// of a refusal.
fn refusal_with_body(head: &[u8], fault: HeadFault) -> Option<(Vec<u8>, HeadRefusal)> {
    let code = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
    let refusal = refusal_by_hyper(StatusCode::from_bytes(code).ok()?, fault)?;
    let at = memchr::memmem::find(head, NO_BODY)?;
    if !head.ends_with(b"\r\n\r\n") {
        return None;
    }
    let body = refusal_body(refusal);
    let fields =
        format!("content-type: application/json\r\ncache-control: no-store\r\ncontent-length: {}\r\n", body.len());
    Some(([&head[..at], fields.as_bytes(), &head[at + NO_BODY.len()..], body.as_bytes()].concat(), refusal))
}

/// Returns the refusal for which hyper sends `status`; `None` if hyper refuses no head with it.
fn refusal_by_hyper(status: StatusCode, fault: HeadFault) -> Option<HeadRefusal> {
    Some(match (status, fault) {
        (StatusCode::BAD_REQUEST, HeadFault::Ambiguous) => HeadRefusal::AmbiguousLength,
        (StatusCode::BAD_REQUEST, HeadFault::Other) => HeadRefusal::Malformed,
        (StatusCode::URI_TOO_LONG, _) => HeadRefusal::TargetTooLong,
        (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, _) => HeadRefusal::TooLarge,
        _ => return None,
    })
}

/// Returns the length of the body of the response for `refusal`, in bytes.
pub fn refusal_body_length(refusal: HeadRefusal) -> usize {
    refusal_body(refusal).len()
}

fn refusal_body(refusal: HeadRefusal) -> String {
    format!("{}\n", serde_json::json!({"error": {"type": refusal.label(), "message": refusal.client_text()}}))
}

/// Returns the response to a head that was not finished in time.
pub fn head_timeout_response() -> Vec<u8> {
    let body = refusal_body(HeadRefusal::Timeout);
    format!(
        "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::{LaneKind, Protocol};

    const REFUSAL: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\
                           date: Sun, 29 Nov 2026 06:00:00 GMT\r\n\r\n";

    fn is_replaced(refusals: &HyperRefusals, activity: &Activity, offered: &str) -> bool {
        refusals.find_replacement([&b""[..], offered.as_bytes()].into_iter(), activity, HeadFault::Other).is_some()
    }

    #[test]
    fn only_refusals_by_hyper_are_replaced() {
        let activity = Activity::new(Protocol::H1);
        let mut refusals = HyperRefusals::new();
        assert!(is_replaced(&refusals, &activity, REFUSAL), "a first head that hyper can't read");
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\nhello",
            "x",
            &REFUSAL.repeat(9),
        ] {
            assert!(!is_replaced(&refusals, &activity, other), "{other}");
        }
        let request = activity.begin_request(LaneKind::External);
        assert!(!is_replaced(&refusals, &activity, REFUSAL), "a response of the service");
        refusals.record_flush(&activity);
        assert!(!is_replaced(&refusals, &activity, REFUSAL), "while a request is served");
        drop(request);
        assert!(!is_replaced(&refusals, &activity, REFUSAL), "hyper may hold bytes of its response");
        refusals.record_flush(&activity);
        assert!(is_replaced(&refusals, &activity, REFUSAL), "a second head that hyper can't read");
        drop(activity.begin_request(LaneKind::External));
        assert!(
            !is_replaced(&refusals, &activity, REFUSAL),
            "a request began and ended before its response was written"
        );
    }

    #[test]
    fn the_body_says_why_and_its_length_is_right() {
        for (status, fault, kind) in [
            ("400", HeadFault::Other, "bad_head"),
            ("400", HeadFault::Ambiguous, "ambiguous_length"),
            ("414", HeadFault::Other, "target_too_long"),
            ("431", HeadFault::Other, "head_too_large"),
        ] {
            let text =
                String::from_utf8(refusal_with_body(REFUSAL.replace("400", status).as_bytes(), fault).unwrap().0)
                    .unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(
                head.contains(&format!("content-length: {}\r\n", body.len()))
                    && head.matches("content-length").count() == 1,
                "{head}"
            );
            assert!(head.contains("connection: close") && head.contains("date: Sun"), "{head}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["error"]["type"], kind);
        }
    }
}

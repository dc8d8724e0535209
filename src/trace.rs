//! W3C Trace Context: reads, writes and creates the identifiers that a request keeps across
//! servers.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::labels::{LaneKind, Protocol};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The length of `00-<32 digits>-<16 digits>-<2 digits>`. Later versions may append a dash and more
/// fields.
const TRACEPARENT_LENGTH: usize = 55;

/// A well-formed `traceparent` (Trace Context, section 3.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traceparent(HeaderValue);

impl Traceparent {
    /// Returns the `traceparent` of `headers`; `None` unless there is exactly one and it is
    /// well-formed.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut stated = headers.get_all(TRACEPARENT).iter();
        stated.next().filter(|value| stated.next().is_none() && is_well_formed(value.as_bytes())).cloned().map(Self)
    }

    /// Returns a `traceparent` for a new trace with random ids, which is sampled.
    ///
    /// # Panics
    /// If the system has no random bytes. Without them loopgate could make no key either.
    pub fn random() -> Self {
        Self::with_new_span(&hex(&random_id::<16>()), "01")
    }

    /// Returns a `traceparent` with a new span in the same trace, for the next server.
    pub fn child(&self) -> Self {
        Self::with_new_span(self.trace_id(), if self.is_sampled() { "01" } else { "00" })
    }

    /// Returns a `traceparent` of version 00 with this trace id and a new random span id.
    fn with_new_span(trace_id: &str, flags: &str) -> Self {
        let text = format!("00-{trace_id}-{}-{flags}", hex(&random_id::<8>()));
        Self(HeaderValue::from_str(&text).expect("hexadecimal digits and dashes"))
    }

    /// Returns the trace id: 32 hexadecimal digits, the same for all spans of one request.
    pub fn trace_id(&self) -> &str {
        self.field(3..35)
    }

    /// Returns the span id: 16 hexadecimal digits.
    pub fn span_id(&self) -> &str {
        self.field(36..52)
    }

    /// Returns whether the sampled flag is set: the client may have recorded the trace.
    pub fn is_sampled(&self) -> bool {
        u8::from_str_radix(self.field(53..55), 16).is_ok_and(|flags| flags & 1 == 1)
    }

    fn field(&self, range: std::ops::Range<usize>) -> &str {
        self.0.to_str().ok().and_then(|text| text.get(range)).unwrap_or_default()
    }
}

/// The trace of one request, from its client to the gateway.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The client's `traceparent`, if it was well-formed.
    pub parent: Option<Traceparent>,
    /// The `traceparent` for the gateway.
    pub forwarded: Traceparent,
}

impl Trace {
    /// Continues the trace of `headers`, or begins a new one. If `spans` is true, loopgate records
    /// spans, so the forwarded `traceparent` names a new span.
    pub fn from_headers(headers: &HeaderMap, spans: bool) -> Self {
        let parent = Traceparent::from_headers(headers);
        let forwarded = match &parent {
            Some(parent) if spans => parent.child(),
            Some(parent) => parent.clone(),
            None => Traceparent::random(),
        };
        Self { parent, forwarded }
    }

    /// Writes the forwarded `traceparent` to `headers`. Removes the `tracestate` if the client's
    /// `traceparent` was rejected (section 3.3).
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.forwarded.0.clone());
        if self.parent.is_none() {
            headers.remove(TRACESTATE);
        }
    }
}

/// The span of one request, for a [`Recorder`].
#[derive(Debug)]
pub struct Span<'a> {
    /// The trace to which the request belongs.
    pub trace: &'a Trace,
    /// When the request's head was complete.
    pub started_at: SystemTime,
    /// The time from the request's head to the response's head.
    pub time_to_head: Duration,
    /// The request's method.
    pub method: &'a str,
    /// The request's path without the query, which may hold a token.
    pub path: &'a str,
    /// The status of the response; 0 if there was none.
    pub status: u16,
    /// The lane on which the request was forwarded.
    pub lane: LaneKind,
    /// The client's protocol.
    pub protocol: Protocol,
    /// Whether the request came over TLS.
    pub is_encrypted: bool,
    /// The client's address.
    pub peer: std::net::IpAddr,
    /// The request id, if the request ended with an error or the gateway cut it off.
    pub request_id: Option<&'a str>,
    /// The kind of error, as the metrics label it.
    pub error: Option<&'static str>,
}

/// Records spans.
pub trait Recorder: Send + Sync + std::fmt::Debug {
    /// Records one span. Implementations must not block.
    fn record(&self, span: &Span<'_>);
}

/// Returns whether `value` is a `traceparent` of version 00, or of a later version whose first
/// fields are the same.
fn is_well_formed(value: &[u8]) -> bool {
    let are_digits = |part: &[u8]| part.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &[u8]| part.iter().all(|digit| *digit == b'0');
    let Some((head, suffix)) = value.split_at_checked(TRACEPARENT_LENGTH) else { return false };
    let (version, trace, span, flags) = (&head[..2], &head[3..35], &head[36..52], &head[53..]);
    let parts = [version, trace, span, flags];
    parts.iter().all(|part| are_digits(part))
        && [head[2], head[35], head[52]] == *b"---"
        && version != b"ff"
        && !is_zero(trace)
        && !is_zero(span)
        && (suffix.is_empty() || version != b"00" && suffix[0] == b'-')
}

/// Returns `N` random bytes that are not all zero.
fn random_id<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
    // An id of zeros is invalid.
    bytes[N - 1] |= u8::from(bytes == [0; N]);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers_with(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=x"));
        headers
    }

    #[test]
    fn a_well_formed_traceparent_is_kept_and_any_other_is_replaced() {
        let later = format!("cc{}-what-comes", &GOOD[2..]);
        let table: [(&[&str], bool); 18] = [
            (&[GOOD], true),
            (&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"], true),
            (&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff"], true),
            (&["01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"], true),
            (&[&later], true),
            (&[], false),
            (&[""], false),
            (&[GOOD, GOOD], false),
            (&["ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"], false),
            (&["00-00000000000000000000000000000000-00f067aa0ba902b7-01"], false),
            (&["00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"], false),
            (&["00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"], false),
            (&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"], false),
            (&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x"], false),
            (&["01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x"], false),
            (&["00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01"], false),
            (&["00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01"], false),
            (&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902\u{e9}-01"], false),
        ];
        for (stated, kept) in table {
            let mut headers = headers_with(stated);
            let trace = Trace::from_headers(&headers, false);
            trace.write(&mut headers);
            let written = headers.get_all(TRACEPARENT).iter().collect::<Vec<_>>();
            assert_eq!(written.len(), 1, "{stated:?}");
            assert!(is_well_formed(written[0].as_bytes()), "{stated:?}: {written:?}");
            assert_eq!(
                stated.first().is_some_and(|stated| written[0].as_bytes() == stated.as_bytes()),
                kept,
                "{stated:?}"
            );
            assert_eq!(trace.parent.is_some(), kept, "{stated:?}");
            assert_eq!(headers.contains_key(TRACESTATE), kept, "{stated:?}");
        }
    }

    #[test]
    fn loopgates_span_is_in_the_clients_trace_below_its_parent() {
        for (flags, sampled) in [("01", true), ("00", false), ("03", true)] {
            let stated = format!("{}{flags}", &GOOD[..53]);
            let trace = Trace::from_headers(&headers_with(&[&stated]), true);
            assert_eq!(trace.forwarded.trace_id(), &GOOD[3..35]);
            assert_ne!(trace.forwarded.span_id(), &GOOD[36..52]);
            assert_eq!(trace.forwarded.is_sampled(), sampled, "{flags}");
        }
        let (one, other) = (Traceparent::random(), Traceparent::random());
        assert!(one.is_sampled() && one.trace_id() != other.trace_id() && one.span_id() != other.span_id());
    }
}

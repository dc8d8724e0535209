//! Parses the head of the gateway's response, and decides how long its body is.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use httparse::{Header, ParserConfig, Response, Status};
use hyper::ext::ReasonPhrase;

use super::error::ExchangeError;

/// Heads with up to this many fields are parsed without an allocation for them.
const FIELDS_ON_STACK: usize = 64;

/// The largest `Content-Length` that is accepted, so that sums with it can't overflow.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// The largest head that is accepted.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// In bytes, with the empty line at its end.
    pub bytes: usize,
    pub fields: usize,
}

/// The length of a response's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// In bytes.
    Known(u64),
    /// The body comes in chunks.
    Chunked,
    /// The body ends with the connection.
    UntilClose,
}

/// The head of a final or an interim response.
#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    /// The fields. A final response has at most one `Content-Length`, which is a number, and none
    /// if its status forbids one. An interim response has the fields that the gateway sent.
    pub headers: HeaderMap,
    /// The reason phrase, if it is not the one that belongs to the status.
    reason: Option<ReasonPhrase>,
    pub body: BodyLength,
    /// Whether the connection may be used for another request after the response.
    pub may_reuse: bool,
}

impl ResponseHead {
    /// Returns whether the final response follows. A 101 is a final one.
    pub fn is_interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }

    /// Returns the head of the same response in HTTP/1.1.
    pub fn into_parts(self) -> Parts {
        let (mut parts, ()) = http::Response::new(()).into_parts();
        (parts.status, parts.headers) = (self.status, self.headers);
        if let Some(reason) = self.reason {
            parts.extensions.insert(reason);
        }
        parts
    }
}

/// Parses the head at the beginning of `bytes`; returns it and its length, or `None` if it is not
/// complete. `is_head_request` is whether the request's method is HEAD. The fields are added to
/// `spare`, an empty map that becomes part of the head.
///
/// # Errors
/// The head exceeds a limit, or is malformed.
pub fn parse_head(
    bytes: &Bytes,
    limits: HeadLimits,
    is_head_request: bool,
    spare: &mut HeaderMap,
) -> Result<Option<(usize, ResponseHead)>, ExchangeError> {
    let mut on_stack = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
    match parse_with(bytes, &mut on_stack, limits, is_head_request, spare) {
        Err(ExchangeError::Head(httparse::Error::TooManyHeaders)) if limits.fields > FIELDS_ON_STACK => {
            let mut fields = Vec::new();
            fields.resize_with(limits.fields, MaybeUninit::uninit);
            parse_with(bytes, &mut fields, limits, is_head_request, spare)
        }
        parsed => parsed,
    }
    .map_err(|error| match error {
        ExchangeError::Head(httparse::Error::TooManyHeaders) => ExchangeError::HeadTooLarge,
        error => error,
    })
}

/// Parses a head, with room for its fields in `fields`. See [`parse_head`].
fn parse_with<'a>(
    bytes: &'a Bytes,
    fields: &mut [MaybeUninit<Header<'a>>],
    limits: HeadLimits,
    is_head_request: bool,
    spare: &mut HeaderMap,
) -> Result<Option<(usize, ResponseHead)>, ExchangeError> {
    let most = fields.len().min(limits.fields);
    // What comes after the limit is not looked at, so that the result does not depend on how much
    // was read.
    let within_limit = &bytes[..bytes.len().min(limits.bytes)];
    let mut parsed = Response::new(&mut []);
    let status = ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, within_limit, &mut fields[..most])
        .map_err(ExchangeError::Head)?;
    let Status::Complete(length) = status else {
        return if bytes.len() >= limits.bytes { Err(ExchangeError::HeadTooLarge) } else { Ok(None) };
    };
    let code = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = code.ok_or(ExchangeError::Head(httparse::Error::Status))?;
    let reason = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    let reason = reason.and_then(|reason| ReasonPhrase::try_from(bytes.slice_ref(reason.as_bytes())).ok());
    let is_http_11 = parsed.version == Some(1);
    let mut headers = std::mem::take(spare);
    headers.reserve(parsed.headers.len());
    let mut must_close = !is_http_11;
    let mut states_length = false;
    for field in &*parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| ExchangeError::Head(httparse::Error::HeaderName))?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value))
            .map_err(|_| ExchangeError::Head(httparse::Error::HeaderValue))?;
        must_close = must_close || name == CONNECTION && lists_close(field.value);
        states_length = states_length || name == CONTENT_LENGTH || name == TRANSFER_ENCODING;
        headers.try_append(name, value).map_err(|_| ExchangeError::HeadTooLarge)?;
    }
    let mut head = ResponseHead { status, headers, reason, body: BodyLength::Known(0), may_reuse: false };
    if !head.is_interim() {
        let may_have_body = status_permits_body(status) && !is_head_request;
        head.may_reuse = !must_close && status != StatusCode::SWITCHING_PROTOCOLS;
        if states_length {
            head.may_reuse &= !has_doubtful_length(status, &head.headers);
            head.body = body_length(is_http_11, may_have_body, &head.headers)?;
            normalize_length(status, &mut head.headers);
        } else if may_have_body {
            head.body = BodyLength::UntilClose;
            head.may_reuse = false;
        }
    }
    Ok(Some((length, head)))
}

/// Returns whether a `Connection` field with this value says that the gateway closes the
/// connection.
fn lists_close(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// Returns whether a response with `status` may have a body, unless the request was HEAD (RFC 9112
/// section 6.3).
fn status_permits_body(status: StatusCode) -> bool {
    !matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Returns the length of the body of a response that states it (RFC 9112 section 6.3).
///
/// # Errors
/// There is a `Transfer-Encoding` other than a single `chunked`, or the body's length is ambiguous.
fn body_length(is_http_11: bool, may_have_body: bool, headers: &HeaderMap) -> Result<BodyLength, ExchangeError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (Some(_), _) if may_have_body && !is_http_11 => {
            Err(ExchangeError::Length("Transfer-Encoding in a response of HTTP/1.0"))
        }
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            Ok(if may_have_body { BodyLength::Chunked } else { BodyLength::Known(0) })
        }
        (Some(_), _) => Err(ExchangeError::TransferEncoding),
        (None, _) if !may_have_body => Ok(BodyLength::Known(0)),
        (None, _) => {
            let agreed = agreed_length(headers).and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
            let length = agreed.filter(|length| *length <= MAX_LENGTH);
            length
                .map(BodyLength::Known)
                .ok_or(ExchangeError::Length("Content-Length is not a single number below 2^63"))
        }
    }
}

/// Leaves at most one `Content-Length`, which is a number, and none in a chunked response or if
/// `status` forbids it.
fn normalize_length(status: StatusCode, headers: &mut HeaderMap) {
    // A chunked message must not have a `Content-Length` (RFC 9112 section 6.2).
    if forbids_length(status) || headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
        return;
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => {}
        (Some(length), None) if is_number(length.as_bytes()) => {}
        _ => match agreed_length(headers).and_then(|length| HeaderValue::from_bytes(length).ok()) {
            Some(length) => drop(headers.insert(CONTENT_LENGTH, length)),
            None => drop(headers.remove(CONTENT_LENGTH)),
        },
    }
}

/// Returns whether it is doubtful where a response ends: it has both `Transfer-Encoding` and
/// `Content-Length`, or states a body that its status forbids.
fn has_doubtful_length(status: StatusCode, headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH)
        || states_forbidden_body(status, headers)
}

/// Returns whether a response that must have no body states one.
fn states_forbidden_body(status: StatusCode, headers: &HeaderMap) -> bool {
    forbids_length(status)
        && (headers.contains_key(TRANSFER_ENCODING)
            || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0"))
}

/// Returns whether a response with `status` must not have a `Content-Length` (RFC 9110 section
/// 8.6).
fn forbids_length(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT
}

fn is_number(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// Returns the length that all `Content-Length` fields agree on; `None` if they differ or one is
/// not a number. A field may be a list (RFC 9110 section 8.6).
fn agreed_length(headers: &HeaderMap) -> Option<&[u8]> {
    let lines = headers.get_all(CONTENT_LENGTH).iter();
    let mut lengths = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let first = lengths.next().filter(|length| is_number(length))?;
    lengths.all(|length| length == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 100 };

    fn parsed(head: &str) -> Result<ResponseHead, ExchangeError> {
        let bytes = Bytes::copy_from_slice(head.as_bytes());
        parse_head(&bytes, LIMITS, false, &mut HeaderMap::new()).map(|parsed| parsed.expect("the head is complete").1)
    }

    fn with_fields(status: u16, fields: &[(HeaderName, &str)]) -> Result<ResponseHead, ExchangeError> {
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        parsed(&format!("HTTP/1.1 {status} A\r\n{fields}\r\n"))
    }

    fn lengths(head: &ResponseHead) -> Vec<&str> {
        head.headers.get_all(CONTENT_LENGTH).iter().map(|length| length.to_str().unwrap()).collect()
    }

    #[test]
    fn codings_other_than_chunked_are_refused() {
        for status in [200, 204, 304, 101, 404] {
            for coding in ["chunked", "Chunked", "CHUNKED", "\tchunked "] {
                let fields = [(CONTENT_LENGTH, "3"), (TRANSFER_ENCODING, coding)];
                let head = with_fields(status, &fields).unwrap();
                assert_eq!((lengths(&head), head.may_reuse), (vec![], false), "{status} {coding}");
            }
            for codings in [
                &["gzip, chunked"][..],
                &["gzip"],
                &["identity"],
                &["chunked, gzip"],
                &["chunked, chunked"],
                &["chunked;q=1"],
                &["chunked,"],
                &[""],
                &["gzip", "chunked"],
                &["chunked", "chunked"],
                &["chunked", ""],
            ] {
                let fields: Vec<_> = codings.iter().map(|coding| (TRANSFER_ENCODING, *coding)).collect();
                let refused = with_fields(status, &fields);
                assert!(matches!(refused, Err(ExchangeError::TransferEncoding)), "{status} {codings:?}");
            }
        }
        assert!(matches!(
            parsed("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(ExchangeError::Length(_))
        ));
    }

    #[test]
    fn at_most_one_length_is_left_which_is_a_number() {
        use BodyLength::{Known, UntilClose};
        for (status, fields, body, left) in [
            (200, &["5"][..], Some(Known(5)), &["5"][..]),
            (200, &["005"], Some(Known(5)), &["005"]),
            (200, &["5", "5"], Some(Known(5)), &["5"]),
            (200, &["5, 5", "5"], Some(Known(5)), &["5"]),
            (200, &[], Some(UntilClose), &[]),
            (200, &["9223372036854775807"], Some(Known(MAX_LENGTH)), &["9223372036854775807"]),
            (200, &["9223372036854775808"], None, &[]),
            (200, &["18446744073709551616"], None, &[]),
            (200, &["5", "6"], None, &[]),
            (200, &["5, 6"], None, &[]),
            (200, &["5, 05"], None, &[]),
            (200, &["5,"], None, &[]),
            (200, &["+5"], None, &[]),
            (200, &["-5"], None, &[]),
            (200, &["0x5"], None, &[]),
            (200, &["5 5"], None, &[]),
            (200, &[""], None, &[]),
            (304, &["5"], Some(Known(0)), &["5"]),
            (304, &["5", "6"], Some(Known(0)), &[]),
            (304, &["5,"], Some(Known(0)), &[]),
            (304, &["+5"], Some(Known(0)), &[]),
            (304, &[""], Some(Known(0)), &[]),
            (204, &["0"], Some(Known(0)), &[]),
            (204, &["5"], Some(Known(0)), &[]),
        ] {
            let fields: Vec<_> = fields.iter().map(|length| (CONTENT_LENGTH, *length)).collect();
            let head = with_fields(status, &fields).ok();
            assert_eq!(head.as_ref().map(|head| head.body), body, "{status} {fields:?}");
            assert_eq!(head.as_ref().map(lengths).unwrap_or_default(), left, "{status} {fields:?}");
        }
    }

    #[test]
    fn a_connection_is_reused_only_if_the_end_of_the_response_is_certain() {
        for (reuse, status, fields) in [
            (true, 200, "Content-Length: 5"),
            (true, 200, "Transfer-Encoding: chunked"),
            (true, 204, "A: b"),
            (true, 204, "Content-Length: 0"),
            (true, 304, "Content-Length: 5"),
            (true, 200, "Content-Length: 5\r\nConnection: keep-alive"),
            (false, 200, "A: b"),
            (false, 204, "Content-Length: 5"),
            (false, 204, "Transfer-Encoding: chunked"),
            (false, 200, "Content-Length: 5\r\nTransfer-Encoding: chunked"),
            (false, 200, "Content-Length: 5\r\nConnection: close"),
            (false, 200, "Content-Length: 5\r\nConnection: a, CLOSE"),
            (false, 200, "Content-Length: 5\r\nConnection: close\r\nConnection: keep-alive"),
            (false, 101, "Upgrade: a"),
        ] {
            let head = parsed(&format!("HTTP/1.1 {status} A\r\n{fields}\r\n\r\n")).unwrap();
            assert_eq!(head.may_reuse, reuse, "{status} {fields}");
            let old = parsed(&format!("HTTP/1.0 {status} A\r\n{fields}\r\n\r\n"));
            assert!(old.is_err() || old.is_ok_and(|head| !head.may_reuse), "{status} {fields}");
        }
    }

    #[test]
    fn a_response_to_a_head_request_has_no_body() {
        let bytes = Bytes::from_static(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        let (length, head) = parse_head(&bytes, LIMITS, true, &mut HeaderMap::new()).unwrap().unwrap();
        assert_eq!((length, head.body, lengths(&head)), (bytes.len(), BodyLength::Known(0), vec!["5"]));
        assert!(head.may_reuse);
    }

    #[test]
    fn a_reason_phrase_is_kept_if_it_is_not_that_of_the_status() {
        for (line, reason) in [
            ("200 OK", None),
            ("200 Fine", Some("Fine")),
            ("200 ", Some("")),
            ("200", Some("")),
            ("404 OK", Some("OK")),
            ("499 Client Closed", Some("Client Closed")),
            ("200 \u{fc}", Some("")),
        ] {
            let parts = parsed(&format!("HTTP/1.1 {line}\r\n\r\n")).unwrap().into_parts();
            assert_eq!(
                parts.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes),
                reason.map(str::as_bytes),
                "{line}"
            );
        }
    }

    #[test]
    fn malformed_heads_are_refused() {
        for head in [
            "\x15\x03\x01\0\x02\x02\x16",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "http/1.1 200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\rA: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
        ] {
            let refused = parse_head(&Bytes::copy_from_slice(head.as_bytes()), LIMITS, false, &mut HeaderMap::new());
            assert!(matches!(refused, Err(ExchangeError::Head(_))), "{head:?}: {refused:?}");
        }
    }

    #[test]
    fn limits_are_exact() {
        let head = Bytes::from_static(b"HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\nE: f\r\n\r\n");
        let parse = |length, bytes, fields| {
            parse_head(&head.slice(..length), HeadLimits { bytes, fields }, false, &mut HeaderMap::new())
        };
        let length = head.len();
        assert!(matches!(parse(length, length, 3), Ok(Some(_))));
        assert!(matches!(parse(length, length - 1, 3), Err(ExchangeError::HeadTooLarge)));
        assert!(
            matches!(parse(length - 1, length - 1, 3), Err(ExchangeError::HeadTooLarge)),
            "a head that reaches the limit can't end within it"
        );
        assert!(matches!(parse(length - 1, length, 3), Ok(None)));
        assert!(matches!(parse(length, length, 2), Err(ExchangeError::HeadTooLarge)));
        let long = Bytes::from(format!("HTTP/1.1 200 OK\r\nA: {}\0\r\n\r\n", "b".repeat(100)));
        let limits = HeadLimits { bytes: 50, fields: 2 };
        assert!(matches!(parse_head(&long, limits, false, &mut HeaderMap::new()), Err(ExchangeError::HeadTooLarge)));
        for (count, most) in [(64, 64), (65, 65), (100, 100), (65, 64), (101, 100), (300, 300)] {
            let fields = "A: b\r\n".repeat(count);
            let head = Bytes::from(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
            let parsed = parse_head(&head, HeadLimits { bytes: 4096, fields: most }, false, &mut HeaderMap::new());
            match parsed {
                Ok(Some((_, head))) => assert!(count <= most && head.headers.len() == count, "{count} {most}"),
                Err(ExchangeError::HeadTooLarge) => assert!(count > most, "{count} {most}"),
                other => panic!("{count} {most}: {other:?}"),
            }
        }
    }
}

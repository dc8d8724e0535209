//! Checks how the head of the gateway's response states the length of its body.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::proxy::error::Error;

/// Checks the fields that state the body's length, and leaves at most one `Content-Length`, which is a number. hyper
/// has decided by then how to read the body.
///
/// Workaround: hyper reads a body whose last coding is `chunked` as a chunked one, and a body with any other coding to
/// the end of the connection. The other codings would be lost, since `Transfer-Encoding` is a hop-by-hop field. Delete
/// when hyper refuses codings that it can't decode.
///
/// # Errors
/// There is a `Transfer-Encoding` other than one `chunked` (RFC 9112 section 6.1).
pub fn normalize_length(status: StatusCode, headers: &mut HeaderMap) -> Result<(), Error> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => true,
        _ => return Err(Error::GatewayTransferEncoding),
    };
    // A chunked message must not have a `Content-Length` (RFC 9112 section 6.2).
    if is_chunked || forbids_length(status) {
        headers.remove(CONTENT_LENGTH);
        return Ok(());
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => {}
        (Some(length), None) if is_number(length.as_bytes()) => {}
        _ => match agreed_length(headers) {
            Some(length) => drop(headers.insert(CONTENT_LENGTH, length)),
            None => drop(headers.remove(CONTENT_LENGTH)),
        },
    }
    Ok(())
}

/// Returns whether a response that must have no body states one. If the gateway sends it, hyper would read it as the
/// beginning of the next response.
pub fn states_forbidden_body(status: StatusCode, headers: &HeaderMap) -> bool {
    forbids_length(status)
        && (headers.contains_key(TRANSFER_ENCODING)
            || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0"))
}

/// Returns whether a response with `status` must not have a `Content-Length` (RFC 9110 section 8.6).
fn forbids_length(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT
}

fn is_number(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// Returns the length that all `Content-Length` fields agree on; `None` if they differ or one is no number. A field may
/// be a list (RFC 9110 section 8.6).
fn agreed_length(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines = headers.get_all(CONTENT_LENGTH).iter();
    let mut lengths = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let first = lengths.next().filter(|length| is_number(length))?;
    lengths.all(|length| length == first).then(|| HeaderValue::from_bytes(first).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths_after_check(status: u16, fields: &[(http::HeaderName, &str)]) -> Option<Vec<String>> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value.parse().unwrap());
        }
        normalize_length(StatusCode::from_u16(status).unwrap(), &mut headers).ok()?;
        Some(headers.get_all(CONTENT_LENGTH).iter().map(|length| length.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn codings_other_than_chunked_are_refused() {
        for status in [200, 204, 304, 101, 404] {
            for coding in ["chunked", "Chunked", "CHUNKED"] {
                let fields = [(CONTENT_LENGTH, "3"), (TRANSFER_ENCODING, coding)];
                assert_eq!(lengths_after_check(status, &fields), Some(vec![]), "{status} {coding}");
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
                assert_eq!(lengths_after_check(status, &fields), None, "{status} {codings:?}");
            }
        }
    }

    #[test]
    fn at_most_one_length_is_left_which_is_a_number() {
        for (status, lengths, left) in [
            (200, &["5"][..], Some("5")),
            (200, &["5", "5"], Some("5")),
            (200, &["5, 5", "5"], Some("5")),
            (200, &[], None),
            (304, &["5"], Some("5")),
            (304, &["5", "6"], None),
            (304, &["5,"], None),
            (304, &["+5"], None),
            (304, &[""], None),
            (204, &["0"], None),
            (204, &["5"], None),
            (103, &["5"], None),
        ] {
            let fields: Vec<_> = lengths.iter().map(|length| (CONTENT_LENGTH, *length)).collect();
            assert_eq!(
                lengths_after_check(status, &fields),
                Some(left.map(str::to_owned).into_iter().collect()),
                "{lengths:?}"
            );
        }
    }

    #[test]
    fn a_body_where_none_may_be_is_found() {
        let states = |status: u16, name: http::HeaderName, value| {
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
            states_forbidden_body(StatusCode::from_u16(status).unwrap(), &headers)
        };
        assert!(states(204, TRANSFER_ENCODING, "chunked") && states(204, CONTENT_LENGTH, "5"));
        assert!(!states(204, CONTENT_LENGTH, "0") && !states(304, CONTENT_LENGTH, "5"));
        assert!(!states(200, TRANSFER_ENCODING, "chunked"));
    }
}

//! Encodes the head of a request in HTTP/1.1, and the size lines of its chunks.

use std::io::Write;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http_body::Body;

/// The bytes that end a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// The estimated size of a header field, for the first allocation.
const FIELD_ESTIMATE: usize = 48;

/// How the length of a request's body is stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By `Content-Length`. A body of 0 bytes has the field only if the client's request has it.
    Length(u64),
    /// By chunks.
    Chunked,
}

impl Framing {
    /// Returns how the length of `body` is to be stated.
    pub fn of(body: &impl Body) -> Self {
        if body.is_end_stream() {
            Self::Length(0)
        } else {
            body.size_hint().exact().map_or(Self::Chunked, Self::Length)
        }
    }
}

/// Returns the head of a request. `Content-Length` and `Transfer-Encoding` are written as `framing`
/// requires, whatever the fields of `parts` state. No part can contain a line end: their types
/// don't allow it.
pub fn encode_head(parts: &Parts, framing: Framing) -> Vec<u8> {
    let mut head = Vec::with_capacity(64 + parts.uri.path().len() + FIELD_ESTIMATE * parts.headers.len());
    head.extend_from_slice(parts.method.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(parts.uri.path().as_bytes());
    if let Some(query) = parts.uri.query() {
        head.push(b'?');
        head.extend_from_slice(query.as_bytes());
    }
    head.extend_from_slice(b" HTTP/1.1\r\n");
    let mut needs_length = framing != Framing::Chunked;
    for (name, value) in &parts.headers {
        if name == TRANSFER_ENCODING {
            continue;
        }
        if name == CONTENT_LENGTH {
            if std::mem::take(&mut needs_length) {
                push_length(&mut head, framing);
            }
            continue;
        }
        push_field(&mut head, name.as_str(), value.as_bytes());
    }
    match framing {
        Framing::Chunked => push_field(&mut head, TRANSFER_ENCODING.as_str(), b"chunked"),
        Framing::Length(1..) if needs_length => push_length(&mut head, framing),
        Framing::Length(_) => {}
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn push_field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

fn push_length(head: &mut Vec<u8>, framing: Framing) {
    if let Framing::Length(length) = framing {
        push_field(head, CONTENT_LENGTH.as_str(), length.to_string().as_bytes());
    }
}

/// Appends the line before a chunk of `length` bytes to `bytes`.
pub fn push_chunk_size(bytes: &mut Vec<u8>, length: usize) {
    write!(bytes, "{length:X}\r\n").expect("a Vec takes all bytes");
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn encoded(request: &str, fields: &[(&str, &str)], framing: Framing) -> String {
        let (method, target) = request.split_once(' ').unwrap();
        let mut builder = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        String::from_utf8(encode_head(&builder.body(()).unwrap().into_parts().0, framing)).unwrap()
    }

    #[test]
    fn a_head_has_the_fields_in_their_order_and_the_length_once() {
        use Framing::{Chunked, Length};
        for (request, fields, framing, expected) in [
            ("GET /", &[("host", "a")][..], Length(0), "GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
            ("GET /a?b=c", &[("b", "1"), ("a", "2")], Length(0), "GET /a?b=c HTTP/1.1\r\nb: 1\r\na: 2\r\n\r\n"),
            ("GET http://a?b", &[], Length(0), "GET /?b HTTP/1.1\r\n\r\n"),
            ("OPTIONS *", &[], Length(0), "OPTIONS * HTTP/1.1\r\n\r\n"),
            ("POST /", &[("content-length", "0")], Length(0), "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
            ("POST /", &[("content-length", "7")], Length(0), "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
            ("POST /", &[], Length(12), "POST / HTTP/1.1\r\ncontent-length: 12\r\n\r\n"),
            (
                "PUT /",
                &[("content-length", "12"), ("a", "1"), ("content-length", "12")],
                Length(12),
                "PUT / HTTP/1.1\r\ncontent-length: 12\r\na: 1\r\n\r\n",
            ),
            (
                "GET /",
                &[("content-length", "12"), ("transfer-encoding", "gzip"), ("a", "1")],
                Chunked,
                "GET / HTTP/1.1\r\na: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            ),
            ("GET /", &[("a", "1"), ("b", ""), ("a", "2")], Length(0), "GET / HTTP/1.1\r\na: 1\r\na: 2\r\nb: \r\n\r\n"),
        ] {
            assert_eq!(encoded(request, fields, framing), expected, "{request} {fields:?}");
        }
    }

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        let mut bytes = Vec::new();
        for length in [1, 10, 255, 65536] {
            push_chunk_size(&mut bytes, length);
        }
        assert_eq!(bytes, b"1\r\nA\r\nFF\r\n10000\r\n");
    }
}

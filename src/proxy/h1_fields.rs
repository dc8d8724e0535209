//! The syntax of header fields in HTTP/1.1.

use http::HeaderMap;

/// Appends a line for each of `fields` to `bytes`, and the empty line after them (RFC 9112 section
/// 2.1). `HeaderMap` allows no line end in a name or a value.
pub fn push_fields(bytes: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
}

//! Header fields as HTTP/1.1 sends them.

use http::HeaderMap;

/// Adds a line for each of `fields` to `bytes`, and the empty line that ends them (RFC 9112 section
/// 2.1). Neither a name nor a value can hold a line end.
pub fn push_fields(bytes: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
}

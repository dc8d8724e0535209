//! Formats text for log lines and URL queries.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The maximum length of text in a log line, in characters.
const MAX_CHARS: usize = 400;
/// The characters that are percent-encoded in a query: all but letters, digits, `-`, `_` and `.`.
const QUERY_ENCODE_SET: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Returns `text` on one line, shortened to [`MAX_CHARS`]: filters answer with whole HTML pages.
pub(super) fn to_one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(MAX_CHARS).collect()
}

/// Returns `text` percent-encoded, for a value in a query or a segment of a path.
pub(super) fn encode_query_value(text: &str) -> String {
    utf8_percent_encode(text, QUERY_ENCODE_SET).to_string()
}

//! Makes hyper refuse HTTP/1.1 requests that state their length twice and the preface of HTTP/2,
//! and percent-encodes request targets that hyper would refuse.
//!
//! If a head has `Transfer-Encoding`, hyper drops `Content-Length` before the service sees it.
//! hyper also merges equal `Content-Length` fields. A proxy in front of loopgate may have used the
//! length that was dropped, so such a request must be refused (RFC 9112 section 6.3).
//! [`H1RequestGuard`] follows the bytes on their way to hyper, finds such heads, and makes them
//! invalid, so that hyper answers 400 and closes the connection.
//!
//! The guard does the same to the preface of HTTP/2, which is an error on an HTTP/1.1 connection:
//! hyper would close the connection without a response.
//!
//! The guard also percent-encodes `"`, `<`, `>` and backticks in request targets. RFC 3986 does not
//! allow them, but clients send them, other proxies pass them, and hyper answers 400.
//!
//! Workaround, in three parts. Delete the check of lengths when hyper can refuse such requests (it
//! drops the length silently since [hyper#4123](https://github.com/hyperium/hyper/issues/4123) and
//! [hyper#4124](https://github.com/hyperium/hyper/pull/4124)), the check of the preface when hyper
//! answers it, and the encoding of targets when hyper passes a target that it can't parse.
//!
//! The guard checks nothing else. If it can't parse the input, hyper has refused it already and
//! reads no further bytes.

#[cfg(test)]
mod tests;

/// Follows the requests of one connection.
#[derive(Debug, Default)]
pub(crate) struct H1RequestGuard {
    position: Position,
    head: Head,
    /// The beginning of the current line, if the line arrives in more than one piece.
    line: Line,
    /// The number of spaces in the current request line so far.
    spaces: u8,
    /// Whether a request asked for an upgrade, so that a later line that looks like a request line
    /// may not be one.
    may_tunnel: bool,
    fault: HeadFault,
}

/// The part of a request to which the next byte belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    /// The lines of a head.
    #[default]
    Head,
    /// A body of stated length, or a chunk and the line end after it, of which `bytes_left` bytes
    /// are still to come.
    Data { bytes_left: u64, chunked: bool },
    /// The line with the size of a chunk.
    ChunkSize,
    /// The trailers after the last chunk, where only CRLF ends a line. `fresh` is whether a line
    /// has just ended.
    Trailers { fresh: bool },
}

/// The facts that the lines of a head have stated so far.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    has_begun: bool,
    is_chunked: bool,
    length: Option<u64>,
    is_ambiguous: bool,
    asks_for_upgrade: bool,
}

/// Why hyper refuses a head that the guard has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadFault {
    /// The guard found nothing: hyper found the error itself.
    #[default]
    Other,
    /// The head states the body's length more than once.
    Ambiguous,
}

/// The end of a head that hyper must refuse: no head may have NUL. hyper parses a head that came in
/// parts only when an empty line ends it.
pub(crate) const INVALID_END: &[u8] = b"\0\r\n\r\n";

/// What hyper gets for bytes from the client.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum GuardedInput {
    /// The same bytes.
    Unchanged,
    /// These bytes: the same, with bytes of request targets percent-encoded.
    Encoded(Vec<u8>),
    /// These bytes: the same up to the line feed that ends a head with two lengths, or the first
    /// line of HTTP/2's preface, and [`INVALID_END`] in place of that line feed. hyper reads no
    /// further bytes.
    Refused(Vec<u8>),
}

/// Returns whether hyper refuses a request target with this byte.
fn must_be_encoded(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`')
}

/// Percent-encodes the bytes at `places` (RFC 3986 section 2.1).
fn percent_encode(bytes: &[u8], places: &[usize]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = Vec::with_capacity(bytes.len() + 2 * places.len());
    let mut from = 0;
    for &place in places {
        encoded.extend_from_slice(&bytes[from..place]);
        let byte = bytes[place];
        encoded.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        from = place + 1;
    }
    encoded.extend_from_slice(&bytes[from..]);
    encoded
}

/// The first line of HTTP/2's preface (RFC 9113 section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// The most bytes of a line that are kept. No line with a valid `Content-Length` is as long.
const MAX_LINE_PREFIX: usize = 96;

/// The beginning of a line that is not complete yet.
#[derive(Clone, Copy, Debug)]
struct Line {
    bytes: [u8; MAX_LINE_PREFIX],
    len: usize,
    /// The last byte so far, even if it was not kept.
    last: Option<u8>,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; MAX_LINE_PREFIX], len: 0, last: None }
    }
}

impl Line {
    /// Adds as many of `bytes` as there is space for. Does not change `last`.
    fn append(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(MAX_LINE_PREFIX - self.len);
        self.bytes[self.len..self.len + count].copy_from_slice(&bytes[..count]);
        self.len += count;
    }
}

impl H1RequestGuard {
    /// Returns whether a head has begun and not ended. Blank lines before a request line do not
    /// begin a head.
    pub(crate) fn is_in_head(&self) -> bool {
        self.position == Position::Head && (self.head.has_begun || self.line.len > 0 && self.line.bytes[0] != b'\r')
    }

    /// Returns what is wrong with the latest head, if hyper refuses it.
    pub(crate) fn head_fault(&self) -> HeadFault {
        self.fault
    }

    /// Parses the next bytes from the client, which may end anywhere; returns what hyper must get
    /// in their place.
    pub(crate) fn guard_input(&mut self, bytes: &[u8]) -> GuardedInput {
        let mut to_encode = Vec::new();
        if let Some(end) = self.find_refused(bytes, &mut to_encode) {
            let mut refused = percent_encode(&bytes[..end], &to_encode);
            refused.extend_from_slice(INVALID_END);
            return GuardedInput::Refused(refused);
        }
        if to_encode.is_empty() {
            GuardedInput::Unchanged
        } else {
            GuardedInput::Encoded(percent_encode(bytes, &to_encode))
        }
    }

    /// Parses the next bytes from the client; returns the index of the line feed that ends a head
    /// with two lengths, or the first line of HTTP/2's preface. `None` if there is none. Appends
    /// the indices of bytes of request targets that must be encoded to `to_encode`.
    fn find_refused(&mut self, bytes: &[u8], to_encode: &mut Vec<usize>) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if let Position::Data { bytes_left, chunked } = self.position {
                let step = usize::try_from(bytes_left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += step;
                let bytes_left = bytes_left - step as u64;
                self.position = match (bytes_left, chunked) {
                    (0, true) => Position::ChunkSize,
                    (0, false) => Position::Head,
                    _ => Position::Data { bytes_left, chunked },
                };
                continue;
            }
            let length = memchr::memchr(b'\n', &bytes[at..]);
            if self.position == Position::Head && !self.head.has_begun && !self.may_tunnel {
                self.find_unencoded(bytes, at..length.map_or(bytes.len(), |length| at + length), to_encode);
            }
            let Some(length) = length else {
                self.continue_line(&bytes[at..]);
                return None;
            };
            let end = at + length;
            let refused = if self.line.last.is_none() {
                self.end_line(&bytes[at..end], bytes[at..end].last().copied())
            } else {
                self.continue_line(&bytes[at..end]);
                let line = std::mem::take(&mut self.line);
                self.end_line(&line.bytes[..line.len], line.last)
            };
            if refused {
                return Some(end);
            }
            at = end + 1;
        }
        None
    }

    /// Appends the indices of bytes of the request target that must be encoded to `to_encode`, and
    /// counts the spaces of the request line. `piece` is its next part in `bytes`.
    fn find_unencoded(&mut self, bytes: &[u8], piece: std::ops::Range<usize>, to_encode: &mut Vec<usize>) {
        let mut at = piece.start;
        while self.spaces < 2 && at < piece.end {
            let end = memchr::memchr(b' ', &bytes[at..piece.end]).map_or(piece.end, |length| at + length);
            if self.spaces == 1 {
                to_encode.extend((at..end).filter(|place| must_be_encoded(bytes[*place])));
            }
            if end < piece.end {
                self.spaces += 1;
            }
            at = end + 1;
        }
    }

    /// Adds a piece of an incomplete line to the kept beginning, without the leading zeros of a
    /// chunk size.
    fn continue_line(&mut self, piece: &[u8]) {
        // `line` keeps only the first bytes of a line. Leading zeros of a chunk size, of which
        // there may be any number, would use them up.
        let zeros = if self.position == Position::ChunkSize && self.line.len == 0 {
            piece.iter().take_while(|byte| **byte == b'0').count()
        } else {
            0
        };
        self.line.append(&piece[zeros..]);
        self.line.last = piece.last().copied().or(self.line.last);
    }

    /// Parses a whole line, and moves to the part of the request that follows it. `line` is the
    /// line, or the beginning of a long one; `last` is the last byte before its line feed. Returns
    /// whether the line ends an ambiguous head, or begins HTTP/2.
    fn end_line(&mut self, line: &[u8], last: Option<u8>) -> bool {
        let is_whole = line.len() < MAX_LINE_PREFIX;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.position {
            Position::Head if line.is_empty() => return self.end_head(),
            Position::Head => {
                if !self.head.has_begun {
                    if line == H2_PREFACE && !self.may_tunnel {
                        return true;
                    }
                    self.head.asks_for_upgrade = line.starts_with(b"CONNECT ");
                    self.spaces = 0;
                }
                self.head.has_begun = true;
                self.record_framing_field(line, is_whole);
            }
            Position::ChunkSize => {
                // A line end follows each chunk, and the trailers follow the last one.
                self.position = match parse_chunk_size(line) {
                    0 => Position::Trailers { fresh: true },
                    size => Position::Data { bytes_left: size.saturating_add(2), chunked: true },
                };
            }
            Position::Trailers { fresh: true } if line.is_empty() && last.is_some() => self.position = Position::Head,
            Position::Trailers { .. } => self.position = Position::Trailers { fresh: last == Some(b'\r') },
            Position::Data { .. } => {}
        }
        false
    }

    /// Records the header field in `line` if it frames the body or asks for an upgrade. `is_whole`
    /// is whether `line` has the whole field.
    fn record_framing_field(&mut self, line: &[u8], is_whole: bool) {
        if !matches!(line[0] | 0x20, b'c' | b't' | b'u') {
            return;
        }
        if let Some(value) = field_value(line, b"content-length:") {
            self.head.is_ambiguous |= self.head.is_chunked || self.head.length.is_some() || !is_whole;
            self.head.length = Some(std::str::from_utf8(value).ok().and_then(|value| value.parse().ok()).unwrap_or(0));
        } else if field_value(line, b"transfer-encoding:").is_some() {
            self.head.is_ambiguous |= self.head.length.is_some();
            self.head.is_chunked = true;
        } else if field_value(line, b"upgrade:").is_some() {
            self.head.asks_for_upgrade = true;
        }
    }

    /// Ends the head, and expects the body that it states; returns whether the length of the body
    /// is ambiguous.
    fn end_head(&mut self) -> bool {
        let head = std::mem::take(&mut self.head);
        self.spaces = 0;
        self.may_tunnel |= head.asks_for_upgrade;
        self.fault = if head.is_ambiguous { HeadFault::Ambiguous } else { HeadFault::Other };
        self.position = match head {
            Head { is_chunked: true, .. } => Position::ChunkSize,
            Head { length: Some(bytes_left @ 1..), .. } => Position::Data { bytes_left, chunked: false },
            // The head has no body, or the line was a blank one before a request line.
            _ => Position::Head,
        };
        head.is_ambiguous
    }
}

/// Returns the value of the field in `line` if it begins with `name`: the field's name in lower
/// case, with the colon.
fn field_value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    // The last byte is compared first: in most lines it is not a colon.
    (start.last() == name.last() && start.eq_ignore_ascii_case(name)).then(|| value.trim_ascii())
}

/// Returns the size that the first line of a chunk states, without chunk extensions.
fn parse_chunk_size(line: &[u8]) -> u64 {
    let digits = line.iter().map_while(|byte| char::from(*byte).to_digit(16));
    digits.fold(0, |size, digit| size.saturating_mul(16).saturating_add(digit.into()))
}

//! Decodes the body of a response.

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;

use super::error::ExchangeError;
use super::response_head::{BodyLength, HeadLimits};

/// The most bytes of chunk extensions in one body.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// The chunks in up to this many bytes are joined in a copy; larger input is passed on without a
/// copy.
pub const MAX_JOINED: usize = 16 * 1024;

/// The state of decoding a body.
#[derive(Debug)]
pub enum Decoder {
    /// This many bytes are left.
    Length(u64),
    Chunked(Box<ChunkedDecoder>),
    UntilClose,
}

impl Decoder {
    /// Creates the decoder of a body. `limits` apply to its trailers.
    pub fn new(length: BodyLength, limits: HeadLimits) -> Self {
        match length {
            BodyLength::Known(length) => Self::Length(length),
            BodyLength::Chunked => Self::Chunked(Box::new(ChunkedDecoder::new(limits))),
            BodyLength::UntilClose => Self::UntilClose,
        }
    }

    /// Returns the number of bytes that are left, if it is known.
    pub fn length_left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Returns whether the body has ended and all of it was returned.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.state == State::Done && chunked.trailers.is_empty(),
            Self::UntilClose => false,
        }
    }

    /// Removes the next part of the body from the beginning of `input`, without a copy if it is
    /// large; `None` if more input is needed. Bytes after the end of the body are left.
    ///
    /// # Errors
    /// The chunks are malformed.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<Frame<Bytes>>, ExchangeError> {
        if let Self::Chunked(chunked) = self
            && input.len() > MAX_JOINED
        {
            let Step { skip_length, data_length } = chunked.next_step(input)?;
            input.advance(skip_length);
            let data = input.split_to(data_length);
            release_if_empty(input);
            return if data.is_empty() { chunked.take_trailers() } else { Ok(Some(Frame::data(data))) };
        }
        let part = match self {
            Self::Length(left) => {
                let part = input.split_to(usize::try_from(*left).map_or(input.len(), |left| left.min(input.len())));
                *left -= part.len() as u64;
                part
            }
            Self::Chunked(_) => {
                let (consumed, frame) = self.decode_small(input)?;
                input.advance(consumed);
                release_if_empty(input);
                return Ok(frame);
            }
            Self::UntilClose => std::mem::take(input),
        };
        Ok(Some(part).filter(|part| !part.is_empty()).map(Frame::data))
    }

    /// Copies the next part of the body from `input`; returns how many bytes of it were consumed.
    /// More input is needed if there is no frame.
    ///
    /// # Errors
    /// The chunks are malformed.
    pub fn decode_small(&mut self, input: &[u8]) -> Result<(usize, Option<Frame<Bytes>>), ExchangeError> {
        let part = match self {
            Self::Length(left) => {
                let count = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= count as u64;
                &input[..count]
            }
            Self::Chunked(chunked) => return chunked.decode_joined(input),
            Self::UntilClose => input,
        };
        let frame = (!part.is_empty()).then(|| Frame::data(Bytes::copy_from_slice(part)));
        Ok((part.len(), frame))
    }
}

/// Releases the memory of `input` if all of it was consumed: a connection that waits, or is idle,
/// would keep it.
fn release_if_empty(input: &mut Bytes) {
    if input.is_empty() {
        *input = Bytes::new();
    }
}

/// The state of decoding chunks (RFC 9112 section 7.1).
#[derive(Debug)]
pub struct ChunkedDecoder {
    state: State,
    /// The bytes that are left of the current chunk.
    left: u64,
    extension_bytes: usize,
    /// The trailer section, with the empty line at its end.
    trailers: Vec<u8>,
    trailer_count: usize,
    limits: HeadLimits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    SizeBegin,
    Size,
    /// In spaces after a size.
    SizeEnd,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a line of the trailer section.
    TrailerBegin,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
    /// The chunks are malformed, for this reason.
    Failed(&'static str),
}

/// What comes next in the input of a [`ChunkedDecoder`].
#[derive(Debug)]
struct Step {
    /// The number of bytes before the data.
    skip_length: usize,
    /// The number of bytes of data; 0 if the input or the body ends first.
    data_length: usize,
}

impl ChunkedDecoder {
    fn new(limits: HeadLimits) -> Self {
        Self { state: State::SizeBegin, left: 0, extension_bytes: 0, trailers: Vec::new(), trailer_count: 0, limits }
    }

    /// Decodes `input` up to the end of the next part of data, the end of the body, or the end of
    /// the input.
    fn next_step(&mut self, input: &[u8]) -> Result<Step, ExchangeError> {
        for (skip_length, byte) in input.iter().copied().enumerate() {
            if self.state == State::Data {
                let rest = input.len() - skip_length;
                let data_length = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                self.left -= data_length as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Step { skip_length, data_length });
            }
            if self.state == State::Done {
                return Ok(Step { skip_length, data_length: 0 });
            }
            self.state = self.next_state(byte).map_err(ExchangeError::Chunks)?;
        }
        Ok(Step { skip_length: input.len(), data_length: 0 })
    }

    /// Returns the state after `byte`, which is not data.
    fn next_state(&mut self, byte: u8) -> Result<State, &'static str> {
        Ok(match (self.state, byte) {
            (State::SizeBegin | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                let left = self.left.checked_mul(16).and_then(|left| left.checked_add(digit.into()));
                self.left = left.ok_or("a chunk is too large")?;
                State::Size
            }
            (State::Size | State::SizeEnd, b' ' | b'\t') => State::SizeEnd,
            (State::Size | State::SizeEnd, b';') => State::Extension,
            (State::Size | State::SizeEnd | State::Extension, b'\r') => State::SizeLf,
            (State::Extension, b'\n') => return Err("a line of a chunk ends without CR"),
            (State::Extension, _) => {
                self.extension_bytes += 1;
                if self.extension_bytes >= MAX_EXTENSIONS {
                    return Err("the chunk extensions are too large");
                }
                State::Extension
            }
            (State::SizeLf, b'\n') if self.left == 0 => State::TrailerBegin,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeBegin,
            (State::TrailerBegin, b'\r') if self.trailers.is_empty() => State::EndLf,
            (State::TrailerBegin, b'\r') => {
                self.push_trailer(byte)?;
                State::EndLf
            }
            (State::TrailerBegin | State::Trailer, b'\n') => return Err("a line of a trailer ends without CR"),
            (State::Trailer, b'\r') => {
                self.push_trailer(byte)?;
                State::TrailerLf
            }
            (State::TrailerBegin | State::Trailer, _) => {
                self.push_trailer(byte)?;
                State::Trailer
            }
            (State::TrailerLf, b'\n') => {
                self.push_trailer(byte)?;
                self.trailer_count += 1;
                if self.trailer_count > self.limits.fields {
                    return Err("there are too many trailers");
                }
                State::TrailerBegin
            }
            (State::EndLf, b'\n') if self.trailers.is_empty() => State::Done,
            (State::EndLf, b'\n') => {
                self.push_trailer(byte)?;
                State::Done
            }
            (State::SizeBegin | State::Size | State::SizeEnd | State::SizeLf, _) => {
                return Err("the size of a chunk is malformed");
            }
            (State::DataCr | State::DataLf, _) => return Err("a chunk is longer than its size"),
            (State::TrailerLf | State::EndLf, _) => return Err("a line of a trailer ends without LF"),
            (State::Failed(why), _) => return Err(why),
            (State::Data | State::Done, _) => self.state,
        })
    }

    fn push_trailer(&mut self, byte: u8) -> Result<(), &'static str> {
        self.trailers.push(byte);
        if self.trailers.len() >= self.limits.bytes { Err("the trailers are too large") } else { Ok(()) }
    }

    /// Copies the data of all chunks in `input` into one frame, or takes the trailers if there is
    /// no data; returns how many bytes of `input` were consumed.
    fn decode_joined(&mut self, input: &[u8]) -> Result<(usize, Option<Frame<Bytes>>), ExchangeError> {
        let mut consumed = 0;
        let mut joined = Vec::new();
        while consumed < input.len() {
            let step = self.next_step(&input[consumed..]);
            if let (Err(ExchangeError::Chunks(why)), false) = (&step, joined.is_empty()) {
                // Return the data before the error now. The next call returns the error.
                self.state = State::Failed(why);
                consumed = input.len();
                break;
            }
            let Step { skip_length, data_length } = step?;
            let begin = consumed + skip_length;
            if data_length == 0 {
                consumed = begin;
                break;
            }
            if joined.is_empty() {
                // If the chunk goes on beyond the input, it is the last one in it.
                joined.reserve_exact(if self.left > 0 { data_length } else { input.len() - begin });
            }
            joined.extend_from_slice(&input[begin..begin + data_length]);
            consumed = begin + data_length;
        }
        if joined.is_empty() {
            return self.take_trailers().map(|trailers| (consumed, trailers));
        }
        Ok((consumed, Some(Frame::data(joined.into()))))
    }

    /// Takes the trailers, once the body has ended.
    fn take_trailers(&mut self) -> Result<Option<Frame<Bytes>>, ExchangeError> {
        if let State::Failed(why) = self.state {
            return Err(ExchangeError::Chunks(why));
        }
        if self.state != State::Done || self.trailers.is_empty() {
            return Ok(None);
        }
        let malformed = || ExchangeError::Chunks("a trailer is malformed");
        let section = std::mem::take(&mut self.trailers);
        let mut fields = vec![httparse::EMPTY_HEADER; self.trailer_count];
        let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&section, &mut fields) else {
            return Err(malformed());
        };
        let mut trailers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| malformed())?;
            let value = HeaderValue::from_bytes(field.value).map_err(|_| malformed())?;
            trailers.try_append(name, value).map_err(|_| malformed())?;
        }
        Ok(Some(Frame::trailers(trailers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 64, fields: 2 };

    /// Decodes `input` in pieces of `size` bytes; returns the body, the trailers and the bytes
    /// after the end.
    fn decode(
        length: BodyLength,
        input: &[u8],
        size: usize,
    ) -> Result<(Vec<u8>, Option<HeaderMap>, usize), ExchangeError> {
        let (mut decoder, mut body, mut trailers) = (Decoder::new(length, LIMITS), Vec::new(), None);
        let mut left = input.len();
        for piece in input.chunks(size) {
            let mut piece = Bytes::copy_from_slice(piece);
            let before = piece.len();
            while let Some(frame) = decoder.decode(&mut piece)? {
                match frame.into_data() {
                    Ok(data) => body.extend_from_slice(&data),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
            }
            left -= before - piece.len();
        }
        let is_done = decoder.is_done() || length == BodyLength::UntilClose;
        if is_done { Ok((body, trailers, left)) } else { Err(ExchangeError::Incomplete) }
    }

    #[test]
    fn bodies_are_decoded_however_they_are_split() {
        use BodyLength::{Chunked, Known, UntilClose};
        for (length, input, body, left) in [
            (Known(0), "abc", "", 3),
            (Known(3), "abc", "abc", 0),
            (Known(3), "abcdef", "abc", 3),
            (UntilClose, "abcdef", "abcdef", 0),
            (Chunked, "0\r\n\r\n", "", 0),
            (Chunked, "0\r\n\r\nHTTP/1.1", "", 8),
            (Chunked, "3\r\nabc\r\n0\r\n\r\n", "abc", 0),
            (Chunked, "3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n", "abcdef", 0),
            (Chunked, "0003\r\n\r\n\r\r\n000\r\n\r\n", "\r\n\r", 0),
            (Chunked, "a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", 0),
            (Chunked, "3 \t;a=\"b;\"\r\nabc\r\n0;last\r\n\r\n", "abc", 0),
            (Chunked, "3\r\nabc\r\n0\r\nA: b\r\n\r\nx", "abc", 1),
        ] {
            for size in 1..=input.len() {
                let decoded =
                    decode(length, input.as_bytes(), size).unwrap_or_else(|error| panic!("{input:?}: {error}"));
                assert_eq!((decoded.0.as_slice(), decoded.2), (body.as_bytes(), left), "{input:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn consumed_input_is_released() {
        for size in [10, MAX_JOINED + 1] {
            let memory = Bytes::from(format!("{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size)));
            let mut input = memory.clone();
            let mut decoder = Decoder::new(BodyLength::Chunked, LIMITS);
            while decoder.decode(&mut input).unwrap().is_some() {}
            assert!(decoder.is_done() && input.is_empty());
            assert!(memory.is_unique(), "{size}");
        }
    }

    #[test]
    fn malformed_and_cut_chunks_are_refused_however_they_are_split() {
        for input in [
            "",
            "\r\n",
            "x",
            ";a\r\n",
            " 3\r\nabc\r\n0\r\n\r\n",
            "-3\r\nabc\r\n0\r\n\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "0x3\r\nabc\r\n0\r\n\r\n",
            "3 3\r\nabc\r\n0\r\n\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc0\r\n\r\n",
            "3\r\nabc\r\n0\n\r\n",
            "3\r\nabc\r\n0\r\n\n",
            "3\r\nabc\r\n0\r\n",
            "3\r\nabc\r\n0\r\n\r",
            "3\r\nabc\r\n",
            "3\r\nab",
            "3;a\nb\r\nabc\r\n0\r\n\r\n",
            "3;a\rb\r\nabc\r\n0\r\n\r\n",
            "3\r\rabc\r\n0\r\n\r\n",
            "10000000000000000\r\n",
            "fffffffffffffffff\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\nA: b\r\n\n",
            "0\r\nA: b\rC: d\r\n\r\n",
            "0\r\nA: b\r\n",
            "0\r\nA b\r\n\r\n",
            "0\r\nA : b\r\n\r\n",
            "0\r\n A: b\r\n\r\n",
            "0\r\nA: b\r\n c\r\n\r\n",
            "0\r\n: b\r\n\r\n",
            "0\r\nA: \0\r\n\r\n",
        ] {
            for size in 1..=input.len().max(1) {
                let decoded = decode(BodyLength::Chunked, input.as_bytes(), size);
                assert!(decoded.is_err(), "{input:?} in pieces of {size}: {decoded:?}");
            }
        }
    }

    #[test]
    fn trailers_and_extensions_are_bounded() {
        let trailers = |section: &str| decode(BodyLength::Chunked, format!("0\r\n{section}\r\n").as_bytes(), 7);
        let two = trailers("A: b\r\nA: c\r\n").unwrap().1.unwrap();
        assert_eq!(two.get_all("a").iter().collect::<Vec<_>>(), ["b", "c"]);
        assert!(trailers("A: b\r\nA: c\r\nA: d\r\n").is_err(), "three fields");
        let of_size = |size: usize| format!("A: {}\r\n", "b".repeat(size - 5));
        // With the empty line, the section must be smaller than the limit.
        assert!(trailers(&of_size(LIMITS.bytes - 3)).is_ok());
        assert!(trailers(&of_size(LIMITS.bytes - 2)).is_err());
        // The limit applies to all chunks together.
        let extended = |size: usize| {
            let extension = "a".repeat(size / 2);
            decode(BodyLength::Chunked, format!("1;{extension}\r\nx\r\n0;{extension}\r\n\r\n").as_bytes(), 1000)
        };
        assert!(extended(MAX_EXTENSIONS - 2).is_ok());
        assert!(extended(MAX_EXTENSIONS).is_err());
    }

    #[test]
    fn large_input_is_not_copied() {
        let chunk = |byte: u8| [b"8000\r\n".as_slice(), &[byte; 0x8000], b"\r\n"].concat();
        let block = Bytes::from([chunk(b'a'), chunk(b'b'), b"0\r\n\r\n".to_vec()].concat());
        let range = block.as_ptr_range();
        let (mut decoder, mut input) = (Decoder::new(BodyLength::Chunked, LIMITS), block.clone());
        for byte in [b'a', b'b'] {
            let data = decoder.decode(&mut input).unwrap().unwrap().into_data().unwrap();
            assert!(data == vec![byte; 0x8000]);
            assert!(range.contains(&data.as_ptr()), "the chunk of {byte} was copied");
        }
        assert!(decoder.decode(&mut input).unwrap().is_none() && decoder.is_done() && input.is_empty());
    }
}

//! The fuzz target for the gateway's responses: loopgate's HTTP/1.1 client beside hyper's.

use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Request};
use http_body_util::Empty;
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::{BrokenBody, ExchangeError, Framing, H1Connection, HeadLimits};

const LIMITS: HeadLimits = HeadLimits { bytes: 1024, fields: 16 };
/// Neither client needs more polls for one response.
const MAX_POLLS: usize = 100_000;

/// A gateway that sends `pieces` after it has got a part of a request, one for each read, and
/// closes.
struct FakeGateway {
    pieces: VecDeque<Bytes>,
    has_request: bool,
    /// Whether every other read is pending.
    is_slow: bool,
    was_ready: bool,
}

impl AsyncRead for FakeGateway {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.was_ready = !self.was_ready;
        if !self.has_request || self.is_slow && !self.was_ready {
            return Poll::Pending;
        }
        if let Some(mut piece) = self.pieces.pop_front() {
            let count = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..count]);
            piece.advance(count);
            if !piece.is_empty() {
                self.pieces.push_front(piece);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FakeGateway {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.has_request = true;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn fake_gateway(pieces: &[&[u8]], is_slow: bool) -> FakeGateway {
    // An empty read would be the end of the stream.
    let pieces = pieces.iter().filter(|piece| !piece.is_empty()).map(|piece| Bytes::copy_from_slice(piece)).collect();
    FakeGateway { pieces, has_request: false, is_slow, was_ready: false }
}

/// What a client gets.
#[derive(Debug, Default, PartialEq)]
struct Received {
    /// The statuses of interim responses.
    interims: Vec<u16>,
    /// The status, and the fields other than `Content-Length`.
    head: Option<(u16, HeaderMap)>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    is_complete: bool,
}

fn head_without_length(status: u16, mut headers: HeaderMap) -> Option<(u16, HeaderMap)> {
    headers.remove(CONTENT_LENGTH);
    Some((status, headers))
}

impl Received {
    fn add_frame(&mut self, frame: http_body::Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => {
                assert!(!data.is_empty(), "an empty frame");
                self.body.extend_from_slice(&data);
            }
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
    }
}

/// Polls `poll` until it is ready. Panics after [`MAX_POLLS`] polls.
fn block<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..MAX_POLLS {
        if let Poll::Ready(result) = poll(&mut cx) {
            return result;
        }
    }
    panic!("the client waits although the gateway has sent everything");
}

/// Returns what loopgate's client gets, why the response ended early, and whether the connection
/// may be used again.
fn by_loopgate(
    gateway: FakeGateway,
    is_head_request: bool,
    block_size: usize,
) -> (Received, Option<ExchangeError>, bool) {
    type NoBody = http_body_util::combinators::MapErr<Empty<Bytes>, fn(std::convert::Infallible) -> BrokenBody>;
    let mut received = Received::default();
    let mut client = H1Connection::<_, NoBody>::new(gateway, LIMITS);
    assert!(block(|cx| client.poll_can_send(cx)));
    let request = Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n");
    client.begin_request(request, is_head_request, Framing::Length(0), None, HeaderMap::new());
    let head = loop {
        match block(|cx| client.poll_head(cx)) {
            Ok(head) if head.is_interim() => received.interims.push(head.status.as_u16()),
            Ok(head) => break head,
            Err(error) => return (received, Some(error), client.is_reusable()),
        }
    };
    let stated = head.headers.get_all(CONTENT_LENGTH).iter().count();
    assert!(stated <= 1, "{:?}", head.headers);
    if head.status == 101 {
        received.head = head_without_length(101, head.headers);
        received.is_complete = true;
        return (received, None, client.is_reusable());
    }
    let length = client.length_left();
    received.head = head_without_length(head.status.as_u16(), head.headers);
    loop {
        match block(|cx| client.poll_frame(cx, block_size)) {
            Some(Ok(frame)) => received.add_frame(frame),
            Some(Err(error)) => return (received, Some(error), client.is_reusable()),
            None => break,
        }
    }
    assert!(length.is_none_or(|length| length == received.body.len() as u64), "{length:?} {received:?}");
    received.is_complete = true;
    (received, None, client.is_reusable())
}

/// Returns what hyper's client gets.
fn by_hyper(gateway: FakeGateway, is_head_request: bool) -> Received {
    let handshake = http1::Builder::new()
        .max_headers(LIMITS.fields)
        .max_header_size(LIMITS.bytes)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(gateway));
    let mut handshake = pin!(handshake);
    let (mut sender, connection) = block(|cx| handshake.as_mut().poll(cx)).expect("the handshake does no I/O");
    let mut connection = pin!(connection);
    let mut has_ended = false;
    let mut drive = |cx: &mut Context<'_>| has_ended = has_ended || connection.as_mut().poll(cx).is_ready();
    let method = if is_head_request { Method::HEAD } else { Method::GET };
    let mut request = Request::builder().method(method).body(Empty::new()).expect("the request is valid");
    let interims = std::sync::Arc::<std::sync::Mutex<Vec<u16>>>::default();
    let interims_received = std::sync::Arc::clone(&interims);
    hyper::ext::on_informational(&mut request, move |response| {
        interims_received.lock().unwrap().push(response.status().as_u16());
    });
    let mut response = pin!(sender.send_request(request));
    let response = block(|cx| {
        drive(cx);
        response.as_mut().poll(cx)
    });
    let mut received = Received { interims: interims.lock().unwrap().clone(), ..Received::default() };
    let Ok(response) = response else { return received };
    let (parts, mut body) = response.into_parts();
    received.head = head_without_length(parts.status.as_u16(), parts.headers);
    loop {
        let frame = block(|cx| {
            drive(cx);
            Pin::new(&mut body).poll_frame(cx)
        });
        match frame {
            Some(Ok(frame)) => received.add_frame(frame),
            Some(Err(_)) => return received,
            None => break,
        }
    }
    received.is_complete = true;
    received
}

/// Returns whether loopgate's client refuses on purpose, with `error`, what hyper's client accepts.
fn is_stricter(error: &ExchangeError) -> bool {
    match error {
        // hyper treats a body with another coding than `chunked` as one that it can decode.
        ExchangeError::TransferEncoding => true,
        // hyper also accepts repeated lengths that are equal only as numbers (`5, 05`), and larger
        // lengths.
        ExchangeError::Length(why) => why.starts_with("Content-Length"),
        // hyper accepts a line end without CR in trailers.
        ExchangeError::Chunks(why) => *why == "a line of a trailer ends without CR",
        _ => false,
    }
}

/// Reads `data`, after its first byte, as what the gateway sends in response to one request, with
/// loopgate's client and with hyper's. Asserts that both get the same, and that loopgate's gets it
/// however the bytes are split. The first byte selects the method and the size of the pieces.
pub fn fuzz_responses(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else { return };
    let (is_head_request, size) = (first & 1 != 0, usize::from(first >> 1).max(1));
    let pieces: Vec<_> = bytes.chunks(size).collect();
    let (whole, error, may_reuse) = by_loopgate(fake_gateway(&[bytes], false), is_head_request, 0);
    let (in_pieces, error_in_pieces, _) = by_loopgate(fake_gateway(&pieces, true), is_head_request, 64 * 1024);
    assert_eq!(whole, in_pieces, "in pieces of {size}");
    assert_eq!(error.map(|error| error.to_string()), error_in_pieces.as_ref().map(ToString::to_string));
    assert!(!may_reuse || whole.is_complete);

    let expected = by_hyper(fake_gateway(&[bytes], false), is_head_request);
    if error_in_pieces.as_ref().is_some_and(is_stricter) {
        assert_eq!(whole.interims, expected.interims);
        assert!(whole.head.is_none() || whole.head == expected.head);
        assert_eq!(expected.body.get(..whole.body.len()), Some(whole.body.as_slice()));
        return;
    }
    assert_eq!(whole, expected, "as hyper reads it: {error_in_pieces:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Responses, and the body that each has; `None` if it is not complete.
    const TABLE: &[(&str, Option<&str>)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Some("hello")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more", Some("hello")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some("")),
        ("HTTP/1.1 200 OK\r\n\r\nto the end", Some("to the end")),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", Some("ok")),
        ("HTTP/1.1 200\r\nContent-Length: 2\n\nok", Some("ok")),
        ("\r\n\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Some("ok")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", Some("abcde")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Some("")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n", Some("abc")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\na\r\n0\r\n\r\n", Some("a")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1, 01\r\n\r\nab", None),
        ("HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", Some("")),
        ("HTTP/1.1 103 Early\r\nLink: a\r\n\r\n", None),
        ("HTTP/1.1 103 Early\r\n\r\nHTTP/9\r\n\r\n", None),
        ("HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n\x01\x02", Some("")),
        ("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello", Some("")),
        ("HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n", Some("")),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nA: b\r\n", None),
        ("HTTP/1.1 2", None),
        ("", None),
        ("\x15\x03\x03\0\x02\x02\x16", None),
    ];

    #[test]
    fn a_response_is_the_same_however_it_is_split_and_as_hyper_reads_it() {
        for (response, body) in TABLE {
            let bytes = response.as_bytes();
            let (whole, error, _) = by_loopgate(fake_gateway(&[bytes], false), false, 0);
            assert_eq!(whole.is_complete.then_some(whole.body.as_slice()), body.map(str::as_bytes), "{response:?}");
            let check = |pieces: &[&[u8]]| {
                let split = by_loopgate(fake_gateway(pieces, true), false, 0);
                assert_eq!(split.0, whole, "{response:?} in {} pieces", pieces.len());
                let text = |error: Option<&ExchangeError>| error.map(ToString::to_string);
                assert_eq!(text(split.1.as_ref()), text(error.as_ref()), "{response:?}");
            };
            for at in 0..=bytes.len() {
                check(&[&bytes[..at], &bytes[at..]]);
            }
            check(&bytes.chunks(1).collect::<Vec<_>>());
            for first in 0..8 {
                fuzz_responses(&[&[first], bytes].concat());
            }
        }
    }

    #[test]
    fn large_bodies_are_read_in_blocks() {
        let body: Vec<u8> = (0..300_000u32).map(|at| at.to_le_bytes()[usize::from(at % 3 == 0)]).collect();
        let chunks: Vec<u8> = body
            .chunks(70_000)
            .flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
            .collect();
        for (framing, sent) in [
            (format!("Content-Length: {}", body.len()), body.clone()),
            ("Transfer-Encoding: chunked".to_owned(), [chunks, b"0\r\n\r\n".to_vec()].concat()),
            ("A: b".to_owned(), body.clone()),
        ] {
            let bytes = [format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes(), &sent].concat();
            for (size, block) in [(300_100, 0), (300_100, 65_536), (20_000, 65_536), (9000, 32_768), (100, 65_536)] {
                let pieces: Vec<_> = bytes.chunks(size).collect();
                let (received, error, may_reuse) = by_loopgate(fake_gateway(&pieces, true), false, block);
                assert!(received.body == body, "{framing} in pieces of {size}: {error:?}");
                assert_eq!(may_reuse, framing != "A: b");
            }
        }
    }
}

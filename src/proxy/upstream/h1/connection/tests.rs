use std::collections::VecDeque;
use std::io;
use std::task::Waker;

use http_body::SizeHint;

use super::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 16 };

/// A stream whose input the test provides, and which records what is written to it.
#[derive(Default)]
struct Stream {
    to_read: VecDeque<Result<Bytes, io::ErrorKind>>,
    /// The number of bytes of each read.
    reads: Vec<usize>,
    written: Vec<u8>,
    writes: usize,
    /// The number of bytes that writes still accept.
    room: usize,
    is_broken: bool,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.to_read.pop_front() {
            None => Poll::Pending,
            Some(Err(kind)) => Poll::Ready(Err(kind.into())),
            Some(Ok(mut bytes)) => {
                let count = bytes.len().min(buf.remaining());
                self.reads.push(count);
                buf.put_slice(&bytes.split_to(count));
                if !bytes.is_empty() {
                    self.to_read.push_front(Ok(bytes));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = self.room.min(buf.len());
        if count == 0 {
            return Poll::Pending;
        }
        self.room -= count;
        self.writes += 1;
        self.written.extend_from_slice(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write(cx, &bufs.iter().flat_map(|buf| buf.iter().copied()).collect::<Vec<_>>())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A body with the frames that the test gives it.
#[derive(Default)]
struct Upload {
    frames: VecDeque<Option<Result<Frame<Bytes>, BrokenBody>>>,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        self.frames.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

fn data(bytes: impl Into<Bytes>) -> Option<Result<Frame<Bytes>, BrokenBody>> {
    Some(Ok(Frame::data(bytes.into())))
}

/// Returns a connection on which a request has begun. Its body yields `frames`, and is pending
/// after them.
fn with_request(
    framing: Framing,
    frames: impl IntoIterator<Item = Option<Result<Frame<Bytes>, BrokenBody>>>,
) -> H1Connection<Stream, Upload> {
    let mut connection = H1Connection::new(Stream { room: usize::MAX, ..Stream::default() }, LIMITS);
    assert_eq!(poll(|cx| connection.poll_can_send(cx)), Poll::Ready(true));
    let body = Upload { frames: frames.into_iter().collect() };
    connection.begin_request(Bytes::from_static(b"POST\r\n\r\n"), false, framing, Some(body), HeaderMap::new());
    connection
}

fn poll<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls for the response's head, and asserts that it is pending.
fn poll_no_head(connection: &mut H1Connection<Stream, Upload>) {
    let head = poll(|cx| connection.poll_head(cx));
    assert!(head.is_pending(), "{head:?}");
}

/// Adds `bytes` to the input of the connection's stream.
fn receive(connection: &mut H1Connection<Stream, Upload>, bytes: &'static str) {
    connection.stream.to_read.push_back(Ok(Bytes::from_static(bytes.as_bytes())));
}

#[test]
fn a_body_is_framed_with_few_writes() {
    let large = "x".repeat(2000);
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
    for (framing, frames, expected, writes) in [
        (Framing::Length(3), vec![data("abc"), None], "abc".to_owned(), 1),
        (Framing::Length(3), vec![data("a"), data("bc"), None], "abc".to_owned(), 1),
        (Framing::Length(2000), vec![data(large.clone()), None], large.clone(), 1),
        (Framing::Chunked, vec![None], "0\r\n\r\n".to_owned(), 1),
        (Framing::Chunked, vec![data(""), data("abc"), data(""), None], "3\r\nabc\r\n0\r\n\r\n".to_owned(), 1),
        (
            Framing::Chunked,
            vec![data("abc"), data(large.clone()), None],
            format!("3\r\nabc\r\n7D0\r\n{large}\r\n0\r\n\r\n"),
            2,
        ),
        (
            Framing::Chunked,
            vec![data(large.clone()), Some(Ok(Frame::trailers(trailers.clone())))],
            format!("7D0\r\n{large}\r\n0\r\nx-sum: 1\r\n\r\n"),
            2,
        ),
        (Framing::Chunked, vec![Some(Ok(Frame::trailers(HeaderMap::new())))], "0\r\n\r\n".to_owned(), 1),
        (Framing::Length(1), vec![data("a"), Some(Ok(Frame::trailers(trailers.clone())))], "a".to_owned(), 1),
    ] {
        let mut connection = with_request(framing, frames);
        poll_no_head(&mut connection);
        assert!(connection.is_request_done());
        let written = String::from_utf8(connection.stream.written.clone()).unwrap();
        assert_eq!(written, format!("POST\r\n\r\n{expected}"));
        assert_eq!(connection.stream.writes, writes, "{written}");
    }
}

#[test]
fn a_stream_that_takes_single_bytes_gets_the_same() {
    let large = "x".repeat(2000);
    let mut connection = with_request(Framing::Chunked, [data("abc"), data(large.clone()), data("d"), None]);
    while !connection.is_request_done() {
        connection.stream.room = 1;
        poll_no_head(&mut connection);
    }
    let expected = format!("POST\r\n\r\n3\r\nabc\r\n7D0\r\n{large}\r\n1\r\nd\r\n0\r\n\r\n");
    assert!(connection.stream.written == expected.as_bytes());
}

#[test]
fn a_body_of_another_length_than_stated_breaks_the_exchange() {
    for frames in [vec![data("ab"), None], vec![data("abcd")], vec![data("ab"), data("cd")]] {
        let mut connection = with_request(Framing::Length(3), frames);
        let head = poll(|cx| connection.poll_head(cx));
        assert!(matches!(head, Poll::Ready(Err(ExchangeError::RequestLength))), "{head:?}");
        assert!(!connection.is_reusable());
    }
}

#[test]
fn an_early_response_is_read_while_the_body_waits_and_after_a_write_has_failed() {
    for is_broken in [false, true] {
        let mut connection = with_request(Framing::Length(6000), [data("x".repeat(3000))]);
        connection.stream.room = 10;
        poll_no_head(&mut connection);
        connection.stream.is_broken = is_broken;
        receive(&mut connection, "HTTP/1.1 413 A\r\nContent-Length: 2\r\n\r\nno");
        let Poll::Ready(Ok(head)) = poll(|cx| connection.poll_head(cx)) else { panic!("no head") };
        assert_eq!(head.status, 413);
        let Poll::Ready(Some(Ok(frame))) = poll(|cx| connection.poll_frame(cx, 0)) else { panic!("no body") };
        assert_eq!(frame.into_data().unwrap(), "no");
        assert!(connection.is_response_done() && !connection.is_request_done() && !connection.is_reusable());
        assert!(poll(|cx| connection.poll_sent(cx)).is_pending(), "the rest of the body is awaited");
        connection.request_body().unwrap().frames.extend([data("y".repeat(3000)), None]);
        connection.stream.room = usize::MAX;
        assert!(poll(|cx| connection.poll_sent(cx)).is_ready());
        assert_eq!(connection.is_reusable(), !is_broken);
    }
}

#[test]
fn a_client_that_breaks_off_ends_the_exchange() {
    let mut connection = with_request(Framing::Chunked, [data("abc"), Some(Err(BrokenBody::Reset))]);
    let head = poll(|cx| connection.poll_head(cx));
    assert!(matches!(head, Poll::Ready(Err(ExchangeError::RequestBody(BrokenBody::Reset)))), "{head:?}");
    let written = String::from_utf8_lossy(&connection.stream.written);
    assert!(!written.contains("0\r\n\r\n"), "the gateway must not take the body for complete: {written}");
    let mut connection = with_request(Framing::Chunked, [data("abc")]);
    receive(&mut connection, "HTTP/1.1 200 A\r\nContent-Length: 2\r\n\r\n");
    assert!(poll(|cx| connection.poll_head(cx)).is_ready());
    connection.request_body().unwrap().frames.push_back(Some(Err(BrokenBody::Reset)));
    let frame = poll(|cx| connection.poll_frame(cx, 0));
    assert!(matches!(frame, Poll::Ready(Some(Err(ExchangeError::RequestBody(_))))), "{frame:?}");
    assert!(!connection.is_response_done() && !connection.is_reusable());
}

#[test]
fn an_upload_without_a_wanted_frame_goes_on_until_it_breaks_off() {
    let mut connection = with_request(Framing::Chunked, [data("abc")]);
    receive(&mut connection, "HTTP/1.1 200 A\r\nContent-Length: 2\r\n\r\n");
    assert!(poll(|cx| connection.poll_head(cx)).is_ready());
    for frame in [data("def"), Some(Err(BrokenBody::Reset)), None] {
        connection.request_body().unwrap().frames.push_back(frame);
        connection.poll_upload(&mut Context::from_waker(Waker::noop()));
    }
    let written = String::from_utf8_lossy(&connection.stream.written);
    assert!(written.contains("def") && !written.contains("0\r\n\r\n"), "a broken body gets no last chunk: {written}");
    let frame = poll(|cx| connection.poll_frame(cx, 0));
    assert!(matches!(frame, Poll::Ready(Some(Err(ExchangeError::RequestBody(_))))), "{frame:?}");
    assert!(!connection.is_reusable());
}

#[test]
fn a_connection_can_send_only_if_nothing_came_after_the_last_response() {
    const RESPONSE: &str = "HTTP/1.1 200 A\r\nContent-Length: 2\r\n\r\nok";
    // What the stream reads after the response: nothing, its end, a byte, or an error.
    for (after, can_send) in [(None, true), (Some(Ok(Bytes::new())), false), (Some(Ok("x".into())), false)]
        .into_iter()
        .chain([(Some(Err(io::ErrorKind::ConnectionReset)), false)])
    {
        let mut connection = with_request(Framing::Chunked, [None]);
        assert!(!connection.is_reusable(), "no response was read");
        receive(&mut connection, RESPONSE);
        assert!(poll(|cx| connection.poll_head(cx)).is_ready());
        assert!(!connection.is_reusable(), "the response's body was not read");
        assert!(poll(|cx| connection.poll_frame(cx, 0)).is_ready());
        assert!(connection.is_reusable());
        connection.stream.to_read.extend(after);
        assert_eq!(poll(|cx| connection.poll_can_send(cx)), Poll::Ready(can_send));
    }
    for response in [
        "HTTP/1.1 200 A\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 A\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 200 A\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n\r\n",
        "HTTP/1.1 204 A\r\n\r\nx",
    ] {
        let mut connection = with_request(Framing::Chunked, [None]);
        receive(&mut connection, response);
        assert!(poll(|cx| connection.poll_head(cx)).is_ready());
        while !connection.is_response_done() {
            assert!(poll(|cx| connection.poll_frame(cx, 0)).is_ready());
        }
        assert!(!connection.is_reusable(), "{response:?}: bytes follow the response");
    }
}

#[test]
fn a_large_body_is_read_in_blocks() {
    const BLOCK: usize = 64 * 1024;
    const ROOM: usize = BLOCK - READ_OFFSET;
    // The first read of a body without a length uses the shared buffer. The end of a body has no
    // read of its own.
    for (fields, before, length, reads) in [
        ("Content-Length: 40000", "", 40_000, vec![40_000]),
        ("Content-Length: 170944", "", 2 * ROOM + 40_000, vec![ROOM, ROOM, 40_000]),
        ("Connection: close", "", SHARED_SIZE + 3 * ROOM, vec![SHARED_SIZE, ROOM, ROOM, ROOM]),
        ("Transfer-Encoding: chunked", "100000\r\n", SHARED_SIZE + 2 * ROOM, vec![SHARED_SIZE, ROOM, ROOM]),
    ] {
        let mut connection = with_request(Framing::Chunked, [None]);
        let head = format!("HTTP/1.1 200 A\r\n{fields}\r\n\r\n");
        connection.stream.to_read.push_back(Ok(head.into()));
        assert!(poll(|cx| connection.poll_head(cx)).is_ready());
        connection.stream.reads.clear();
        let body = [before.as_bytes(), &vec![b'a'; length - before.len()]].concat();
        connection.stream.to_read.push_back(Ok(body.into()));
        while connection.stream.reads.iter().sum::<usize>() < length {
            assert!(poll(|cx| connection.poll_frame(cx, BLOCK)).is_ready());
        }
        assert_eq!(connection.stream.reads, reads, "{fields}");
    }
}

#[test]
fn an_upgraded_stream_keeps_the_bytes_after_the_head() {
    let mut connection = with_request(Framing::Chunked, [None]);
    receive(&mut connection, "HTTP/1.1 101 A\r\nUpgrade: websocket\r\n\r\nframe");
    assert!(poll(|cx| connection.poll_head(cx)).is_ready());
    assert!(!connection.is_reusable());
    assert_eq!(connection.into_upgraded().map(|(_, early)| early).unwrap(), "frame");
    assert!(with_request(Framing::Chunked, [None]).into_upgraded().is_none());
}

#[test]
fn a_head_is_bounded_however_slowly_it_comes() {
    let mut connection = with_request(Framing::Chunked, [None]);
    receive(&mut connection, "HTTP/1.1 200 A\r\n");
    for line in 0.. {
        receive(&mut connection, "A: b\r\n");
        match poll(|cx| connection.poll_head(cx)) {
            Poll::Pending => assert!(line < LIMITS.bytes / 6),
            Poll::Ready(head) => {
                assert!(matches!(head, Err(ExchangeError::HeadTooLarge)), "{head:?}");
                break;
            }
        }
    }
    assert!(!connection.is_reusable());
}

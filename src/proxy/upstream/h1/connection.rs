//! A connection that carries one request at a time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use super::decode::Decoder;
use super::encode::Framing;
use super::error::ExchangeError;
use super::outgoing::Outgoing;
use super::read::{SHARED_SIZE, poll_read_block, poll_read_shared};
use super::response_head::{HeadLimits, ResponseHead, parse_head};
use crate::proxy::upstream::request_body::BrokenBody;

/// A connection to the gateway, whose requests have bodies of the type `B`.
#[derive(Debug)]
pub struct H1Connection<S, B> {
    stream: S,
    limits: HeadLimits,
    outgoing: Outgoing<B>,
    incoming: Incoming,
    /// An empty map, which the fields of the response are added to.
    spare: HeaderMap,
    /// Bytes that were read and not decoded yet.
    unread: Bytes,
    /// Whether a byte was read since the current request began.
    has_response_begun: bool,
    /// Whether the last read filled its buffer, so that more is probably there.
    is_read_full: bool,
    /// Whether the latest response permits another request.
    may_reuse: bool,
    /// The error of [`Self::poll_upload`], which the next frame reports. The request's body is not polled after it.
    upload_error: Option<ExchangeError>,
}

/// The state of the response.
#[derive(Debug)]
enum Incoming {
    /// In the head of a response. No head ends in the first `searched` bytes.
    Head {
        is_head_request: bool,
        searched: usize,
    },
    Body(Decoder),
    /// The response has ended, or no request was sent yet.
    Done,
    /// The gateway agreed to an upgrade.
    Upgraded,
    /// The exchange has failed.
    Failed,
}

impl<S, B> H1Connection<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes, Error = BrokenBody> + Unpin,
{
    /// Begins HTTP on `stream`.
    pub fn new(stream: S, limits: HeadLimits) -> Self {
        Self {
            stream,
            limits,
            outgoing: Outgoing::none(),
            incoming: Incoming::Done,
            spare: HeaderMap::new(),
            unread: Bytes::new(),
            has_response_begun: false,
            is_read_full: false,
            may_reuse: true,
            upload_error: None,
        }
    }

    /// Returns whether a request can be sent: the gateway has not closed the connection, and has sent nothing since the
    /// last response. Is pending only if the budget of the task is spent.
    pub fn poll_can_send(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.is_reusable() {
            return Poll::Ready(false);
        }
        // Without a budget, the stream would be pending whatever it has.
        drop(ready!(coop::poll_proceed(cx)));
        let mut byte = [0];
        Poll::Ready(Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending())
    }

    /// Begins a request with this head, and a body that is framed as the head states. `is_head_request` is whether its
    /// method is HEAD. If the fields of the response fit into `spare`, which must be empty, no other map is made.
    pub fn begin_request(
        &mut self,
        head: Bytes,
        is_head_request: bool,
        framing: Framing,
        body: Option<B>,
        spare: HeaderMap,
    ) {
        self.spare = spare;
        self.outgoing = Outgoing::new(head, framing, body);
        self.incoming = Incoming::Head { is_head_request, searched: 0 };
        self.has_response_begun = false;
        self.is_read_full = false;
    }

    /// Sends the request as far as possible, and waits for the next interim response or the head of the final one.
    ///
    /// # Errors
    /// The connection or the request's body broke off, or the head is not acceptable. The connection can't be used any
    /// more.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, ExchangeError>> {
        let head = ready!(self.poll_next_head(cx));
        match &head {
            Err(_) => self.incoming = Incoming::Failed,
            Ok(head) if head.is_interim() => {}
            Ok(head) => {
                self.may_reuse = head.may_reuse;
                self.incoming = if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    Incoming::Upgraded
                } else {
                    Incoming::Body(Decoder::new(head.body, self.limits))
                };
                self.end_if_done();
            }
        }
        Poll::Ready(head)
    }

    /// Sends the request as far as possible, and reads the next head. The caller then moves on to the body, or
    /// records the failure.
    fn poll_next_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, ExchangeError>> {
        if let Poll::Ready(Err(error)) = self.outgoing.poll_send(&mut self.stream, cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            if let Some(head) = self.take_head(false)? {
                return Poll::Ready(Ok(head));
            }
            let Self { stream, unread, .. } = self;
            let count = ready!(poll_read_shared(stream, cx, |bytes| {
                if unread.is_empty() {
                    *unread = Bytes::copy_from_slice(bytes);
                } else {
                    let mut joined = Vec::from(std::mem::take(unread));
                    joined.extend_from_slice(bytes);
                    *unread = joined.into();
                }
                bytes.len()
            }))
            .map_err(ExchangeError::Io)?;
            if count == 0 {
                // At the end, a head that is not complete is an error; parsing tells which one.
                return Poll::Ready(self.take_head(true).and_then(|head| head.ok_or(ExchangeError::Incomplete)));
            }
            self.has_response_begun = true;
            self.is_read_full = count == SHARED_SIZE;
        }
    }

    /// Takes a head from the bytes that were read, if it is complete. Unless `is_end`, it is not looked for where there
    /// is no empty line: each search costs time in proportion to the length of the head.
    fn take_head(&mut self, is_end: bool) -> Result<Option<ResponseHead>, ExchangeError> {
        let Incoming::Head { is_head_request, searched } = &mut self.incoming else {
            return Err(ExchangeError::Incomplete);
        };
        let is_first = *searched == 0;
        if self.unread.is_empty()
            || !is_first && !is_end && self.unread.len() < self.limits.bytes && !has_empty_line(&self.unread, *searched)
        {
            *searched = self.unread.len();
            return Ok(None);
        }
        let Some((length, head)) = parse_head(&self.unread, self.limits, *is_head_request, &mut self.spare)? else {
            *searched = self.unread.len();
            return Ok(None);
        };
        drop(self.unread.split_to(length));
        *searched = 0;
        Ok(Some(head))
    }

    /// Sends the request's body as far as possible, and returns the next part of the response's body; `None` at its
    /// end. A read takes at most `block` bytes, if that is more than [`SHARED_SIZE`], and at most [`SHARED_SIZE`]
    /// otherwise.
    ///
    /// # Errors
    /// The connection or the request's body broke off, or the response's body is malformed. The connection can't be
    /// used any more.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        block: usize,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let frame = ready!(self.poll_next_frame(cx, block));
        match frame {
            Err(_) => self.incoming = Incoming::Failed,
            Ok(_) => self.end_if_done(),
        }
        Poll::Ready(frame.transpose())
    }

    /// Sends the request's body as far as possible, and reads the next frame of the response's. The caller records
    /// a failure.
    fn poll_next_frame(
        &mut self,
        cx: &mut Context<'_>,
        block: usize,
    ) -> Poll<Result<Option<Frame<Bytes>>, ExchangeError>> {
        self.poll_upload(cx);
        if let Some(error) = self.upload_error.take() {
            return Poll::Ready(Err(error));
        }
        loop {
            let decoder = match &mut self.incoming {
                Incoming::Body(decoder) => decoder,
                Incoming::Done => return Poll::Ready(Ok(None)),
                _ => return Poll::Ready(Err(ExchangeError::Incomplete)),
            };
            if let Some(frame) = decoder.decode(&mut self.unread)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            if decoder.is_done() {
                return Poll::Ready(Ok(None));
            }
            let left = decoder.length_left().map(|left| usize::try_from(left).unwrap_or(usize::MAX));
            let (frame, is_end) = if left.map_or(self.is_read_full, |left| left > SHARED_SIZE) {
                let size = block.max(SHARED_SIZE).min(left.unwrap_or(usize::MAX));
                let bytes = ready!(poll_read_block(&mut self.stream, cx, size)).map_err(ExchangeError::Io)?;
                self.is_read_full = bytes.len() == size;
                self.unread = bytes;
                (None, self.unread.is_empty())
            } else {
                let unread = &mut self.unread;
                let (count, decoded) = ready!(poll_read_shared(&mut self.stream, cx, |bytes| {
                    let decoded = decoder.decode_small(bytes).map(|(consumed, frame)| {
                        *unread = Bytes::copy_from_slice(&bytes[consumed..]);
                        frame
                    });
                    (bytes.len(), decoded)
                }))
                .map_err(ExchangeError::Io)?;
                self.is_read_full = count == SHARED_SIZE;
                (decoded?, count == 0)
            };
            if is_end {
                let Incoming::Body(Decoder::UntilClose) = self.incoming else {
                    return Poll::Ready(Err(ExchangeError::Incomplete));
                };
                self.incoming = Incoming::Done;
            }
            if let Some(frame) = frame {
                return Poll::Ready(Ok(Some(frame)));
            }
        }
    }

    /// Sends the request's body as far as possible, while no part of the response is wanted.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if self.upload_error.is_none()
            && !self.outgoing.is_done()
            && let Poll::Ready(Err(error)) = self.outgoing.poll_send(&mut self.stream, cx)
        {
            self.upload_error = Some(error);
        }
    }

    /// Ends the response once all of its body was returned.
    fn end_if_done(&mut self) {
        if matches!(&self.incoming, Incoming::Body(decoder) if decoder.is_done()) {
            self.incoming = Incoming::Done;
        }
    }

    /// Sends the rest of the request's body, after the response has ended.
    pub fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.outgoing.poll_send(&mut self.stream, cx)).is_err() {
            self.incoming = Incoming::Failed;
        }
        Poll::Ready(())
    }

    /// Returns the body of the request; `None` once all of it was taken.
    pub fn request_body(&mut self) -> Option<&mut B> {
        self.outgoing.body_mut()
    }

    /// Returns whether a byte of a response to the current request was read.
    pub fn has_response_begun(&self) -> bool {
        self.has_response_begun
    }

    /// Returns the number of bytes that are left of the response's body, if it is known.
    pub fn length_left(&self) -> Option<u64> {
        match &self.incoming {
            Incoming::Body(decoder) => decoder.length_left(),
            _ => Some(0),
        }
    }

    /// Returns whether all of the response's body was returned.
    pub fn is_response_done(&self) -> bool {
        matches!(self.incoming, Incoming::Done)
    }

    /// Returns whether all of the request was sent, or discarded after a failed write.
    pub fn is_request_done(&self) -> bool {
        self.outgoing.is_done()
    }

    /// Returns whether another request may be sent.
    pub fn is_reusable(&self) -> bool {
        self.may_reuse
            && self.is_response_done()
            && self.is_request_done()
            && self.unread.is_empty()
            && !self.outgoing.has_failed()
    }

    /// Returns the stream after a `101`, and the bytes of the new protocol that were read; `None` if there was none.
    pub fn into_upgraded(self) -> Option<(S, Bytes)> {
        matches!(self.incoming, Incoming::Upgraded).then_some((self.stream, self.unread))
    }
}

/// Returns whether `bytes` has an empty line that ends after the first `searched` bytes.
fn has_empty_line(bytes: &[u8], searched: usize) -> bool {
    let new = &bytes[searched.saturating_sub(2)..];
    memchr::memchr_iter(b'\n', new).any(|at| matches!(&new[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io;
    use std::task::Waker;

    use http_body::SizeHint;

    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 16 };

    /// A stream that reads what the test gives it, and notes what is written.
    #[derive(Default)]
    struct Stream {
        to_read: VecDeque<Result<Bytes, io::ErrorKind>>,
        written: Vec<u8>,
        writes: usize,
        /// The number of bytes that it still takes.
        room: usize,
        is_broken: bool,
    }

    impl AsyncRead for Stream {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            match self.to_read.pop_front() {
                None => Poll::Pending,
                Some(Err(kind)) => Poll::Ready(Err(kind.into())),
                Some(Ok(mut bytes)) => {
                    buf.put_slice(&bytes.split_to(bytes.len().min(buf.remaining())));
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

    /// Polls for the head, and asserts that it is not there.
    fn poll_no_head(connection: &mut H1Connection<Stream, Upload>) {
        let head = poll(|cx| connection.poll_head(cx));
        assert!(head.is_pending(), "{head:?}");
    }

    fn read(connection: &mut H1Connection<Stream, Upload>, bytes: &'static str) {
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
            read(&mut connection, "HTTP/1.1 413 A\r\nContent-Length: 2\r\n\r\nno");
            let Poll::Ready(Ok(head)) = poll(|cx| connection.poll_head(cx)) else { panic!("it is there") };
            assert_eq!(head.status, 413);
            let Poll::Ready(Some(Ok(frame))) = poll(|cx| connection.poll_frame(cx, 0)) else { panic!("it is there") };
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
        assert!(!written.contains("0\r\n\r\n"), "the gateway must not take it for complete: {written}");
        let mut connection = with_request(Framing::Chunked, [data("abc")]);
        read(&mut connection, "HTTP/1.1 200 A\r\nContent-Length: 2\r\n\r\n");
        assert!(poll(|cx| connection.poll_head(cx)).is_ready());
        connection.request_body().unwrap().frames.push_back(Some(Err(BrokenBody::Reset)));
        let frame = poll(|cx| connection.poll_frame(cx, 0));
        assert!(matches!(frame, Poll::Ready(Some(Err(ExchangeError::RequestBody(_))))), "{frame:?}");
        assert!(!connection.is_response_done() && !connection.is_reusable());
    }

    #[test]
    fn an_upload_without_a_wanted_frame_goes_on_until_it_breaks_off() {
        let mut connection = with_request(Framing::Chunked, [data("abc")]);
        read(&mut connection, "HTTP/1.1 200 A\r\nContent-Length: 2\r\n\r\n");
        assert!(poll(|cx| connection.poll_head(cx)).is_ready());
        for frame in [data("def"), Some(Err(BrokenBody::Reset)), None] {
            connection.request_body().unwrap().frames.push_back(frame);
            connection.poll_upload(&mut Context::from_waker(Waker::noop()));
        }
        let written = String::from_utf8_lossy(&connection.stream.written);
        assert!(written.contains("def") && !written.contains("0\r\n\r\n"), "a broken body has no end: {written}");
        let frame = poll(|cx| connection.poll_frame(cx, 0));
        assert!(matches!(frame, Poll::Ready(Some(Err(ExchangeError::RequestBody(_))))), "{frame:?}");
        assert!(!connection.is_reusable());
    }

    #[test]
    fn a_connection_can_send_only_if_nothing_came_after_the_last_response() {
        const RESPONSE: &str = "HTTP/1.1 200 A\r\nContent-Length: 2\r\n\r\nok";
        for (after, can_send) in [(None, true), (Some(Ok(Bytes::new())), false), (Some(Ok("x".into())), false)]
            .into_iter()
            .chain([(Some(Err(io::ErrorKind::ConnectionReset)), false)])
        {
            let mut connection = with_request(Framing::Chunked, [None]);
            assert!(!connection.is_reusable(), "it has no response");
            read(&mut connection, RESPONSE);
            assert!(poll(|cx| connection.poll_head(cx)).is_ready());
            assert!(!connection.is_reusable(), "it has a body");
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
            read(&mut connection, response);
            assert!(poll(|cx| connection.poll_head(cx)).is_ready());
            while !connection.is_response_done() {
                assert!(poll(|cx| connection.poll_frame(cx, 0)).is_ready());
            }
            assert!(!connection.is_reusable(), "{response:?}: bytes follow the response");
        }
    }

    #[test]
    fn an_upgraded_stream_keeps_the_bytes_after_the_head() {
        let mut connection = with_request(Framing::Chunked, [None]);
        read(&mut connection, "HTTP/1.1 101 A\r\nUpgrade: websocket\r\n\r\nframe");
        assert!(poll(|cx| connection.poll_head(cx)).is_ready());
        assert!(!connection.is_reusable());
        assert_eq!(connection.into_upgraded().map(|(_, early)| early).unwrap(), "frame");
        assert!(with_request(Framing::Chunked, [None]).into_upgraded().is_none());
    }

    #[test]
    fn a_head_is_bounded_however_slowly_it_comes() {
        let mut connection = with_request(Framing::Chunked, [None]);
        read(&mut connection, "HTTP/1.1 200 A\r\n");
        for line in 0.. {
            read(&mut connection, "A: b\r\n");
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
}
